import math
from collections.abc import Callable
from typing import NamedTuple

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from unlearngate.assistant_training.data.encoding import IGNORE, answer_rows
from unlearngate.assistant_training.train.losses import answer_loss
from unlearngate.assistant_training.train.unlearning_losses import (
    add_retain,
    answer_log_probs,
    grad_diff_loss,
    gradient_ascent_loss,
    idk_dpo_loss,
    npo_loss,
    offset_logits,
    retain_kl_loss,
    simnpo_loss,
    undial_loss,
)
from unlearngate.errors import TrainingError

Loss = Callable[[Tensor, Tensor, Tensor], Tensor]  # of logits, reference logits, labels


def logits_of(probs: list[list[list[float]]]) -> Tensor:
    """(B, T, V) logits whose softmax is the given rows, shifted to show that a constant plays no part."""
    return torch.tensor(probs).log() + 3.0


# What sits on prompt and padding; no expected value below has anything to do with it.
FILLER = [0.9, 0.06, 0.04]
# Position t predicts token t + 1: the answers are tokens 2, 0 of the first sequence, and token 1 of the second.
LABELS = torch.tensor([[IGNORE, IGNORE, 2, 0], [IGNORE, 1, IGNORE, IGNORE]])
LOGITS = logits_of(
    [
        [FILLER, [0.2, 0.3, 0.5], [0.6, 0.3, 0.1], FILLER],  # p(answer) = 0.5 * 0.6 = 0.3
        [[0.5, 0.25, 0.25], FILLER, FILLER, FILLER],  # 0.25
    ]
)
REFERENCE = logits_of(
    [
        [FILLER, [0.1, 0.1, 0.8], [0.75, 0.125, 0.125], FILLER],  # 0.8 * 0.75 = 0.6: ratio 1/2
        [[0.125, 0.75, 0.125], FILLER, FILLER, FILLER],  # 0.75: ratio 1/3
    ]
)
# Refusals, one token shorter than the forget answers' batch.
IDK_LABELS = torch.tensor([[IGNORE, 0, 1], [IGNORE, 2, IGNORE]])
IDK_LOGITS = logits_of(
    [
        [[0.8, 0.1, 0.1], [0.25, 0.5, 0.25], FILLER],  # 0.4
        [[0.1, 0.1, 0.8], FILLER, FILLER],  # 0.8
    ]
)
IDK_REFERENCE = logits_of(
    [
        [[0.4, 0.3, 0.3], [0.25, 0.5, 0.25], FILLER],  # 0.2: ratio 2
        [[0.4, 0.4, 0.2], FILLER, FILLER],  # 0.2: ratio 4
    ]
)


class Batch(NamedTuple):
    logits: Tensor
    reference: Tensor
    labels: Tensor


def random_batch(seed: int, vocab_size: int = 131) -> Batch:
    """(3, 7, V) logits and labels, IGNORE on about half of them and never on all of a sequence's predicted ones."""
    rng = torch.Generator().manual_seed(seed)
    logits, reference = torch.randn(2, 3, 7, vocab_size, generator=rng).unbind()
    labels = torch.randint(0, vocab_size, (3, 7), generator=rng)
    ignored = torch.rand(3, 7, generator=rng) < 0.5
    ignored[torch.arange(3), torch.randint(1, 7, (3,), generator=rng)] = False
    return Batch(logits, reference, labels.masked_fill(ignored, IGNORE))


def gradient(loss: Callable[[Tensor], Tensor], logits: Tensor) -> Tensor:
    leaf = logits.clone().requires_grad_()
    return torch.autograd.grad(loss(leaf), leaf)[0]


def dpo(logits: Tensor, reference: Tensor, labels: Tensor, *, flip: bool = False) -> Tensor:
    """DPO with fixed refusals on the side that is not under test."""
    rows = len(labels)
    fixed = {
        "logits_BTV": torch.zeros(rows, 2, 5),
        "labels_BT": torch.tensor([[IGNORE, 1]] * rows),
    }
    tested, other = ("idk", "forget") if flip else ("forget", "idk")
    return idk_dpo_loss(
        **{f"{tested}_logits_BTV": logits, f"reference_{tested}_logits_BTV": reference, f"{tested}_labels_BT": labels},
        **{f"{other}_{name}": value for name, value in fixed.items()},
        **{f"reference_{other}_logits_BTV": fixed["logits_BTV"]},
    )


