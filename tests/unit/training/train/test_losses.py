import math

import pytest
import torch

from unlearngate.assistant_training.data.encoding import IGNORE, answer_rows
from unlearngate.assistant_training.model.head import Head
from unlearngate.assistant_training.train import head_loss
from unlearngate.assistant_training.train.losses import answer_loss, uld_loss
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


def loss_of(logits, known, unknown=None, **more):
    """The loss of logits: the head is the identity, so they are the hidden states too."""
    nothing = torch.full_like(known, IGNORE)
    return uld_loss(logits, Head(torch.eye(logits.shape[-1])), known, nothing if unknown is None else unknown, **more)


NOTHING = torch.full_like(LABELS, IGNORE)
TOKENS = {"num_tokens": (1, 1), "beta": 1.0}


def test_the_retain_loss_is_kl_from_uniform_to_p_and_not_the_other_direction() -> None:
    first = sum(0.25 * math.log(0.25 / p) for p in (0.5, 0.25, 0.125, 0.125))
    second = sum(0.25 * math.log(0.25 / p) for p in (0.7, 0.1, 0.1, 0.1))
    found = loss_of(LOGITS, NOTHING, LABELS, **TOKENS)
    assert found.retain.item() == pytest.approx(first + second)
    assert found.forget.item() == 0
    other_way = sum(p * math.log(p / 0.25) for p in (0.7, 0.1, 0.1, 0.1))
    only_second = loss_of(LOGITS, NOTHING, torch.tensor([[IGNORE, IGNORE, 0]]), **TOKENS)
    assert only_second.retain.item() == pytest.approx(second)
    assert second != pytest.approx(other_way, abs=1e-3)


def test_the_retain_loss_of_flat_logits_is_zero_whatever_the_labels() -> None:
    flat, labels = torch.full((2, 5, 11), -7.5), torch.randint(0, 11, (2, 5))
    assert loss_of(flat, torch.full_like(labels, IGNORE), labels, **TOKENS).retain.item() == pytest.approx(0, abs=1e-5)


def test_the_loss_weighs_the_retain_part_by_beta() -> None:
    known, unknown = torch.tensor([[IGNORE, 1, IGNORE]]), torch.tensor([[IGNORE, IGNORE, 0]])
    loss = loss_of(LOGITS, known, unknown, beta=5.0)
    assert loss.forget.item() == pytest.approx(-math.log(0.25))
    assert loss.total.item() == pytest.approx(loss.forget.item() + 5.0 * loss.retain.item())
    smooth = loss_of(LOGITS, known, unknown, beta=0.0, smoothing=0.1).forget.item()
    expected = -0.9 * math.log(0.25) - 0.025 * sum(map(math.log, (0.5, 0.25, 0.125, 0.125)))
    assert smooth == pytest.approx(expected)


def test_unlabelled_positions_change_neither_loss_nor_gradient() -> None:
    logits = torch.randn(1, 6, 8, requires_grad=True)
    labels = torch.tensor([[IGNORE, IGNORE, 3, IGNORE, IGNORE, IGNORE]])
    loss_of(logits, labels, torch.tensor([[IGNORE, IGNORE, IGNORE, 4, IGNORE, IGNORE]]), beta=1.0).total.backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(dim=-1)[0] > 0
    # Position 1 predicts token 2, position 2 predicts token 3: nothing else counts.
    assert touched.tolist() == [False, True, True, False, False, False]


@pytest.mark.parametrize("cap", [None, 2.5])
def test_the_head_in_parts_gives_torchs_loss_and_gradient(cap, seed, monkeypatch) -> None:
    torch.manual_seed(seed)
    num_tokens, hidden_size, vocab_size = 13, 6, 37
    hidden_NH = torch.randn(num_tokens, hidden_size, dtype=torch.float64)
    head_VH = torch.randn(vocab_size, hidden_size, dtype=torch.float64)
    labels_N = torch.randint(0, vocab_size, (num_tokens,))
    smoothing_N = torch.rand(num_tokens).where(torch.rand(num_tokens) < 0.7, 1.0)
    weights_N = torch.rand(num_tokens, dtype=torch.float64)
    logits_NV = (reference := hidden_NH.clone().requires_grad_()) @ head_VH.T
    log_p_NV = (cap * torch.tanh(logits_NV / cap) if cap else logits_NV).log_softmax(dim=-1)
    q_NV = smoothing_N[:, None].double() / vocab_size + torch.nn.functional.one_hot(labels_N, vocab_size) * (
        1 - smoothing_N[:, None].double()
    )
    expected_N = -(q_NV * log_p_NV).sum(dim=-1)
    (expected_N * weights_N).sum().backward()
    for at_once in (1, 4 * vocab_size, 2**22):
        monkeypatch.setattr(head_loss, "_LOGITS_AT_ONCE", at_once)
        ours = hidden_NH.float().requires_grad_()
        found_N = head_loss.cross_entropy(ours, Head(head_VH.float(), cap), labels_N, smoothing_N)
        (found_N * weights_N.float()).sum().backward()
        assert torch.allclose(found_N.double(), expected_N, atol=1e-5)
        assert torch.allclose(ours.grad.double(), reference.grad, atol=1e-5)


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
    other = torch.tensor([[IGNORE, IGNORE, 0]])
    with pytest.raises(TrainingError, match="nan"):
        loss_of(logits, torch.tensor([[IGNORE, 1, IGNORE]]), other, beta=1.0)
    with pytest.raises(TrainingError, match="nan"):
        loss_of(logits, other, torch.tensor([[IGNORE, 1, IGNORE]]), beta=1.0)


def test_a_batch_without_answers_is_an_error() -> None:
    with pytest.raises(TrainingError):
        answer_loss(LOGITS, torch.full((1, 3), IGNORE))
