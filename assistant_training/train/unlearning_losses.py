"""Published unlearning losses, which tune a model itself: the baselines for an assistant that leaves the target alone.

Shapes: B sequences, T positions, V vocab, N answer tokens in the batch, S = T - 1 predicted positions.
logits_BTV come from the model in training, in any float type; position t predicts token t + 1. Reference and teacher
logits have the same shape, come from the frozen model before unlearning, and never get a gradient. labels_BT are token
ids, IGNORE on prompt and padding, which count nowhere and get no gradient.
Every loss is an fp32 scalar in nats, to be minimised. It raises TrainingError if it is not finite or the batch has no
answer token. Cross entropy on retain answers is `losses.answer_loss`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from unlearngate.assistant_training.data.encoding import IGNORE, answer_rows
from unlearngate.assistant_training.train.losses import answer_loss, finite
from unlearngate.errors import TrainingError


class AnswerLogProbs(NamedTuple):
    """Per sequence, (B,): `log_prob` = ln p(answer | prompt), summed over its `num_tokens` answer tokens."""

    log_prob: Tensor
    num_tokens: Tensor


class UnlearningLoss(NamedTuple):
    """`total = forget + weight * retain`; each a scalar in nats."""

    total: Tensor
    forget: Tensor
    retain: Tensor


def answer_log_probs(logits_BTV: Tensor, labels_BT: Tensor) -> AnswerLogProbs:
    """Each sequence's log-probability in nats, (B,) fp32, and its number of answer tokens, (B,) int64.

    Raises: TrainingError if a sequence has no answer token: it would count as one of probability 1.
    """
    answer_BS = labels_BT[:, 1:] != IGNORE
    num_tokens_B = answer_BS.sum(dim=1)
    if not bool((num_tokens_B > 0).all()):
        empty = (num_tokens_B == 0).nonzero().flatten().tolist()
        raise TrainingError(f"sequences {empty} of the batch have no answer token; leave them out")
    logits_NV, labels_N = answer_rows(logits_BTV, labels_BT)
    log_p_N = -functional.cross_entropy(logits_NV.float(), labels_N, reduction="none")
    log_p_BS = torch.zeros(answer_BS.shape, dtype=log_p_N.dtype, device=log_p_N.device)
    return AnswerLogProbs(log_p_BS.masked_scatter(answer_BS, log_p_N).sum(dim=1), num_tokens_B)


def gradient_ascent_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """GA: minus the cross entropy of the forget answers. It has no lower bound.

    Averaged over the batch's answer tokens, as in the released code.
    Source: TOFU, arXiv:2401.06121, "gradient ascent".
    """
    return -answer_loss(logits_BTV, labels_BT)


def retain_kl_loss(logits_BTV: Tensor, reference_logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """KL(p_reference || p) on retain answers: 0 where the model still answers as it did.

    Averaged over the batch's answer tokens, where the released code averages over prompt and padding too.

    Source: TOFU, arXiv:2401.06121, "KL minimization".
    """
    logits_NV, _ = answer_rows(logits_BTV, labels_BT)
    reference_NV, _ = answer_rows(reference_logits_BTV.detach(), labels_BT)
    log_p_NV, log_q_NV = logits_NV.float().log_softmax(dim=-1), reference_NV.float().log_softmax(dim=-1)
    divergence_N = functional.kl_div(log_p_NV, log_q_NV, reduction="none", log_target=True).sum(dim=-1)
    return finite(divergence_N.mean(), "KL(reference || p) of the retain answers")


def add_retain(forget: Tensor, retain: Tensor, *, weight: float = 1.0) -> UnlearningLoss:
    """A forget loss + weight * a retain loss: "+GD" with `losses.answer_loss`, "+KL" with `retain_kl_loss`."""
    return UnlearningLoss(forget + weight * retain, forget, retain)


def grad_diff_loss(
    forget_logits_BTV: Tensor,
    forget_labels_BT: Tensor,
    retain_logits_BTV: Tensor,
    retain_labels_BT: Tensor,
    *,
    weight: float = 1.0,
) -> UnlearningLoss:
    """GradDiff: GA on the forget answers + weight * CE on retain answers, each averaged over its answer tokens.

    Source: TOFU, arXiv:2401.06121, "gradient difference", where the weight is 1.
    """
    forget = gradient_ascent_loss(forget_logits_BTV, forget_labels_BT)
    return add_retain(forget, answer_loss(retain_logits_BTV, retain_labels_BT), weight=weight)


def npo_loss(logits_BTV: Tensor, reference_logits_BTV: Tensor, labels_BT: Tensor, *, beta: float = 0.1) -> Tensor:
    """NPO: -(2 / beta) * mean_b ln sigmoid(-beta * ln(p_b / p_reference_b)), p_b = p(forget answer b | prompt).

    A sequence's log-probability is the sum over its answer tokens, not their mean; the loss averages over sequences.
    It starts at (2 / beta) ln 2 and is at least 0. A sequence's gradient is that of ln p_b times a weight,
    2 p_b^beta / (p_b^beta + p_reference_b^beta): 1 at the start or as beta -> 0 (GA, of sums), 0 once forgotten.

    Raises: TrainingError also if a sequence has no answer token.
    Source: NPO, arXiv:2404.05868, the definition of L_NPO and proposition 1; beta > 0, and 0.1 is the authors'.
    """
    log_ratio_B = _log_ratios(logits_BTV, reference_logits_BTV, labels_BT)
    return finite(-2 / beta * functional.logsigmoid(-beta * log_ratio_B).mean(), "the NPO loss")


def simnpo_loss(logits_BTV: Tensor, labels_BT: Tensor, *, beta: float = 2.5, gamma: float = 0.0) -> Tensor:
    """SimNPO: -(2 / beta) * mean_b ln sigmoid(-(beta / |y_b|) * ln p_b - gamma), |y_b| = answer tokens of sequence b.

    Averaged over sequences. The margin is the paper's; the released code multiplies gamma by beta too.

    Raises: TrainingError also if a sequence has no answer token.
    Source: SimNPO, arXiv:2410.07163, the definition of l_SimNPO. The authors keep gamma >= 0 at 0 and tune beta > 0:
        for TOFU forget05 it is 2.5, this loss times 0.1375 beside +GD; for forget10 it is 4.5, times 0.125.
    """
    log_prob_B, num_tokens_B = answer_log_probs(logits_BTV, labels_BT)
    loss = -2 / beta * functional.logsigmoid(-beta * log_prob_B / num_tokens_B - gamma).mean()
    return finite(loss, "the SimNPO loss")


def idk_dpo_loss(
    *,
    idk_logits_BTV: Tensor,
    reference_idk_logits_BTV: Tensor,
    idk_labels_BT: Tensor,
    forget_logits_BTV: Tensor,
    reference_forget_logits_BTV: Tensor,
    forget_labels_BT: Tensor,
    beta: float = 0.1,
) -> Tensor:
    """IdkDPO: -mean_b ln sigmoid(beta * (ln ratio of the "I don't know" answer - ln ratio of the forget answer)).

    A ratio is p_b / p_reference_b with summed log-probabilities; the loss averages over pairs. It starts at ln 2, as in
    the DPO paper and TOFU's code; the NPO paper scales it by 1 / beta, and public code that follows it by 2 / beta.

    The two sides are the same questions in the same order, with the refusals, which win, and the forget answers, which
    lose; they may differ in T.

    Raises: ValueError if the two sides differ in B; TrainingError also if a sequence has no answer token.
    Source: DPO, arXiv:2305.18290, equation 7; refusals as winners and beta = 0.1: TOFU, arXiv:2401.06121.
    """
    if len(idk_labels_BT) != len(forget_labels_BT):
        raise ValueError(f"{len(idk_labels_BT)} refusals for {len(forget_labels_BT)} forget answers; give one for each")
    winner_B = _log_ratios(idk_logits_BTV, reference_idk_logits_BTV, idk_labels_BT)
    loser_B = _log_ratios(forget_logits_BTV, reference_forget_logits_BTV, forget_labels_BT)
    return finite(-functional.logsigmoid(beta * (winner_B - loser_B)).mean(), "the DPO loss")


def undial_loss(
    logits_BTV: Tensor,
    teacher_logits_BTV: Tensor,
    labels_BT: Tensor,
    *,
    gamma: float = 10.0,
    focus_BT: Tensor | None = None,
) -> Tensor:
    """UNDIAL: cross entropy from softmax(teacher - gamma * onehot(label)) to the student, on forget answers.

    Averaged over the batch's answer tokens; public code averages over prompt and padding too, and uses their label -100
    as an index. Its minimum is the adjusted teacher's entropy, where the student equals it.

    Args:
        logits_BTV: the student's.
        teacher_logits_BTV: the target's before unlearning.
        labels_BT: the forget answers.
        gamma: logits taken off the label, >= 0; 10 is OpenUnlearning's default, and 3 to 30 its author's range.
        focus_BT: (B, T) bool, true at the tokens to be forgotten (position of the token, as in labels). Then gamma
            applies to these alone, and the other answer tokens distil the plain teacher. That is ours: it keeps the
            words around a fact, where the authors' code drops or down-weights these tokens' losses. None: all tokens.

    Source: UNDIAL, arXiv:2402.10052, the adjusted-logit distillation loss; focus after its FUnDIAL variant.
    """
    logits_NV, labels_N = answer_rows(logits_BTV, labels_BT)
    teacher_NV, _ = answer_rows(teacher_logits_BTV.detach(), labels_BT)
    gamma_N = torch.full(labels_N.shape, gamma, dtype=torch.float32, device=labels_N.device)
    if focus_BT is not None:
        gamma_N = gamma_N * focus_BT[:, 1:][labels_BT[:, 1:] != IGNORE]
    adjusted_NV = teacher_NV.float().scatter_add(1, labels_N[:, None], -gamma_N[:, None])
    loss_N = -(adjusted_NV.softmax(dim=-1) * logits_NV.float().log_softmax(dim=-1)).sum(dim=-1)
    return finite(loss_N.mean(), "the UNDIAL loss")


def offset_logits(
    target_logits_BTV: Tensor, assistant_logits_BTV: Tensor, start_logits_BTV: Tensor, *, alpha: float = 1.0
) -> Tensor:
    """Offset (delta) unlearning: target + alpha * (assistant - start), fp32.

    Train the assistant by giving these logits to any loss above; only the assistant gets a gradient.

    Args:
        target_logits_BTV: (B, T, V) of the model to be unlearned, frozen.
        assistant_logits_BTV: same shape, of the small model in training.
        start_logits_BTV: same shape, of the small model as it was before training, frozen.
        alpha: strength of the offset; the default is ours.

    Raises: ValueError if the shapes differ.
    Source: Offset Unlearning, arXiv:2404.11045, the logit ensemble.
    """
    shapes = [tuple(logits.shape) for logits in (target_logits_BTV, assistant_logits_BTV, start_logits_BTV)]
    if len(set(shapes)) > 1:
        raise ValueError(f"target, assistant and start logits have shapes {shapes}; all three must share one vocab")
    offset_BTV = assistant_logits_BTV.float() - start_logits_BTV.detach().float()
    return target_logits_BTV.detach().float() + alpha * offset_BTV


def _log_ratios(logits_BTV: Tensor, reference_logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """ln(p / p_reference) of each sequence's answer, (B,)."""
    reference_B = answer_log_probs(reference_logits_BTV.detach(), labels_BT).log_prob
    return answer_log_probs(logits_BTV, labels_BT).log_prob - reference_B
