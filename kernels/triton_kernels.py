"""The Triton kernels of one composition; `triton_compose.py` says which runs when, and launches them.

M distinct rows among the pairs, each with its counters and its decision; N pairs, V vocab; C chunks of a row.
"""

from __future__ import annotations

import triton
import triton.language as tl

from unlearngate.kernels.pairs import CUT
from unlearngate.kernels.triton_select import guess_bracket, kth_largest, kth_largest_in_memory

# What a row's decision is.
LEAVE: tl.constexpr = tl.constexpr(0)
COMPOSE: tl.constexpr = tl.constexpr(1)
SILENCE: tl.constexpr = tl.constexpr(2)
_CUT: tl.constexpr = tl.constexpr(CUT)
# The counters of a row, zero between calls.
_ARRIVED: tl.constexpr = tl.constexpr(0)
_CANDIDATES: tl.constexpr = tl.constexpr(1)
_ABOVE: tl.constexpr = tl.constexpr(2)


@triton.jit
def guess_kernel(
    own_ptr, row_ptr, log_ratio_ptr, rank_ptr, bracket_ptr, vocab_size, own_stride, num_pairs,
    SAMPLE: tl.constexpr,
):  # fmt: skip
    """Program m: the bracket of row m, unless its keep ratio keeps every token."""
    m = tl.program_id(0)
    row = tl.load(row_ptr + m)
    if row >= 0:
        if tl.load(log_ratio_ptr + m) > -float("inf"):
            low, high = guess_bracket(own_ptr + row * own_stride, vocab_size, tl.load(rank_ptr + m), SAMPLE)
            tl.store(bracket_ptr + m, low)
            tl.store(bracket_ptr + num_pairs + m, high)