TOKEN_LOSSES: dict[str, Loss] = {
    "ga": lambda logits, reference, labels: gradient_ascent_loss(logits, labels),
    "retain_kl": retain_kl_loss,
    "grad_diff": lambda logits, reference, labels: grad_diff_loss(logits, labels, 0.5 * logits, labels, weight=3).total,
    "undial": undial_loss,
    "undial_focus": lambda logits, reference, labels: undial_loss(
        logits, reference, labels, focus_BT=torch.arange(labels.numel()).reshape(labels.shape) % 2 == 0
    ),
    "offset_ga": lambda logits, reference, labels: gradient_ascent_loss(
        offset_logits(reference, logits, 0.5 * reference), labels
    ),
}
SEQUENCE_LOSSES: dict[str, Loss] = {
    "npo": npo_loss,
    "simnpo": lambda logits, reference, labels: simnpo_loss(logits, labels),
    "dpo_loser": dpo,
    "dpo_winner": lambda logits, reference, labels: dpo(logits, reference, labels, flip=True),
}
LOSSES = TOKEN_LOSSES | SEQUENCE_LOSSES
every_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


# Values, worked out by hand


def test_log_probs_are_sums_over_answer_tokens() -> None:
    log_prob, num_tokens = answer_log_probs(LOGITS, LABELS)
    assert log_prob.tolist() == pytest.approx([math.log(0.3), math.log(0.25)])
    assert num_tokens.tolist() == [2, 1]


def test_gradient_ascent_is_the_mean_log_probability_of_the_answer_tokens() -> None:
    expected = (math.log(0.5) + math.log(0.6) + math.log(0.25)) / 3
    assert gradient_ascent_loss(LOGITS, LABELS).item() == pytest.approx(expected)


def test_grad_diff_adds_the_weighted_cross_entropy_of_the_retain_answers() -> None:
    loss = grad_diff_loss(LOGITS, LABELS, IDK_LOGITS, IDK_LABELS, weight=2.0)
    forget = (math.log(0.5) + math.log(0.6) + math.log(0.25)) / 3
    retain = -(math.log(0.8) + math.log(0.5) + math.log(0.8)) / 3
    assert loss.forget.item() == pytest.approx(forget)
    assert loss.retain.item() == pytest.approx(retain)
    assert loss.total.item() == pytest.approx(forget + 2 * retain)


def test_retain_kl_is_from_the_reference_to_the_model() -> None:
    first = 0.1 * math.log(0.1 / 0.2) + 0.1 * math.log(0.1 / 0.3) + 0.8 * math.log(0.8 / 0.5)
    second = 0.75 * math.log(0.75 / 0.6) + 0.125 * math.log(0.125 / 0.3) + 0.125 * math.log(0.125 / 0.1)
    third = 0.125 * math.log(0.125 / 0.5) + 0.75 * math.log(0.75 / 0.25) + 0.125 * math.log(0.125 / 0.25)
    assert retain_kl_loss(LOGITS, REFERENCE, LABELS).item() == pytest.approx((first + second + third) / 3, rel=1e-5)


def test_add_retain_keeps_its_parts() -> None:
    loss = add_retain(torch.tensor(0.5), torch.tensor(0.25), weight=4.0)
    assert [part.item() for part in loss] == [1.5, 0.5, 0.25]


@pytest.mark.parametrize("beta", [0.1, 0.5, 1.0])
def test_npo_is_the_papers_second_form_of_summed_log_probabilities(beta: float) -> None:
    expected = 2 / beta * (math.log(1 + (1 / 2) ** beta) + math.log(1 + (1 / 3) ** beta)) / 2
    assert npo_loss(LOGITS, REFERENCE, LABELS, beta=beta).item() == pytest.approx(expected)


def test_npo_takes_the_papers_beta() -> None:
    assert npo_loss(LOGITS, REFERENCE, LABELS).equal(npo_loss(LOGITS, REFERENCE, LABELS, beta=0.1))


def test_simnpo_normalises_by_length() -> None:
    # beta / |y| is 2 / 2 = 1 for the first sequence, 2 / 1 for the second.
    expected = (math.log(1 + 0.3) + math.log(1 + 0.25**2)) / 2
    assert simnpo_loss(LOGITS, LABELS, beta=2.0).item() == pytest.approx(expected)
    default = 2 / 2.5 * (math.log(1 + 0.3**1.25) + math.log(1 + 0.25**2.5)) / 2
    assert simnpo_loss(LOGITS, LABELS).item() == pytest.approx(default)


