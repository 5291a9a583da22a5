"""`compose` in Triton. A batch is one to two launches (larger than the L2 cache) or two to four (more programs a row).

1. `guess_kernel`, a program per row, if a row has a keep ratio: from a sample, a bracket in which the k-th largest
   logit should lie.
2. `read_kernel`, a program per chunk of a row: statistics of the target's and the assistants' logits, and the logits
   in the bracket. The last program of a row to finish merges them and decides: centring, evidence, gates,
   the exact threshold. In a large batch it also composes its row, which the other programs have just brought into the
   L2 cache: a row whose tail is cut in two passes. No program ever waits for another.
3. `best_kernel`, a program per chunk, in a small batch if a row has a tail ratio: the best kept token of the chunk.
4. `write_kernel`, a program per chunk, in a small batch: composes.

Shape legend: R target rows, N (row, forget set) pairs, M distinct rows among the pairs, V vocab, C chunks of a row.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
import triton
from torch import Tensor

from unlearngate.kernels.pairs import Composition, Mode, Pairs
from unlearngate.kernels.scratch import SMALLEST_BLOCK, Scratch, max_candidates, sample_size
from unlearngate.kernels.triton_kernels import best_kernel, guess_kernel, read_kernel, write_kernel

_LARGE_BLOCK = 4096
# Fused multiply-adds round the two operands of a butterfly sum differently: the threads of a program would not agree on
# the sum, and would diverge at a gate exactly as high as the evidence.
OPTIONS = {"enable_fp_fusion": False}


class Launch(NamedTuple):
    """How a batch is split: BLOCK tokens a program, and whether the last program of a row composes it."""

    block: int
    write_at_once: bool


def compose_triton(
    target_RV: Tensor,
    assistant_NV: Tensor,
    pairs: Pairs,
    *,
    mode: Mode = "sampling",
    own_RV: Tensor | None = None,
    scratch: Scratch | None = None,
    launch: Launch | None = None,
) -> Composition:
    """`compose` by the kernels of this module; `launch` overrides the split."""
    num_members, vocab_size = pairs.row_M.shape[0], pairs.vocab_size
    if scratch is None:
        scratch = Scratch(pairs.row_N.shape[0], vocab_size, target_RV.device)
    launch = launch or choose_launch(num_members, vocab_size, target_RV.element_size(), _l2_bytes(target_RV.device))
    result = _read_rows(target_RV, assistant_NV, pairs, mode, own_RV, scratch, launch)
    if not launch.write_at_once and pairs.row_N.shape[0] and vocab_size:
        _write_rows(target_RV, assistant_NV, pairs, mode, own_RV, scratch, launch)
    return result


def _read_rows(
    target_RV: Tensor,
    assistant_NV: Tensor,
    pairs: Pairs,
    mode: Mode,
    own_RV: Tensor | None,
    scratch: Scratch,
    launch: Launch,
) -> Composition:
    """Steps 1 and 2: everything is decided, and what `launch` writes at once is written."""
    num_pairs, num_members, vocab_size = pairs.row_N.shape[0], pairs.row_M.shape[0], pairs.vocab_size
    result = scratch.result(num_pairs, vocab_size)
    if pairs.padded:
        for tensor in result:
            tensor.zero_()
    if num_pairs == 0 or vocab_size == 0:
        return result
    num_chunks = triton.cdiv(vocab_size, launch.block)
    num_warps = num_warps_for(vocab_size)
    sampled = vocab_size > max_candidates(vocab_size)
    decided_RV = target_RV if own_RV is None else own_RV
    with torch.cuda.device_of(target_RV):
        if sampled and pairs.ranks:
            guess_kernel[(num_members,)](
                decided_RV,
                pairs.row_M,
                pairs.log_ratio_M,
                pairs.rank_M,
                scratch.bracket,
                vocab_size,
                decided_RV.stride(0),
                scratch.num_pairs,
                SAMPLE=sample_size(vocab_size),
                num_warps=num_warps,
                **OPTIONS,
            )
        read_kernel[(num_chunks * num_members,)](
            target_RV,
            decided_RV,
            assistant_NV,
            pairs.row_M,
            pairs.first_M,
            pairs.member_N,
            pairs.weight_N,
            pairs.gate_nats_N,
            pairs.lowers_N,
            pairs.log_ratio_M,
            pairs.rank_M,
            pairs.log_tail_M,
            scratch.pair_parts,
            scratch.row_parts,
            scratch.bracket,
            scratch.candidates,
            scratch.counters,
            scratch.centring,
            scratch.threshold,
            scratch.action,
            *result,
            vocab_size,
            target_RV.stride(0),
            decided_RV.stride(0),
            assistant_NV.stride(0),
            scratch.num_pairs,
            scratch.max_chunks,
            num_chunks,
            torch.finfo(target_RV.dtype).max,
            SAMPLED=sampled,
            CANDIDATES=max_candidates(vocab_size) if sampled else triton.next_power_of_2(vocab_size),
            SAMPLING=mode == "sampling",
            OWN=own_RV is not None,
            WRITE=launch.write_at_once,
            CHUNKS=triton.next_power_of_2(num_chunks),
            BLOCK=launch.block,
            num_warps=num_warps,
            **OPTIONS,
        )
    return result


def _write_rows(
    target_RV: Tensor,
    assistant_NV: Tensor,
    pairs: Pairs,
    mode: Mode,
    own_RV: Tensor | None,
    scratch: Scratch,
    launch: Launch,
) -> None:
    """Steps 3 and 4: compose what was decided."""
    num_chunks = triton.cdiv(pairs.vocab_size, launch.block)
    grid = (num_chunks * pairs.row_M.shape[0],)
    decided_RV = target_RV if own_RV is None else own_RV
    cuts_tails = pairs.cuts_tails and mode == "sampling"
    decisions = (
        pairs.row_M,
        pairs.first_M,
        pairs.member_N,
        pairs.log_tail_M,
        scratch.row_parts,
        scratch.centring,
        scratch.threshold,
        scratch.action,
        pairs.vocab_size,
    )
    rest = (decided_RV.stride(0), assistant_NV.stride(0), scratch.num_pairs, scratch.max_chunks, num_chunks)
    options = {"BLOCK": launch.block, "num_warps": num_warps_for(pairs.vocab_size), **OPTIONS}
    with torch.cuda.device_of(target_RV):
        if cuts_tails:
            best_kernel[grid](decided_RV, assistant_NV, *decisions, *rest, **options)
        write_kernel[grid](
            target_RV,
            decided_RV,
            assistant_NV,
            *decisions,
            target_RV.stride(0),
            *rest,
            SAMPLING=mode == "sampling",
            OWN=own_RV is not None,
            TAIL=cuts_tails,
            CHUNKS=triton.next_power_of_2(num_chunks),
            **options,
        )


def choose_launch(num_members: int, vocab_size: int, element_size: int, l2_bytes: int) -> Launch:
    """A batch whose logits fit in half of the L2 cache is written by a launch of its own, from the cache."""
    if num_members * vocab_size * 2 * element_size <= l2_bytes // 2:
        return Launch(SMALLEST_BLOCK, write_at_once=False)
    return Launch(_LARGE_BLOCK, write_at_once=True)


def num_warps_for(vocab_size: int) -> int:
    """As many warps as leave registers for 512 threads on a multiprocessor: candidates take most registers."""
    return 8 if max_candidates(vocab_size) <= 8192 else 16


@functools.cache
def _l2_bytes(device: torch.device) -> int:
    return torch.cuda.get_device_properties(device).L2_cache_size if device.type == "cuda" else 0
