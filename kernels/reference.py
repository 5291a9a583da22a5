"""The formula of docs/composition.md in plain torch: the definition of correct, for any float type.

Shape legend: R target rows, N (row, forget set) pairs, M distinct rows among the pairs, V vocab.
"""

from __future__ import annotations

import torch
from torch import Tensor

from unlearngate.kernels.pairs import Composition, Mode, Pairs


def compose_reference(target_RV: Tensor, assistant_NV: Tensor, pairs: Pairs, *, mode: Mode = "sampling") -> Composition:
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

    target_MV = target_RV[pairs.row_M].to(arithmetic)
    max_M = target_MV.amax(dim=-1)  # NaN if any is
    raised_N = (weight_N * -centred_NV.amin(dim=-1)).clamp(min=0).masked_fill(~open_N, 0.0)
    raised_M = torch.zeros_like(max_M).index_add_(0, member_N, raised_N)
    overflow_M = open_M & ~(max_M + raised_M <= torch.finfo(target_RV.dtype).max)
    bad_N = bad_N | (~(max_M < torch.inf) | overflow_M)[member_N]
    bad_M = (of_row_MN & bad_N).any(dim=1)

    taken_NV = (centred_NV * weight_N[:, None]).masked_fill(~open_N[:, None], 0.0)
    taken_MV = torch.zeros_like(target_MV).index_add_(0, member_N, taken_NV)
    kept_MV = target_MV >= keep_threshold(target_MV, pairs.log_ratio_M, pairs.rank_M)[:, None]
    dropped_MV = torch.full_like(target_MV, -torch.inf) if mode == "sampling" else target_MV
    composed_MV = torch.where(kept_MV, target_MV - taken_MV, dropped_MV)
    composed_MV = torch.where(open_M[:, None], composed_MV, target_MV).masked_fill(bad_M[:, None], -torch.inf)
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