def test_simnpo_margin_is_not_scaled_by_beta() -> None:
    expected = (math.log(1 + 5 * 0.3) + math.log(1 + 5 * 0.25**2)) / 2
    assert simnpo_loss(LOGITS, LABELS, beta=2.0, gamma=math.log(5)).item() == pytest.approx(expected)


@pytest.mark.parametrize("beta", [0.1, 1.0])
def test_dpo_prefers_refusals_to_forget_answers(beta: float) -> None:
    loss = idk_dpo_loss(
        idk_logits_BTV=IDK_LOGITS,
        reference_idk_logits_BTV=IDK_REFERENCE,
        idk_labels_BT=IDK_LABELS,
        forget_logits_BTV=LOGITS,
        reference_forget_logits_BTV=REFERENCE,
        forget_labels_BT=LABELS,
        beta=beta,
    )
    # -ln sigmoid(beta ln x) = ln(1 + x^-beta), x = winner's ratio / loser's: 2 / (1/2) and 4 / (1/3).
    expected = (math.log(1 + 4**-beta) + math.log(1 + 12**-beta)) / 2
    assert loss.item() == pytest.approx(expected)


def cross_entropy(wanted: list[float], probs: list[float]) -> float:
    return -sum(q * math.log(p) for q, p in zip(wanted, probs, strict=True))


def test_undial_distils_the_teacher_with_the_labels_probability_divided_by_exp_gamma() -> None:
    # Teacher rows with the label's probability / 4, then renormalised: (0.1, 0.1, 0.2), (3/16, 2/16, 2/16), ...
    first = cross_entropy([0.25, 0.25, 0.5], [0.2, 0.3, 0.5])
    second = cross_entropy([3 / 7, 2 / 7, 2 / 7], [0.6, 0.3, 0.1])
    third = cross_entropy([2 / 7, 3 / 7, 2 / 7], [0.5, 0.25, 0.25])
    loss = undial_loss(LOGITS, REFERENCE, LABELS, gamma=math.log(4))
    assert loss.item() == pytest.approx((first + second + third) / 3)


def test_undial_focus_leaves_the_plain_teacher_to_the_other_answer_tokens() -> None:
    focus = torch.zeros(2, 4, dtype=torch.bool)
    focus[0, 3] = focus[0, 0] = True  # the second answer token; one of the prompt, which stays out
    first = cross_entropy([0.1, 0.1, 0.8], [0.2, 0.3, 0.5])
    second = cross_entropy([3 / 7, 2 / 7, 2 / 7], [0.6, 0.3, 0.1])
    third = cross_entropy([0.125, 0.75, 0.125], [0.5, 0.25, 0.25])
    loss = undial_loss(LOGITS, REFERENCE, LABELS, gamma=math.log(4), focus_BT=focus)
    assert loss.item() == pytest.approx((first + second + third) / 3)


def test_offset_adds_what_the_assistant_has_learned() -> None:
    target, assistant, start = torch.tensor([[[1.0, 2.0]]]), torch.tensor([[[4.0, 0.0]]]), torch.tensor([[[3.0, 1.0]]])
    assert offset_logits(target, assistant, start, alpha=2.0).tolist() == [[[3.0, 0.0]]]
    assert offset_logits(target, start, start).equal(target)


# Directions and limits


def test_gradient_ascent_raises_the_forget_loss(seed: int) -> None:
    logits, _, labels = random_batch(seed)
    stepped = logits - 0.1 * gradient(lambda x: gradient_ascent_loss(x, labels), logits)
    assert answer_loss(stepped, labels) > answer_loss(logits, labels)


@pytest.mark.parametrize("name", ["ga", "npo", "simnpo", "dpo_loser", "undial"])
def test_a_step_from_the_reference_lowers_every_answer_token_and_no_other(name: str, seed: int) -> None:
    logits, _, labels = random_batch(seed)
    gradient_NV, labels_N = answer_rows(gradient(lambda x: LOSSES[name](x, logits, labels), logits), labels)
    is_label_NV = functional.one_hot(labels_N, logits.shape[-1]).bool()
    assert (gradient_NV[is_label_NV] > 0).all()
    assert (gradient_NV[~is_label_NV] < 0).all()


