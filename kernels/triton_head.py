"""Kernels that compute the assistants' logits from their hidden rows, a tile at a time, and never store them.

a = hidden . head^T is computed twice: once for its statistics, once to be subtracted. N pairs, H hidden size, V vocab;
M distinct rows among the pairs.
"""

from __future__ import annotations

import triton
import triton.language as tl

from unlearngate.kernels.triton_kernels import COMPOSE, LEAVE


@triton.jit
def head_read_kernel(
    hidden_ptr, head_ptr, pair_parts_ptr, num_used, hidden_size, vocab_size, hidden_stride, head_stride, num_pairs,
    max_chunks, CHUNK: tl.constexpr, PAIRS: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """The statistics of CHUNK tokens of PAIRS assistants, where `read_kernel` would put them."""
    num_tiles = tl.cdiv(num_used, PAIRS)
    chunk = tl.program_id(0) // num_tiles
    n = (tl.program_id(0) % num_tiles) * PAIRS + tl.arange(0, PAIRS)
    largest = tl.full((PAIRS,), -float("inf"), tl.float32)
    lowest = tl.full((PAIRS,), float("inf"), tl.float32)
    total = tl.zeros((PAIRS,), tl.float32)
    moment = tl.zeros((PAIRS,), tl.float32)
    infinite = tl.zeros((PAIRS,), tl.int32)
    for start in range(chunk * CHUNK, tl.minimum((chunk + 1) * CHUNK, vocab_size), TOKENS):
        at = start + tl.arange(0, TOKENS)
        a = _logits(
            hidden_ptr, head_ptr, n, n < num_used, at, hidden_size, vocab_size, hidden_stride, head_stride,
            PAIRS, TOKENS, DEPTH, PRECISION,
        )  # fmt: skip
        inside = (at < vocab_size)[None, :]
        infinite = tl.maximum(infinite, tl.max((inside & ((tl.abs(a) < float("inf")) == 0)).to(tl.int32), axis=1))
        lowest = tl.minimum(lowest, tl.min(tl.where(inside, a, float("inf")), axis=1))
        top = tl.maximum(largest, tl.max(tl.where(inside, a, -float("inf")), axis=1))
        shifted = tl.where(inside, a - top[:, None], 0.0)
        weight = tl.where(inside, tl.exp(shifted), 0.0)
        offset = tl.where(largest == -float("inf"), 0.0, largest - top)
        scale = tl.exp(offset)
        moment = scale * (moment + offset * total) + tl.sum(weight * shifted, axis=1)
        total = scale * total + tl.sum(weight, axis=1)
        largest = top
    part_ptr = pair_parts_ptr + n * max_chunks + chunk
    part_stride = num_pairs * max_chunks
    tl.store(part_ptr, tl.where(infinite != 0, float("nan"), largest), mask=n < num_used)
    tl.store(part_ptr + part_stride, total, mask=n < num_used)
    tl.store(part_ptr + 2 * part_stride, moment, mask=n < num_used)
    tl.store(part_ptr + 3 * part_stride, lowest, mask=n < num_used)


@triton.jit
def head_write_kernel(
    target_ptr, hidden_ptr, head_ptr, row_ptr, first_ptr, member_ptr, centring_ptr, threshold_ptr, action_ptr,
    num_members, hidden_size, vocab_size, target_stride, hidden_stride, head_stride, num_pairs,
    SAMPLING: tl.constexpr, ROWS: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """Composes TOKENS tokens of ROWS rows in place."""
    num_tiles = tl.cdiv(num_members, ROWS)
    at = (tl.program_id(0) // num_tiles) * TOKENS + tl.arange(0, TOKENS)
    m = (tl.program_id(0) % num_tiles) * ROWS + tl.arange(0, ROWS)
    row = tl.load(row_ptr + m, mask=m < num_members, other=-1)
    action = tl.load(action_ptr + m, mask=row >= 0, other=LEAVE)
    first = tl.load(first_ptr + m, mask=row >= 0, other=0)
    last = tl.load(first_ptr + m + 1, mask=row >= 0, other=0)
    most = tl.max(tl.where(action == COMPOSE, last - first, 0), axis=0)
    taken = tl.zeros((ROWS, TOKENS), tl.float32)
    for i in range(0, most):
        used = (first + i < last) & (action == COMPOSE)
        n = tl.load(member_ptr + first + i, mask=used, other=0).to(tl.int64)
        weight = tl.load(centring_ptr + 2 * num_pairs + n, mask=used, other=0.0)
        top = tl.load(centring_ptr + n, mask=used, other=0.0)
        log_mean = tl.load(centring_ptr + num_pairs + n, mask=used, other=0.0)
        a = _logits(
            hidden_ptr, head_ptr, n, weight > 0.0, at, hidden_size, vocab_size, hidden_stride, head_stride,
            ROWS, TOKENS, DEPTH, PRECISION,
        )  # fmt: skip
        # A closed pair's statistics may be anything: its hidden row was not read, and must not count.
        taken += tl.where((weight > 0.0)[:, None], weight[:, None] * ((a - top[:, None]) - log_mean[:, None]), 0.0)
    t_ptr = target_ptr + row.to(tl.int64)[:, None] * target_stride + at[None, :]
    inside = (at < vocab_size)[None, :]
    composes = (action == COMPOSE)[:, None]
    t = tl.load(t_ptr, mask=inside & composes, other=0.0).to(tl.float32)
    threshold = tl.load(threshold_ptr + m, mask=row >= 0, other=0.0)
    dropped = tl.full((ROWS, TOKENS), -float("inf"), tl.float32) if SAMPLING else t
    z = tl.where(t >= threshold[:, None], t - taken, dropped)
    z = tl.where(composes, z, -float("inf"))
    tl.store(t_ptr, z.to(target_ptr.dtype.element_ty), mask=inside & (action != LEAVE)[:, None])


@triton.jit
def _logits(
    hidden_ptr, head_ptr, n, used, at, hidden_size, vocab_size, hidden_stride, head_stride,
    PAIRS: tl.constexpr, TOKENS: tl.constexpr, DEPTH: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """(PAIRS, TOKENS) fp32: hidden rows n times the head's rows `at`."""
    depth = tl.arange(0, DEPTH)
    hidden_ptrs = hidden_ptr + n.to(tl.int64)[:, None] * hidden_stride + depth[None, :]
    head_ptrs = head_ptr + at.to(tl.int64)[None, :] * head_stride + depth[:, None]
    a = tl.zeros((PAIRS, TOKENS), tl.float32)
    for start in range(0, hidden_size, DEPTH):
        left = start + depth < hidden_size
        h = tl.load(hidden_ptrs + start, mask=used[:, None] & left[None, :], other=0.0)
        w = tl.load(head_ptrs + start, mask=(at < vocab_size)[None, :] & left[:, None], other=0.0)
        a = tl.dot(h, w, acc=a, input_precision=PRECISION)
    return a
