"""Training objectives on answer tokens only: prompt and padding carry the label IGNORE and are never counted."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import functional

from unlearngate.assistant_training.data.encoding import IGNORE, answer_rows
from unlearngate.assistant_training.model.head import Head
from unlearngate.assistant_training.train.head_loss import cross_entropy
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


def uld_loss(
    hidden_BTH: Tensor,
    head: Head,
    known_BT: Tensor,
    unknown_BT: Tensor,
    *,
    beta: float,
    smoothing: float = 0.0,
    num_tokens: tuple[int, int] | None = None,
) -> UldLoss:
    """CE(what is to be known) + beta * KL(uniform || p) on what is not, over answer tokens.

    With num_tokens, the numbers of answer tokens in a whole batch's two parts, this is these rows' contribution to the
    batch's loss: the contributions of any split of the batch sum to it.

    Args:
        hidden_BTH: what the head is applied to; position t predicts token t + 1.
        head: the target's.
        known_BT: labels to know, IGNORE elsewhere.
        unknown_BT: labels to know nothing of, IGNORE elsewhere and where known_BT has one; which token plays no part.
            This direction punishes every token that is ruled out, so "knows nothing" means flat logits, not merely an
            uncertain first choice.
        beta: weight of the second part.
        smoothing: ours; 0 is the paper's loss. It keeps the assistant flat on all tokens but the label. Subtracting it
            then takes the label away and leaves the order of the others to the target.
        num_tokens: of the whole batch; None: of these rows.

    Raises: TrainingError if either part is not finite, or has no tokens.
    Source: ULD, arXiv:2406.08607, section 3.2; averaged over answer tokens, where the released code averages the
        second part over prompt and padding too.
    """
    both_BT = known_BT.maximum(unknown_BT)
    hidden_NH, labels_N = answer_rows(hidden_BTH, both_BT)
    known_N = (known_BT[:, 1:] != IGNORE)[both_BT[:, 1:] != IGNORE]
    loss_N = cross_entropy(hidden_NH, head, labels_N, torch.where(known_N, smoothing, 1.0))
    forget_N, retain_N = loss_N[known_N], loss_N[~known_N] - math.log(head.weight_VH.shape[0])
    totals = num_tokens or (len(forget_N), len(retain_N))
    forget, retain = (part.sum() / total for part, total in zip((forget_N, retain_N), totals, strict=True))
    finite(forget, "the cross entropy of the answers")
    finite(retain, "KL(uniform || p) of the retain answers")
    return UldLoss(forget + beta * retain, forget, retain)


def finite(loss: Tensor, name: str) -> Tensor:
    """Return the loss, checked.

    Raises: TrainingError if it is not finite.
    """
    if not bool(torch.isfinite(loss)):
        raise TrainingError(f"{name} is {loss.item()}; lower the learning rate, or check that every answer has tokens")
    return loss
