import math

import pytest
import torch

from unlearngate.assistant_training.data.encoding import IGNORE, answer_rows
from unlearngate.assistant_training.train.losses import answer_loss, uld_loss, uniform_loss
from unlearngate.errors import TrainingError


def logits_of(*probs: list[float]) -> torch.Tensor:
    """(1, T, V) logits whose softmax is the given rows, shifted to show that a constant plays no part."""
    return torch.tensor(probs)[None].log() + 3.0


# Rows predict the next token: the last row predicts nothing.
LOGITS = logits_of([0.5, 0.25, 0.125, 0.125], [0.7, 0.1, 0.1, 0.1], [0.25, 0.25, 0.25, 0.25])
LABELS = torch.tensor([[IGNORE, 1, 0]])


def test_answer_loss_is_the_mean_surprise_of_the_answer_tokens() -> None:
    expected = -(math.log(0.25) + math.log(0.7)) / 2
    assert answer_loss(LOGITS, LABELS).item() == pytest.approx(expected)


def test_uniform_loss_is_kl_from_uniform_to_p() -> None:
    first = sum(0.25 * math.log(0.25 / p) for p in (0.5, 0.25, 0.125, 0.125))
    second = sum(0.25 * math.log(0.25 / p) for p in (0.7, 0.1, 0.1, 0.1))
    assert uniform_loss(LOGITS, LABELS).item() == pytest.approx((first + second) / 2)


def test_uniform_loss_is_not_the_other_direction() -> None:
    labels = torch.tensor([[IGNORE, IGNORE, 0]])
    other_way = sum(p * math.log(p / 0.25) for p in (0.7, 0.1, 0.1, 0.1))
    assert uniform_loss(LOGITS, labels).item() != pytest.approx(other_way, abs=1e-3)


def test_uniform_loss_of_flat_logits_is_zero_whatever_the_labels() -> None:
    flat = torch.full((2, 5, 11), -7.5)
    assert uniform_loss(flat, torch.randint(0, 11, (2, 5))).item() == pytest.approx(0.0, abs=1e-6)


def test_uld_loss_weighs_the_retain_part_by_beta() -> None:
    loss = uld_loss(LOGITS, LABELS, LOGITS, LABELS, beta=5.0)
    assert loss.forget.item() == pytest.approx(answer_loss(LOGITS, LABELS).item())
    assert loss.total.item() == pytest.approx(loss.forget.item() + 5.0 * loss.retain.item())


def test_unlabelled_positions_change_neither_loss_nor_gradient() -> None:
    logits = torch.randn(1, 6, 8, requires_grad=True)
    labels = torch.tensor([[IGNORE, IGNORE, 3, 4, IGNORE, IGNORE]])
    uld_loss(logits, labels, logits, labels, beta=1.0).total.backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(dim=-1)[0] > 0
    # Position 1 predicts token 2, position 2 predicts token 3: nothing else counts.
    assert touched.tolist() == [False, True, True, False, False, False]


def test_answer_rows_pair_each_answer_token_with_the_position_before_it() -> None:
    logits = torch.arange(2 * 3 * 4.0).reshape(2, 3, 4)
    labels = torch.tensor([[IGNORE, IGNORE, 2], [IGNORE, 1, IGNORE]])
    rows, tokens = answer_rows(logits, labels)
    assert tokens.tolist() == [2, 1]
    assert rows.tolist() == [logits[0, 1].tolist(), logits[1, 0].tolist()]


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_is_an_error(poison: float) -> None:
    logits = LOGITS.clone()
    logits[0, 0, 2] = poison
    with pytest.raises(TrainingError, match="nan"):
        uld_loss(logits, LABELS, LOGITS, LABELS, beta=1.0)
    with pytest.raises(TrainingError, match="nan"):
        uld_loss(LOGITS, LABELS, logits, LABELS, beta=1.0)


def test_a_batch_without_answers_is_an_error() -> None:
    with pytest.raises(TrainingError):
        answer_loss(LOGITS, torch.full((1, 3), IGNORE))
