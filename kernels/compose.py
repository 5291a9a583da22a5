"""Compose the served logits from a target's and its assistants' logits.

The formula is docs/composition.md; `compose_reference` is its definition in plain torch, `compose` the only entry.

Shape legend: R target rows, N (row, forget set) pairs, M distinct rows among the pairs, V vocab.
"""

from __future__ import annotations

import math
from typing import Literal, NamedTuple

import torch
from torch import Tensor

Mode = Literal["sampling", "scoring"]
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)


class Composition(NamedTuple):
    """What `compose` did beside writing the logits.

    open_N: (N,) bool, the pair's gate was open and its weight above 0.
    evidence_N: (N,) fp32, KL(p_assistant || uniform) in nats; 0 where the assistant row is not finite.
    bad_N: (N,) bool, the pair's target row holds NaN or +inf, its assistant row is not finite, or the row overflows.
    """

    open_N: Tensor
    evidence_N: Tensor
    bad_N: Tensor


def compose(
    target_RV: Tensor,
    assistant_NV: Tensor,
    *,
    row_N: Tensor,
    weight_N: Tensor,
    gate_nats_N: Tensor,
    keep_ratio_R: Tensor,
    mode: Mode = "sampling",
) -> Composition:
    """Subtract each pair's centred assistant logits from its target row, in place.

    A pair (row, forget set) says: in this row this set is in force. Several pairs may name one row; their subtractions
    add. A row that no pair names, and a row with all gates closed, keeps its bits. A row with a bad pair is filled
    with -inf: the caller must count it and must not sample from it.

    Args:
        target_RV: (R, V) fp32/bf16/fp16 logits, written in place; -inf marks tokens that are not allowed.
        assistant_NV: (N, V) fp32/bf16/fp16 assistant logits, one row per pair.
        row_N: (N,) int64, the pair's row in target_RV, in [0, R).
        weight_N: (N,) fp32, finite and >= 0; a pair of weight 0 is not in force.
        gate_nats_N: (N,) fp32, >= 0; a pair is open iff its evidence reaches it; 0 is always open.
        keep_ratio_R: (R,) fp64 in [0, 1]; 0 keeps every token.
        mode: "sampling" writes -inf where a token is not kept, "scoring" leaves the target's logit there.

    Returns: which pairs were open, their evidence, and which were bad.
    Raises: ValueError if shapes, dtypes or devices disagree. Values are not checked: that would cost a host sync.
    Source: ULD, arXiv:2406.08607: logit subtraction and relative-top filter. The gate and the centring are ours.
    """
    _check(target_RV, assistant_NV, row_N, weight_N, gate_nats_N, keep_ratio_R, mode)
    return compose_reference(
        target_RV,
        assistant_NV,
        row_N=row_N,
        weight_N=weight_N,
        gate_nats_N=gate_nats_N,
        keep_ratio_R=keep_ratio_R,
        mode=mode,
    )


def compose_reference(
    target_RV: Tensor,
    assistant_NV: Tensor,
    *,
    row_N: Tensor,
    weight_N: Tensor,
    gate_nats_N: Tensor,
    keep_ratio_R: Tensor,
    mode: Mode = "sampling",
) -> Composition:
    """`compose` in plain torch, fp32 arithmetic (fp64 for fp64 input): the definition of right."""
    vocab_size = target_RV.shape[1]
    if row_N.numel() == 0 or vocab_size == 0:
        none = torch.zeros_like(row_N, dtype=torch.bool)
        return Composition(none, torch.zeros_like(weight_N), none)
    arithmetic = torch.float64 if target_RV.dtype == torch.float64 else torch.float32

    assistant_NV = assistant_NV.to(arithmetic)
    bad_N = ~torch.isfinite(assistant_NV).all(dim=-1)
    centred_NV, evidence_N = centre(assistant_NV.masked_fill(bad_N[:, None], 0.0))
    bad_N = bad_N | ~torch.isfinite(evidence_N)
    evidence_N = evidence_N.masked_fill(bad_N, 0.0)
    open_N = (weight_N > 0) & ((gate_nats_N <= 0) | (evidence_N >= gate_nats_N)) & ~bad_N

    rows_M, member_N = torch.unique(row_N, return_inverse=True)
    target_MV = target_RV[rows_M].to(arithmetic)
    bad_target_M = (torch.isnan(target_MV) | (target_MV == math.inf)).any(dim=-1)
    bad_N = bad_N | bad_target_M[member_N]
    open_N = open_N & ~bad_N

    taken_MV = torch.zeros_like(target_MV)
    taken_NV = (centred_NV * weight_N.to(arithmetic)[:, None]).masked_fill(~open_N[:, None], 0.0)
    taken_MV.index_add_(0, member_N, taken_NV)
    kept_MV = target_MV >= keep_threshold(target_MV, keep_ratio_R[rows_M])[:, None]
    dropped_MV = torch.full_like(target_MV, -math.inf) if mode == "sampling" else target_MV
    composed_MV = torch.where(kept_MV, target_MV - taken_MV, dropped_MV).to(target_RV.dtype)

    open_M = _any_per_row(open_N, member_N, rows_M.numel())
    overflow_M = open_M & (torch.isnan(composed_MV) | (composed_MV == math.inf)).any(dim=-1)
    bad_M = _any_per_row(bad_N, member_N, rows_M.numel()) | overflow_M
    bad_N = bad_N | overflow_M[member_N]
    composed_MV = composed_MV.masked_fill(bad_M[:, None], -math.inf)
    write_M = open_M | bad_M
    target_RV[rows_M[write_M]] = composed_MV[write_M]
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


