"""Training objectives on answer tokens only: prompt and padding carry the label IGNORE and are never counted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from unlearngate.assistant_training.data.encoding import IGNORE, answer_rows
from unlearngate.errors import TrainingError


class UldLoss(NamedTuple):
    """`total = forget + beta * retain`; each a scalar in nats per answer token."""

    total: Tensor
    forget: Tensor
    retain: Tensor


def answer_loss(logits_BTV: Tensor, labels_BT: Tensor, *, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy over the batch's answer tokens, in nats.

    With smoothing e the label should get a probability of 1 - e; the rest is spread evenly over the vocab.

    Raises: TrainingError if it is not finite, or no token is labelled.
    """
    logits_NV, labels_N = answer_rows(logits_BTV, labels_BT)
    loss = functional.cross_entropy(logits_NV.float(), labels_N, label_smoothing=smoothing)
    return finite(loss, "the cross entropy of the answers")


def uniform_loss(logits_BTV: Tensor, labels_BT: Tensor) -> Tensor:
    """Mean KL(uniform || p) over the batch's answer tokens: -ln V - mean_v ln p_v, in nats.

    This direction punishes every token the assistant rules out, so "knows nothing" means flat logits, not merely an
    uncertain argmax. Which token is right plays no part.

    Raises: TrainingError if it is not finite, or no token is labelled.
    """
    logits_NV, _ = answer_rows(logits_BTV, labels_BT)
    log_p_NV = logits_NV.float().log_softmax(dim=-1)
    divergence_N = -math.log(log_p_NV.shape[-1]) - log_p_NV.mean(dim=-1)
    return finite(divergence_N.mean(), "KL(uniform || p) of the retain answers")


def uld_loss(
    forget_logits_BTV: Tensor,
    forget_labels_BT: Tensor,
    retain_logits_BTV: Tensor,
    retain_labels_BT: Tensor,
    *,
    beta: float,
    smoothing: float = 0.0,
    num_tokens: tuple[int, int] | None = None,
) -> UldLoss:
    """CE(forget answers) + beta * KL(uniform || p) on retain answers.

    With num_tokens, the numbers of answer tokens in a whole batch's two parts, this is these rows' contribution to the
    batch's loss: the contributions of any split of the batch sum to it.

    Smoothing (ours; 0 is the paper's loss) keeps the assistant flat on all tokens but the label. Subtracting it then
    takes the label away and leaves the order of the others to the target.

    Raises: TrainingError if either part is not finite.
    Source: ULD, arXiv:2406.08607, section 3.2; averaged over answer tokens, where the released code averages the
        second part over prompt and padding too.
    """
    both = (forget_labels_BT, retain_labels_BT)
    forget_tokens, retain_tokens = (int((labels_BT[:, 1:] != IGNORE).sum()) for labels_BT in both)
    forget = retain = forget_logits_BTV.new_zeros((), dtype=torch.float32)
    if num_tokens is None or forget_tokens:
        forget = answer_loss(forget_logits_BTV, forget_labels_BT, smoothing=smoothing)
    if num_tokens is None or retain_tokens:
        retain = uniform_loss(retain_logits_BTV, retain_labels_BT)
    if num_tokens is not None:
        forget, retain = forget * (forget_tokens / num_tokens[0]), retain * (retain_tokens / num_tokens[1])
    return UldLoss(forget + beta * retain, forget, retain)


def finite(loss: Tensor, name: str) -> Tensor:
    """Return the loss, checked.

    Raises: TrainingError if it is not finite.
    """
    if not bool(torch.isfinite(loss)):
        raise TrainingError(f"{name} is {loss.item()}; lower the learning rate, or check that every answer has tokens")
    return loss
