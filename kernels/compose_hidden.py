"""`compose` for assistants that are given as hidden rows, with the head that turns them into logits.

Shape legend: R target rows, N (row, forget set) pairs, H hidden size, V vocab.
"""

from __future__ import annotations

import os

import torch
from torch import Tensor

from unlearngate.kernels.compose import check_target, compose, runs_triton
from unlearngate.kernels.pairs import Composition, Mode, Pairs
from unlearngate.kernels.scratch import SMALLEST_BLOCK, Scratch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
# What the prediction in docs/kernels.md assumes of the GPU: matrix products and memory.
_FLOPS_PER_S = 600e12
_BYTES_PER_S = 4e12


def compose_hidden(
    target_RV: Tensor,
    hidden_NH: Tensor,
    head_VH: Tensor,
    pairs: Pairs,
    *,
    mode: Mode = "sampling",
    scratch: Scratch | None = None,
    recompute: bool | None = None,
) -> Composition:
    """`compose` with assistant_NV = hidden_NH @ head_VH.T, for a head that is this product and nothing else.

    Args:
        target_RV: as in `compose`.
        hidden_NH: (N, H) fp32/bf16/fp16, one contiguous row per pair, after the final norm.
        head_VH: (V, H) of the same dtype, contiguous rows: the head that target and assistants share.
        pairs: as in `compose`.
        mode: as in `compose`.
        scratch: as in `compose`.
        recompute: on a GPU, compute the assistants' logits twice and never store them (fp32 sums, not rounded to the
            hidden rows' dtype), or once and store them. None: whichever `recomputing_pays` predicts to be faster.

    Raises: ValueError if shapes, dtypes or devices disagree, or recompute is asked for without Triton.
    """
    check_target(target_RV, pairs, mode)
    _check(hidden_NH, head_VH, pairs)
    num_pairs, hidden_size = hidden_NH.shape
    on_gpu = runs_triton(target_RV.device)
    if recompute and not on_gpu:
        raise ValueError("recompute=True needs Triton; on a CPU the assistants' logits are stored")
    if recompute is None:
        recompute = on_gpu and recomputing_pays(num_pairs, hidden_size)
    if not recompute:
        return compose(target_RV, hidden_NH @ head_VH.T, pairs, mode=mode, scratch=scratch)
    if scratch is None:
        scratch = Scratch(num_pairs, pairs.vocab_size, target_RV.device)
    return _compose_recomputed(target_RV, hidden_NH, head_VH, pairs, mode, scratch)


def recomputing_pays(num_pairs: int, hidden_size: int) -> bool:
    """Whether a second product with the head costs less than storing bf16 logits and reading them twice.

    Per assistant and token: 2 H operations more, and a share of 2 H / N bytes of the head, against 6 bytes less.
    """
    more_s = 2 * hidden_size / _FLOPS_PER_S + 2 * hidden_size / max(1, num_pairs) / _BYTES_PER_S
    return more_s < 6 / _BYTES_PER_S


def _compose_recomputed(
    target_RV: Tensor, hidden_NH: Tensor, head_VH: Tensor, pairs: Pairs, mode: Mode, scratch: Scratch
) -> Composition:
    import triton

    from unlearngate.kernels.triton_compose import OPTIONS, Launch, read_rows
    from unlearngate.kernels.triton_head import head_read_kernel, head_write_kernel

    num_pairs, hidden_size = hidden_NH.shape
    num_members, vocab_size = pairs.row_M.shape[0], pairs.vocab_size
    launch = Launch(SMALLEST_BLOCK, write_at_once=False)
    if num_pairs == 0 or vocab_size == 0:
        return read_rows(target_RV, None, pairs, mode, scratch, launch)
    if os.environ.get("TRITON_INTERPRET") == "1":
        # The interpreter multiplies the bits of bf16 operands: https://github.com/triton-lang/triton/issues/11584
        hidden_NH, head_VH = hidden_NH.float(), head_VH.float()
    num_tokens, rows = 128, 64 if num_pairs > 32 else 16
    tile = {"TOKENS": num_tokens, "DEPTH": 128 // hidden_NH.element_size(), "PRECISION": "ieee"}
    num_chunks = triton.cdiv(vocab_size, launch.block)
    with torch.cuda.device_of(target_RV):
        head_read_kernel[(num_chunks * triton.cdiv(num_pairs, rows),)](
            hidden_NH,
            head_VH,
            scratch.pair_parts,
            num_pairs,
            hidden_size,
            vocab_size,
            hidden_NH.stride(0),
            head_VH.stride(0),
            scratch.num_pairs,
            scratch.max_chunks,
            CHUNK=launch.block,
            PAIRS=rows,
            **tile,
            **OPTIONS,
        )
        result = read_rows(target_RV, None, pairs, mode, scratch, launch)
        head_write_kernel[(triton.cdiv(vocab_size, num_tokens) * triton.cdiv(num_members, rows),)](
            target_RV,
            hidden_NH,
            head_VH,
            pairs.row_M,
            pairs.first_M,
            pairs.member_N,
            scratch.centring,
            scratch.threshold,
            scratch.action,
            num_members,
            hidden_size,
            vocab_size,
            target_RV.stride(0),
            hidden_NH.stride(0),
            head_VH.stride(0),
            scratch.num_pairs,
            SAMPLING=mode == "sampling",
            ROWS=rows,
            **tile,
            **OPTIONS,
        )
    return result


def _check(hidden_NH: Tensor, head_VH: Tensor, pairs: Pairs) -> None:
    if head_VH.ndim != 2 or head_VH.shape[0] != pairs.vocab_size or head_VH.dtype not in _DTYPES:
        raise ValueError(
            f"head_VH must be ({pairs.vocab_size}, H) of fp32, bf16 or fp16, got {tuple(head_VH.shape)} {head_VH.dtype}"
        )
    expected = (pairs.row_N.shape[0], head_VH.shape[1])
    if tuple(hidden_NH.shape) != expected or hidden_NH.dtype != head_VH.dtype:
        raise ValueError(
            f"hidden_NH must be {expected} of {head_VH.dtype} to go with head_VH, "
            f"got {tuple(hidden_NH.shape)} {hidden_NH.dtype}"
        )
    for name, tensor in (("hidden_NH", hidden_NH), ("head_VH", head_VH)):
        if tensor.shape[1] > 1 and tensor.stride(1) != 1:
            raise ValueError(f"{name} must have contiguous rows, got strides {tensor.stride()}: call .contiguous()")
        if tensor.device != pairs.row_N.device:
            raise ValueError(f"{name} is on {tensor.device}, the pairs on {pairs.row_N.device}: put all on one device")