def keep_threshold(target_RV: Tensor, keep_ratio_R: Tensor) -> Tensor:
    """The smallest logit that is kept in each row: min(max(t) + ln tau, k-th largest of t), k = max(1, floor(tau V)).

    Args:
        target_RV: (R, V) fp32 or fp64 logits without NaN.
        keep_ratio_R: (R,) fp64 tau in [0, 1].

    Returns: (R,) in target_RV's dtype.
    """
    vocab_size = target_RV.shape[1]
    k_R = (keep_ratio_R * vocab_size).floor().long().clamp(1, vocab_size)
    # Sorting all of V serves every k of a mixed batch without asking the device for the largest.
    descending_RV = target_RV.sort(dim=-1, descending=True).values
    kth_R = descending_RV.gather(1, (k_R - 1)[:, None])[:, 0]
    ratio_R = descending_RV[:, 0] + keep_ratio_R.log().to(target_RV.dtype)
    return torch.minimum(ratio_R, kth_R)


def _any_per_row(flag_N: Tensor, member_N: Tensor, num_rows: int) -> Tensor:
    """(N,) bool per pair -> (M,) bool: any pair of the row."""
    of_row_MN = member_N[None, :] == torch.arange(num_rows, device=flag_N.device)[:, None]
    return (of_row_MN & flag_N).any(dim=1)


def _check(
    target_RV: Tensor,
    assistant_NV: Tensor,
    row_N: Tensor,
    weight_N: Tensor,
    gate_nats_N: Tensor,
    keep_ratio_R: Tensor,
    mode: str,
) -> None:
    if mode not in ("sampling", "scoring"):
        raise ValueError(f"mode must be 'sampling' or 'scoring', got {mode!r}")
    if target_RV.ndim != 2 or target_RV.dtype not in _DTYPES:
        raise ValueError(
            f"target_RV must be (R, V) of fp32, bf16 or fp16, got {tuple(target_RV.shape)} {target_RV.dtype}"
        )
    num_rows, vocab_size = target_RV.shape
    if row_N.ndim != 1:
        raise ValueError(f"row_N must be (N,), one row per pair, got {tuple(row_N.shape)}")
    num_pairs = row_N.shape[0]
    expected = {
        "assistant_NV": (assistant_NV, (num_pairs, vocab_size), _DTYPES),
        "row_N": (row_N, (num_pairs,), (torch.int64,)),
        "weight_N": (weight_N, (num_pairs,), (torch.float32,)),
        "gate_nats_N": (gate_nats_N, (num_pairs,), (torch.float32,)),
        "keep_ratio_R": (keep_ratio_R, (num_rows,), (torch.float64,)),
    }
    for name, (tensor, shape, dtypes) in expected.items():
        if tuple(tensor.shape) != shape or tensor.dtype not in dtypes:
            names = " or ".join(str(d).removeprefix("torch.") for d in dtypes)
            raise ValueError(
                f"{name} must be {shape} of {names} to go with target_RV {(num_rows, vocab_size)}, "
                f"got {tuple(tensor.shape)} {tensor.dtype}"
            )
        if tensor.device != target_RV.device:
            raise ValueError(f"{name} is on {tensor.device}, target_RV on {target_RV.device}: put both on one device")