# u_v = t_v - sum over open f of w_f s_f(v), with s_f(v) = a_fv - logsumexp(a_f) + ln V; if f only lowers, less
# (ln V) / 2 and at least 0.
# ULD, arXiv:2406.08607; the whole formula is docs/composition.md.
@triton.jit
def read_kernel(
    target_ptr, own_ptr, assistant_ptr, row_ptr, first_ptr, member_ptr, weight_ptr, gate_ptr, lowers_ptr,
    log_ratio_ptr, rank_ptr, log_tail_ptr,
    pair_parts_ptr, row_parts_ptr, bracket_ptr, candidates_ptr, counters_ptr, centring_ptr, threshold_ptr, action_ptr,
    open_ptr, evidence_ptr, bad_ptr,
    vocab_size, target_stride, own_stride, assistant_stride, num_pairs, max_chunks, num_chunks, limit,
    SAMPLED: tl.constexpr, CANDIDATES: tl.constexpr, SAMPLING: tl.constexpr, OWN: tl.constexpr, WRITE: tl.constexpr,
    CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program m C + c: the statistics of chunk c of row m; the last of a row decides, and with WRITE composes it."""
    m = tl.program_id(0) // num_chunks
    chunk = tl.program_id(0) % num_chunks
    row = tl.load(row_ptr + m)
    if row >= 0:
        first = tl.load(first_ptr + m)
        last = tl.load(first_ptr + m + 1)
        log_ratio = tl.load(log_ratio_ptr + m)
        counter_ptr = counters_ptr + m
        _read_target(
            target_ptr + row * target_stride, own_ptr + row * own_stride, row_parts_ptr + m * max_chunks,
            bracket_ptr + m, candidates_ptr + m.to(tl.int64) * CANDIDATES, counter_ptr, log_ratio, chunk, vocab_size,
            num_pairs, max_chunks, SAMPLED, CANDIDATES, OWN, BLOCK,
        )  # fmt: skip
        for i in range(first, last):
            n = tl.load(member_ptr + i).to(tl.int64)
            _read_assistant(
                assistant_ptr + n * assistant_stride, pair_parts_ptr + n * max_chunks + chunk,
                num_pairs * max_chunks, chunk, vocab_size, BLOCK,
            )  # fmt: skip
        # All threads write before one counts its program as done; the last program then reads what all wrote.
        tl.debug_barrier()
        arrived = tl.atomic_add(counter_ptr + _ARRIVED * num_pairs, 1, sem="acq_rel", scope="gpu")
        if arrived == num_chunks - 1:
            tl.debug_barrier()
            action, threshold = _decide(
                own_ptr + row * own_stride, member_ptr, weight_ptr, gate_ptr, lowers_ptr, log_ratio,
                tl.load(rank_ptr + m), pair_parts_ptr, row_parts_ptr + m * max_chunks, bracket_ptr + m,
                candidates_ptr + m.to(tl.int64) * CANDIDATES, counter_ptr, centring_ptr, open_ptr, evidence_ptr,
                bad_ptr, first, last, vocab_size, num_pairs, max_chunks, num_chunks, limit,
                SAMPLED, CANDIDATES, OWN, CHUNKS, BLOCK,
            )  # fmt: skip
            tl.debug_barrier()  # every thread has read the counters
            tl.store(action_ptr + m, action)
            tl.store(threshold_ptr + m, threshold)
            tl.store(counter_ptr + _ARRIVED * num_pairs, 0)
            tl.store(counter_ptr + _CANDIDATES * num_pairs, 0)
            tl.store(counter_ptr + _ABOVE * num_pairs, 0)
            if WRITE:
                if action != LEAVE:
                    tl.debug_barrier()
                    cut_below = -float("inf")
                    log_tail = tl.load(log_tail_ptr + m)
                    if SAMPLING:
                        if (action == COMPOSE) & (log_tail > -float("inf")):
                            best = -float("inf")
                            for c in range(0, num_chunks):
                                of_chunk = _best_of_chunk(
                                    own_ptr + row * own_stride, assistant_ptr, assistant_stride, member_ptr,
                                    centring_ptr, first, last, c, threshold, vocab_size, num_pairs, BLOCK,
                                )  # fmt: skip
                                best = tl.maximum(best, of_chunk)
                            cut_below = best + log_tail
                    for c in range(0, num_chunks):
                        _write_chunk(
                            target_ptr + row * target_stride, own_ptr + row * own_stride, assistant_ptr,
                            assistant_stride, member_ptr, centring_ptr, first, last, c, action, threshold, cut_below,
                            vocab_size, num_pairs, SAMPLING, OWN, BLOCK,
                        )  # fmt: skip


@triton.jit
def best_kernel(
    own_ptr, assistant_ptr, row_ptr, first_ptr, member_ptr, log_tail_ptr, row_parts_ptr, centring_ptr, threshold_ptr,
    action_ptr, vocab_size, own_stride, assistant_stride, num_pairs, max_chunks, num_chunks, BLOCK: tl.constexpr,
):  # fmt: skip
    """Program m C + c: the best kept u of chunk c of row m, where a tail is to be cut."""
    m = tl.program_id(0) // num_chunks
    chunk = tl.program_id(0) % num_chunks
    row = tl.load(row_ptr + m)
    if row >= 0:
        if (tl.load(action_ptr + m) == COMPOSE) & (tl.load(log_tail_ptr + m) > -float("inf")):
            best = _best_of_chunk(
                own_ptr + row * own_stride, assistant_ptr, assistant_stride, member_ptr, centring_ptr,
                tl.load(first_ptr + m), tl.load(first_ptr + m + 1), chunk, tl.load(threshold_ptr + m), vocab_size,
                num_pairs, BLOCK,
            )  # fmt: skip
            tl.store(row_parts_ptr + m * max_chunks + chunk, best)


@triton.jit
def write_kernel(
    target_ptr, own_ptr, assistant_ptr, row_ptr, first_ptr, member_ptr, log_tail_ptr, row_parts_ptr, centring_ptr,
    threshold_ptr, action_ptr, vocab_size, target_stride, own_stride, assistant_stride, num_pairs, max_chunks,
    num_chunks, SAMPLING: tl.constexpr, OWN: tl.constexpr, TAIL: tl.constexpr, CHUNKS: tl.constexpr,
    BLOCK: tl.constexpr,
):  # fmt: skip
    """Program m C + c: composes chunk c of row m, if it is to be written; with TAIL after `best_kernel`."""
    m = tl.program_id(0) // num_chunks
    row = tl.load(row_ptr + m)
    if row >= 0:
        action = tl.load(action_ptr + m)
        if action != LEAVE:
            cut_below = -float("inf")
            if TAIL:
                log_tail = tl.load(log_tail_ptr + m)
                if (action == COMPOSE) & (log_tail > -float("inf")):
                    c = tl.arange(0, CHUNKS)
                    part_ptr = row_parts_ptr + m * max_chunks + c
                    cut_below = tl.max(tl.load(part_ptr, mask=c < num_chunks, other=-float("inf")), axis=0) + log_tail
            _write_chunk(
                target_ptr + row * target_stride, own_ptr + row * own_stride, assistant_ptr, assistant_stride,
                member_ptr, centring_ptr, tl.load(first_ptr + m), tl.load(first_ptr + m + 1),
                tl.program_id(0) % num_chunks, action, tl.load(threshold_ptr + m), cut_below, vocab_size, num_pairs,
                SAMPLING, OWN, BLOCK,
            )  # fmt: skip


@triton.jit
def _read_target(
    shown_ptr, logits_ptr, part_ptr, bracket_ptr, candidates_ptr, counter_ptr, log_ratio, chunk, vocab_size, num_pairs,
    max_chunks,
    SAMPLED: tl.constexpr, CANDIDATES: tl.constexpr, OWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The chunk's largest own logit, +inf for a chunk with NaN, and largest change; collects the row's candidates."""
    at = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab_size
    t = tl.load(logits_ptr + at, mask=inside, other=-float("inf"), eviction_policy="evict_last").to(tl.float32)
    tl.store(part_ptr + chunk, tl.max(tl.where(t == t, t, float("inf")), axis=0))
    if OWN:
        shown = tl.load(shown_ptr + at, mask=inside, other=-float("inf"), eviction_policy="evict_last").to(tl.float32)
        change = tl.where(shown == -float("inf"), 0.0, shown - t)
        change = tl.max(tl.where(change == change, tl.maximum(change, 0.0), float("inf")), axis=0)
        tl.store(part_ptr + num_pairs * max_chunks + chunk, change)
    if SAMPLED:
        if log_ratio > -float("inf"):
            low = tl.load(bracket_ptr)
            high = tl.load(bracket_ptr + num_pairs)
            above = tl.sum((t > high).to(tl.int32), axis=0)
            tl.atomic_add(counter_ptr + _ABOVE * num_pairs, above, sem="relaxed")
            # -inf is never a candidate: if the k-th largest is none of the others, it is -inf.
            chosen = ((t >= low) & (t <= high) & (t > -float("inf"))).to(tl.int32)
            start = tl.atomic_add(counter_ptr + _CANDIDATES * num_pairs, tl.sum(chosen, axis=0), sem="relaxed")
            place = start + tl.cumsum(chosen, axis=0) - 1
            tl.store(candidates_ptr + place, t, mask=(chosen != 0) & (place < CANDIDATES))


@triton.jit
def _read_assistant(logits_ptr, part_ptr, part_stride, chunk, vocab_size, BLOCK: tl.constexpr):
    """With m = max(a) of the chunk: m, sum exp(a - m), sum (a - m) exp(a - m), min(a); m NaN if any a is not finite."""
    at = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab_size
    a = tl.load(logits_ptr + at, mask=inside, other=0.0, eviction_policy="evict_last").to(tl.float32)
    infinite = tl.max((tl.abs(a) < float("inf")).to(tl.int32) ^ 1, axis=0)
    largest = tl.max(tl.where(inside, a, -float("inf")), axis=0)
    shifted = tl.where(inside, a - largest, 0.0)
    weight = tl.where(inside, tl.exp(shifted), 0.0)
    tl.store(part_ptr, tl.where(infinite != 0, float("nan"), largest))
    tl.store(part_ptr + part_stride, tl.sum(weight, axis=0))
    tl.store(part_ptr + 2 * part_stride, tl.sum(weight * shifted, axis=0))
    tl.store(part_ptr + 3 * part_stride, tl.min(tl.where(inside, a, float("inf")), axis=0))


@triton.jit
def _decide(
    logits_ptr, member_ptr, weight_ptr, gate_ptr, lowers_ptr, log_ratio, rank, pair_parts_ptr, row_parts_ptr,
    bracket_ptr, candidates_ptr, counter_ptr, centring_ptr, open_ptr, evidence_ptr, bad_ptr, first, last, vocab_size,
    num_pairs, max_chunks, num_chunks, limit,
    SAMPLED: tl.constexpr, CANDIDATES: tl.constexpr, OWN: tl.constexpr, CHUNKS: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Merge the chunks of a row, say which pairs are open or bad, and what is to be done: (action, threshold)."""
    c = tl.arange(0, CHUNKS)
    used = c < num_chunks
    # Other programs wrote these: read them from the L2 cache, which all share.
    largest = tl.max(tl.load(row_parts_ptr + c, mask=used, other=-float("inf"), cache_modifier=".cg"), axis=0)
    changed = 0.0
    if OWN:
        change_ptr = row_parts_ptr + num_pairs * max_chunks + c
        changed = tl.max(tl.load(change_ptr, mask=used, other=0.0, cache_modifier=".cg"), axis=0)
    raised = 0.0
    num_open = 0
    num_bad = 0
    for i in range(first, last):
        n = tl.load(member_ptr + i).to(tl.int64)
        part_ptr = pair_parts_ptr + n * max_chunks + c
        part_stride = num_pairs * max_chunks
        m = tl.load(part_ptr, mask=used, other=-float("inf"), cache_modifier=".cg")
        total = tl.load(part_ptr + part_stride, mask=used, other=0.0, cache_modifier=".cg")
        moment = tl.load(part_ptr + 2 * part_stride, mask=used, other=0.0, cache_modifier=".cg")
        lowest = tl.load(part_ptr + 3 * part_stride, mask=used, other=float("inf"), cache_modifier=".cg")
        infinite = tl.max((m != m).to(tl.int32), axis=0)
        top = tl.max(tl.where(m == m, m, -float("inf")), axis=0)
        offset = tl.where(used, m - top, 0.0)
        scale = tl.where(used, tl.exp(offset), 0.0)
        # scale 0 with offset -inf would be NaN: a chunk that far below the row's maximum adds nothing.
        moment = tl.sum(tl.where(scale > 0.0, scale * (moment + offset * total), 0.0), axis=0)
        total = tl.sum(scale * total, axis=0)
        # ln(total / V), not ln(total) - ln(V): all-equal logits then give ln(1) = 0 exactly.
        # The division must be exact for that: a plain one is a multiplication by a rounded reciprocal.
        log_mean = tl.log(tl.div_rn(total, tl.cast(vocab_size, tl.float32)))
        evidence = moment / total - log_mean
        lowest_shifted = tl.min(lowest, axis=0) - top
        bad = (infinite != 0) | ((tl.abs(evidence) < float("inf")) == 0) | (lowest_shifted == -float("inf"))
        evidence = tl.where(bad, 0.0, evidence)
        weight = tl.load(weight_ptr + n)
        gate = tl.load(gate_ptr + n)
        is_open = (weight > 0.0) & ((gate <= 0.0) | (evidence >= gate)) & (bad == 0)
        lowers = tl.load(lowers_ptr + n) != 0
        raises = is_open & (lowers == 0)
        raised += tl.where(raises, tl.maximum(0.0, -weight * (lowest_shifted - log_mean)), 0.0)
        num_open += is_open.to(tl.int32)
        num_bad += bad.to(tl.int32)
        tl.store(centring_ptr + n, top)
        half = tl.log(tl.cast(vocab_size, tl.float32)) / 2
        tl.store(centring_ptr + num_pairs + n, tl.where(lowers, log_mean + half, log_mean))
        tl.store(centring_ptr + 2 * num_pairs + n, tl.where(is_open, weight, 0.0))
        tl.store(centring_ptr + 3 * num_pairs + n, tl.where(lowers, 0.0, -float("inf")))
        tl.store(open_ptr + n, is_open)
        tl.store(evidence_ptr + n, evidence)
        tl.store(bad_ptr + n, bad)
    overflow = (num_open > 0) & ((largest + raised + changed <= limit) == 0)
    if (largest == float("inf")) | (changed == float("inf")) | overflow:
        num_bad += 1
        for i in range(first, last):
            n = tl.load(member_ptr + i).to(tl.int64)
            tl.store(open_ptr + n, False)
            tl.store(bad_ptr + n, True)
    action = tl.where(num_bad > 0, SILENCE, tl.where(num_open > 0, COMPOSE, LEAVE))
    threshold = -float("inf")
    if (action == COMPOSE) & (log_ratio > -float("inf")):
        kth = _kth_largest(
            logits_ptr, bracket_ptr, candidates_ptr, counter_ptr, rank, vocab_size, num_pairs, SAMPLED, CANDIDATES,
            BLOCK,
        )  # fmt: skip
        threshold = tl.minimum(largest + log_ratio, kth)
    return action, threshold


@triton.jit
def _kth_largest(
    logits_ptr, bracket_ptr, candidates_ptr, counter_ptr, rank, vocab_size, num_pairs,
    SAMPLED: tl.constexpr, CANDIDATES: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """The exact k-th largest, whether the guess was right or not."""
    at = tl.arange(0, CANDIDATES)
    if SAMPLED:
        low = tl.load(bracket_ptr)
        high = tl.load(bracket_ptr + num_pairs)
        num = tl.load(counter_ptr + _CANDIDATES * num_pairs, cache_modifier=".cg")
        above = tl.load(counter_ptr + _ABOVE * num_pairs, cache_modifier=".cg")
        inside = (above < rank) & (rank <= above + num)
        kth = -float("inf")
        if inside & (low == high):
            kth = low
        elif inside & (num <= CANDIDATES):
            x = tl.load(candidates_ptr + at, mask=at < num, other=-float("inf"), cache_modifier=".cg")
            kth = kth_largest(x, at < num, rank - above)
        elif inside | (above >= rank) | (low > -float("inf")):
            # The guess was wrong, or too many logits are alike: rare, and slow.
            kth = kth_largest_in_memory(logits_ptr, vocab_size, rank, BLOCK)
    else:
        x = tl.load(logits_ptr + at, mask=at < vocab_size, other=-float("inf")).to(tl.float32)
        kth = kth_largest(x, at < vocab_size, rank)
    return kth


@triton.jit
def _take(
    own_ptr, assistant_ptr, assistant_stride, member_ptr, centring_ptr, first, last, at, inside, num_pairs,
    EVICTION: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """(t, u) of a chunk of an open row: the target's own logits, and what the open pairs leave of them."""
    t = tl.load(own_ptr + at, mask=inside, other=-float("inf"), eviction_policy=EVICTION).to(tl.float32)
    taken = tl.zeros((BLOCK,), tl.float32)
    for i in range(first, last):
        n = tl.load(member_ptr + i).to(tl.int64)
        weight = tl.load(centring_ptr + 2 * num_pairs + n)
        if weight > 0.0:
            a_ptr = assistant_ptr + n * assistant_stride + at
            a = tl.load(a_ptr, mask=inside, other=0.0, eviction_policy=EVICTION).to(tl.float32)
            centred = (a - tl.load(centring_ptr + n)) - tl.load(centring_ptr + num_pairs + n)
            taken += weight * tl.maximum(centred, tl.load(centring_ptr + 3 * num_pairs + n))
    return t, t - taken


@triton.jit
def _best_of_chunk(
    own_ptr, assistant_ptr, assistant_stride, member_ptr, centring_ptr, first, last, chunk, threshold, vocab_size,
    num_pairs, BLOCK: tl.constexpr,
):  # fmt: skip
    """The largest u of a chunk among the tokens that the keep rule keeps, or -inf."""
    at = chunk * BLOCK + tl.arange(0, BLOCK)
    t, u = _take(
        own_ptr, assistant_ptr, assistant_stride, member_ptr, centring_ptr, first, last, at, at < vocab_size, num_pairs,
        "evict_last", BLOCK,
    )  # fmt: skip
    return tl.max(tl.where(t >= threshold, u, -float("inf")), axis=0)


@triton.jit
def _write_chunk(
    target_ptr, own_ptr, assistant_ptr, assistant_stride, member_ptr, centring_ptr, first, last, chunk, action,
    threshold, cut_below, vocab_size, num_pairs, SAMPLING: tl.constexpr, OWN: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """Compose a chunk in place."""
    at = chunk * BLOCK + tl.arange(0, BLOCK)
    inside = at < vocab_size
    z = tl.full((BLOCK,), -float("inf"), tl.float32)
    if action == COMPOSE:
        t, u = _take(
            own_ptr, assistant_ptr, assistant_stride, member_ptr, centring_ptr, first, last, at, inside, num_pairs,
            "evict_first", BLOCK,
        )  # fmt: skip
        if SAMPLING:
            z = tl.where((t >= threshold) & (u >= cut_below), u, _CUT)
            shown = t
            if OWN:
                shown = tl.load(target_ptr + at, mask=inside, other=0.0, eviction_policy="evict_first").to(tl.float32)
                z += shown - t
            z = tl.where(shown > -float("inf"), z, -float("inf"))
        else:
            z = tl.where(t >= threshold, u, t)
    tl.store(target_ptr + at, z.to(target_ptr.dtype.element_ty), mask=inside)
