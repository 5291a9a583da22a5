"""The formula of docs/composition.md in plain torch: the definition of correct, for any float type.

Shape legend: R target rows, N (row, forget set) pairs, M distinct rows among the pairs, V vocab.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from unlearngate.kernels.pairs import CUT, Composition, Mode, Pairs


def compose_reference(
    target_RV: Tensor, assistant_NV: Tensor, pairs: Pairs, *, mode: Mode = "sampling", own_RV: Tensor | None = None
) -> Composition:
    """`compose` in fp32 arithmetic (fp64 for fp64 logits), the whole batch at a time, with a full sort.

    Takes pairs without padding. Closed rows are written too, with the bits they had.

    Source: ULD, arXiv:2406.08607: logit subtraction and relative-top filter. The gate and the centring are ours.
    """
    if pairs.row_N.numel() == 0 or pairs.vocab_size == 0:
        none_N = torch.zeros_like(pairs.row_N, dtype=torch.bool)
        return Composition(none_N, torch.zeros_like(pairs.weight_N), none_N)
    arithmetic = torch.float64 if target_RV.dtype == torch.float64 else torch.float32
    weight_N = pairs.weight_N.to(arithmetic)
    of_row_MN = pairs.row_M[:, None] == pairs.row_N[None, :]
    member_N = of_row_MN.int().argmax(dim=0)

    assistant_NV = assistant_NV.to(arithmetic)
    bad_N = ~torch.isfinite(assistant_NV).all(dim=-1)
    centred_NV, evidence_N = centre(assistant_NV.masked_fill(bad_N[:, None], 0.0))
    bad_N = bad_N | ~torch.isfinite(evidence_N)
    evidence_N = evidence_N.masked_fill(bad_N, 0.0)
    open_N = (weight_N > 0) & ((pairs.gate_nats_N <= 0) | (evidence_N >= pairs.gate_nats_N)) & ~bad_N
    open_M = (of_row_MN & open_N).any(dim=1)

    shown_MV = target_RV[pairs.row_M].to(arithmetic)
    own_MV = shown_MV if own_RV is None else own_RV[pairs.row_M].to(arithmetic)
    allowed_MV = ~torch.isneginf(shown_MV)
    changed_MV = torch.where(allowed_MV, shown_MV - own_MV, 0.0) if own_RV is not None else torch.zeros_like(own_MV)
    max_M, changed_M = own_MV.amax(dim=-1), changed_MV.amax(dim=-1).clamp(min=0)  # NaN if any is
    lowers_N1, weight_N1 = pairs.lowers_N[:, None], weight_N[:, None]
    sure_NV = (centred_NV - math.log(pairs.vocab_size) / 2).clamp(min=0)
    taken_NV = torch.where(lowers_N1, sure_NV, centred_NV) * weight_N1
    taken_NV = taken_NV.masked_fill(~open_N[:, None], 0.0)
    raised_N = -taken_NV.amin(dim=-1).clamp(max=0)
    raised_M = torch.zeros_like(max_M).index_add_(0, member_N, raised_N)
    overflow_M = open_M & ~(max_M + raised_M + changed_M <= torch.finfo(target_RV.dtype).max)
    bad_N = bad_N | (~(max_M < torch.inf) | ~(changed_M < torch.inf) | overflow_M)[member_N]
    bad_M = (of_row_MN & bad_N).any(dim=1)

    taken_MV = torch.zeros_like(own_MV).index_add_(0, member_N, taken_NV)
    lowered_MV = own_MV - taken_MV
    kept_MV = own_MV >= keep_threshold(own_MV, pairs.log_ratio_M, pairs.rank_M)[:, None]
    if mode == "sampling":
        best_M = lowered_MV.masked_fill(~kept_MV, -torch.inf).amax(dim=-1)
        kept_MV = kept_MV & (lowered_MV >= (best_M + pairs.log_tail_M.to(arithmetic))[:, None])
        composed_MV = torch.where(kept_MV, lowered_MV, CUT)
        if own_RV is not None:
            composed_MV = composed_MV + changed_MV
        composed_MV = composed_MV.masked_fill(~allowed_MV, -torch.inf)
    else:
        composed_MV = torch.where(kept_MV, lowered_MV, shown_MV)
    composed_MV = torch.where(open_M[:, None], composed_MV, shown_MV).masked_fill(bad_M[:, None], -torch.inf)
    target_RV[pairs.row_M] = composed_MV.to(target_RV.dtype)
    return Composition(open_N & ~bad_N, evidence_N, bad_N)


def centre(assistant_NV: Tensor) -> tuple[Tensor, Tensor]:
    """Centre assistant logits so that a uniform assistant is exactly zero, and say how much the assistant knows.

    Args:
        assistant_NV: (N, V) finite fp32 or fp64 logits.

    Returns: c (N, V) = a - logsumexp(a) + ln V, and the evidence (N,) = KL(softmax(a) || uniform) in nats.
    """
    shifted_NV = assistant_NV - assistant_NV.amax(dim=-1, keepdim=True)
    exp_NV = shifted_NV.exp()
    total_N1 = exp_NV.sum(dim=-1, keepdim=True)
    # log(total / V), not log(total) - log(V): all-equal logits then give log(1) = 0 exactly.
    centred_NV = shifted_NV - (total_N1 / assistant_NV.shape[-1]).log()
    return centred_NV, (exp_NV * centred_NV).sum(dim=-1) / total_N1[:, 0]


def keep_threshold(target_MV: Tensor, log_ratio_M: Tensor, rank_M: Tensor) -> Tensor:
    """The smallest logit that is kept in each row: min(max(t) + ln tau, k-th largest of t).

    Args:
        target_MV: (M, V) fp32 or fp64 logits.
        log_ratio_M: (M,) fp32, ln tau.
        rank_M: (M,) integer k in [1, V].

    Returns: (M,) in target_MV's dtype.
    """
    # Sorting all of V serves every k of a mixed batch without asking the device for the largest.
    descending_MV = target_MV.sort(dim=-1, descending=True).values
    kth_M = descending_MV.gather(1, (rank_M.long() - 1)[:, None])[:, 0]
    return torch.minimum(descending_MV[:, 0] + log_ratio_M.to(target_MV.dtype), kth_M)