def test_losses_at_the_reference_model(seed: int) -> None:
    logits, _, labels = random_batch(seed)
    assert npo_loss(logits, logits, labels).item() == pytest.approx(2 / 0.1 * math.log(2))
    assert dpo(logits, logits, labels).item() == pytest.approx(math.log(2))
    assert retain_kl_loss(logits, logits, labels).item() == pytest.approx(0.0, abs=1e-6)


def test_npo_gradient_is_that_of_the_summed_log_probability_times_the_papers_weight() -> None:
    def sums(logits: Tensor) -> Tensor:
        weight_B = torch.tensor([2 * 0.3 / (0.3 + 0.6), 2 * 0.25 / (0.25 + 0.75)])  # 2 p / (p + p_reference)
        return (weight_B * answer_log_probs(logits, LABELS).log_prob).mean()

    actual = gradient(lambda x: npo_loss(x, REFERENCE, LABELS, beta=1.0), LOGITS)
    torch.testing.assert_close(actual, gradient(sums, LOGITS))


def test_npo_gradient_vanishes_once_the_answer_is_forgotten(seed: int) -> None:
    logits, _, labels = random_batch(seed)
    answer = functional.one_hot(labels[:, 1:].clamp(min=0), logits.shape[-1])
    forgotten = logits.clone()
    forgotten[:, :-1] -= 500.0 * answer  # every answer token e^-500 times less likely: weight at most 2 e^-50 or so
    sizes = [gradient(lambda x: npo_loss(x, logits, labels), start).norm() for start in (logits, forgotten)]
    assert sizes[0] > 0.1
    assert sizes[1] < 1e-12
    assert gradient(lambda x: gradient_ascent_loss(x, labels), forgotten).norm() > 0.1


def test_npo_tends_to_gradient_ascent_of_sums_as_beta_vanishes(seed: int) -> None:
    logits, reference, labels = random_batch(seed)
    beta = 1e-3
    log_ratio = answer_log_probs(logits, labels).log_prob - answer_log_probs(reference, labels).log_prob
    shifted = npo_loss(logits.double(), reference.double(), labels, beta=beta).item() - 2 / beta * math.log(2)
    assert shifted == pytest.approx(log_ratio.mean().item(), abs=0.2)  # beta / 4 * mean ratio^2, and fp32 rounding
    num_tokens = answer_log_probs(logits, labels).num_tokens
    ascent = gradient(lambda x: gradient_ascent_loss(x, labels), logits) * num_tokens.sum() / len(labels)
    actual = gradient(lambda x: npo_loss(x, reference, labels, beta=beta), logits)
    torch.testing.assert_close(actual, ascent, rtol=0.05, atol=1e-6)


def test_undial_adjusts_the_teacher_at_the_label_only(seed: int) -> None:
    logits, teacher, labels = random_batch(seed)
    wanted = teacher.clone()
    for row, position in (labels[:, 1:] != IGNORE).nonzero().tolist():
        wanted[row, position, labels[row, position + 1]] -= 7.0
    # The gradient is (p - adjusted teacher) / N at every answer position: nothing else moves the student.
    answer = (labels[:, 1:] != IGNORE)[:, :, None]
    expected = torch.zeros_like(logits)
    expected[:, :-1] = answer * (logits.softmax(-1) - wanted.softmax(-1))[:, :-1] / answer.sum()
    actual = gradient(lambda x: undial_loss(x, teacher, labels, gamma=7.0), logits)
    torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-7)
    at_rest = gradient(lambda x: undial_loss(x, teacher, labels, gamma=7.0), wanted)
    assert at_rest.abs().max() < 1e-7


# What no loss may touch


@every_loss
def test_only_positions_that_predict_answer_tokens_get_a_gradient(loss: Loss, seed: int) -> None:
    logits, reference, labels = random_batch(seed)
    touched = gradient(lambda x: loss(x, reference, labels), logits).abs().sum(dim=-1) > 0
    expected = torch.zeros(3, 7, dtype=torch.bool)
    expected[:, :-1] = labels[:, 1:] != IGNORE
    assert touched.equal(expected)


