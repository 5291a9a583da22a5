"""Compose the served logits from a target's and its assistants' logits: the one entry to the kernels.

The formula is docs/composition.md; `reference.py` defines it, `numba_compose.py` and `triton_compose.py` run it.

Shape legend: R target rows, N (row, forget set) pairs, V vocab.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from unlearngate.kernels.pairs import MODES, Composition, Mode, Pairs

if TYPE_CHECKING:
    from unlearngate.kernels.scratch import Scratch

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
MAX_VOCAB_SIZE = 262_144


def compose(
    target_RV: Tensor,
    assistant_NV: Tensor,
    pairs: Pairs,
    *,
    mode: Mode = "sampling",
    own_RV: Tensor | None = None,
    scratch: Scratch | None = None,
) -> Composition:
    """Subtract each pair's centred assistant logits from its target row, in place.

    A row that no pair names, and a row with all gates closed, keeps its bits and is not written. A row with a bad pair
    is filled with -inf: the caller must count it and must not sample from it. On a GPU nothing waits for the device;
    with `scratch` nothing is allocated either, and all addresses stay: a CUDA graph can capture the call after one call
    outside it with the same shapes, which compiles the kernels.

    Args:
        target_RV: (R, V) fp32/bf16/fp16 logits, the rows contiguous, written in place; -inf marks tokens that are not
            allowed. If they have been changed since the model made them (a client's logit_bias, allowed tokens, a
            grammar), `own_RV` says what they were.
        assistant_NV: (N, V) fp32/bf16/fp16 assistant logits, one contiguous row per pair.
        pairs: which set is in force in which row, how strongly.
        mode: "sampling" writes CUT where a token is not kept; "scoring" leaves the target's logit there, cuts no tail.
        own_RV: (R, V) fp32/bf16/fp16 logits as the model made them, the rows contiguous, only read: what is kept is
            decided on these, and what was added since is added to the composed logits. None: target_RV itself, as in
            "scoring" mode always.
        scratch: memory for the kernels' intermediate results and for what is returned, which is then valid until the
            next call with it.

    Returns: which pairs were open, their evidence, and which were bad.
    Raises: ValueError if shapes, dtypes or devices disagree, or own_RV is given for scoring.
    Source: ULD, arXiv:2406.08607: logit subtraction and relative-top filter. The gate, the centring, the rule that only
        lowers and its tail cut are ours.
    """
    _check_target(target_RV, pairs, mode)
    _check_logits("assistant_NV", assistant_NV, pairs, pairs.row_N.shape[0])
    if own_RV is not None:
        if mode != "sampling":
            raise ValueError(f"own_RV goes with mode 'sampling', got {mode!r}: what is scored was changed by nobody")
        _check_logits("own_RV", own_RV, pairs, pairs.num_rows)
    if runs_triton(target_RV.device):
        from unlearngate.kernels.triton_compose import compose_triton

        return compose_triton(target_RV, assistant_NV, pairs, mode=mode, own_RV=own_RV, scratch=scratch)
    # Imported late: vLLM 0.32 cannot start a CPU worker in a process that has imported numba.
    from unlearngate.kernels.numba_compose import compose_cpu

    if not pairs.padded:
        return compose_cpu(target_RV, assistant_NV, pairs, mode=mode, own_RV=own_RV)
    used = pairs.without_padding()
    num_pairs = used.row_N.shape[0]
    done = compose_cpu(target_RV, assistant_NV[:num_pairs], used, mode=mode, own_RV=own_RV)
    return Composition(*(torch.nn.functional.pad(x, (0, len(pairs.row_N) - num_pairs)) for x in done))


def runs_triton(device: torch.device) -> bool:
    """The one place where the implementation is chosen: Triton on a GPU, numba on a CPU.

    TRITON_INTERPRET=1 runs the Triton kernels on a CPU too, in Triton's interpreter: correct, but very slow.

    Raises: ValueError for a device that has neither.
    """
    if device.type == "cuda" or os.environ.get("TRITON_INTERPRET") == "1":
        return True
    if device.type == "cpu":
        return False
    raise ValueError(f"compose runs on cuda and cpu, got logits on {device.type}: move them to one of these")


def _check_target(target_RV: Tensor, pairs: Pairs, mode: str) -> None:
    """Raises: ValueError if the target's logits do not go with the pairs, or the mode is unknown."""
    if mode not in MODES:
        raise ValueError(f"mode must be 'sampling' or 'scoring', got {mode!r}")
    _check_logits("target_RV", target_RV, pairs, pairs.num_rows)
    if pairs.vocab_size > MAX_VOCAB_SIZE:
        raise ValueError(f"the vocab may have at most {MAX_VOCAB_SIZE} tokens, got {pairs.vocab_size}")


def _check_logits(name: str, logits: Tensor, pairs: Pairs, num_rows: int) -> None:
    shape = (num_rows, pairs.vocab_size)
    if logits.shape != shape or logits.dtype not in _DTYPES:
        raise ValueError(
            f"{name} must be {shape} of fp32, bf16 or fp16 to go with the pairs, "
            f"got {tuple(logits.shape)} {logits.dtype}"
        )
    if logits.shape[1] > 1 and logits.stride(1) != 1:
        raise ValueError(f"{name} must have contiguous rows, got strides {logits.stride()}: call .contiguous()")
    if logits.device != pairs.row_N.device:
        raise ValueError(f"{name} is on {logits.device}, the pairs on {pairs.row_N.device}: put all on one device")