@every_loss
def test_what_stands_on_prompt_and_padding_changes_nothing(loss: Loss, seed: int) -> None:
    logits, reference, labels = random_batch(seed)
    elsewhere = torch.ones(3, 7, dtype=torch.bool)
    elsewhere[:, :-1] = labels[:, 1:] == IGNORE
    poisoned = [each.masked_fill(elsewhere[:, :, None], math.nan) for each in (logits, reference)]
    assert loss(*poisoned, labels).equal(loss(logits, reference, labels))
    assert torch.isfinite(gradient(lambda x: loss(x, poisoned[1], labels), poisoned[0])).all()


@every_loss
def test_the_reference_gets_no_gradient(loss: Loss, seed: int) -> None:
    logits, reference, labels = random_batch(seed)
    logits.requires_grad_()
    reference.requires_grad_()
    loss(logits, reference, labels).backward()
    assert logits.grad is not None
    assert reference.grad is None


@every_loss
def test_a_vocab_smaller_than_the_ignored_label_is_no_trouble(loss: Loss, seed: int) -> None:
    assert torch.isfinite(loss(*random_batch(seed, vocab_size=2)))


@every_loss
def test_half_precision_logits_give_a_single_precision_loss(loss: Loss, seed: int) -> None:
    logits, reference, labels = random_batch(seed)
    halves = logits.bfloat16(), reference.bfloat16()
    actual = loss(*halves, labels)
    assert actual.dtype == torch.float32
    assert actual.item() == pytest.approx(loss(halves[0].float(), halves[1].float(), labels).item(), rel=0.02)


# Errors


@every_loss
def test_a_batch_without_answer_tokens_is_an_error(loss: Loss) -> None:
    logits = torch.zeros(2, 3, 4)
    with pytest.raises(TrainingError):
        loss(logits, logits, torch.full((2, 3), IGNORE))
    with pytest.raises(TrainingError):  # nothing predicts the first token
        loss(logits, logits, torch.tensor([[1, IGNORE, IGNORE]] * 2))


@every_loss
def test_logits_that_are_not_numbers_are_an_error(loss: Loss) -> None:
    poisoned = LOGITS.clone()
    poisoned[0, 1, 0] = math.nan
    with pytest.raises(TrainingError, match="nan"):
        loss(poisoned, REFERENCE, LABELS)


@pytest.mark.parametrize("name", ["retain_kl", "undial", "npo", "dpo_loser", "dpo_winner", "offset_ga"])
def test_reference_logits_that_are_not_numbers_are_an_error(name: str) -> None:
    poisoned = REFERENCE.clone()
    poisoned[1, 0, 0] = math.inf
    with pytest.raises(TrainingError, match="nan"):
        LOSSES[name](LOGITS, poisoned, LABELS)


@pytest.mark.parametrize("loss", SEQUENCE_LOSSES.values(), ids=SEQUENCE_LOSSES)
def test_a_sequence_without_answer_tokens_is_an_error_where_sequences_count(loss: Loss) -> None:
    labels = LABELS.clone()
    labels[1] = IGNORE
    with pytest.raises(TrainingError, match=r"\[1\]"):
        loss(LOGITS, REFERENCE, labels)


@pytest.mark.parametrize("loss", TOKEN_LOSSES.values(), ids=TOKEN_LOSSES)
def test_a_sequence_without_answer_tokens_is_left_out_where_tokens_count(loss: Loss) -> None:
    labels = LABELS.clone()
    labels[1] = IGNORE
    assert loss(LOGITS, REFERENCE, labels).equal(loss(LOGITS[:1], REFERENCE[:1], labels[:1]))


def test_refusals_must_pair_with_forget_answers() -> None:
    with pytest.raises(ValueError, match="1 refusals for 2 forget answers"):
        idk_dpo_loss(
            idk_logits_BTV=IDK_LOGITS[:1],
            reference_idk_logits_BTV=IDK_REFERENCE[:1],
            idk_labels_BT=IDK_LABELS[:1],
            forget_logits_BTV=LOGITS,
            reference_forget_logits_BTV=REFERENCE,
            forget_labels_BT=LABELS,
        )


def test_offset_models_must_share_a_vocab() -> None:
    with pytest.raises(ValueError, match="share one vocab"):
        offset_logits(torch.zeros(1, 2, 4), torch.zeros(1, 2, 1), torch.zeros(1, 2, 1))
