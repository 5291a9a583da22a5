"""The CPU kernels: a row is read, decided and written while it is in the cache, in a few passes that LLVM vectorises.

Of fast-math only a product and a sum in one rounding: sums are kept in LANES partial sums, which need no reordering. A
partial sum in fp32 covers at most _SPAN numbers; partial sums are added in fp64.

Shape legend: V vocab; a row is V contiguous fp32 logits of an array that holds all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from unlearngate.kernels.pairs import CUT

LANES = 256
_BLOCK = 4  # logits of a block, LANES apart, of which the largest is kept in view
_TILE = _BLOCK * LANES
_SPAN = 32
_FEW = 16  # partial ones that are brought together one by one

_F = np.float32
_NONE, _MOST = _F(-np.inf), _F(np.inf)
_LOG2_E = _F(1 / math.log(2))
_ROUND = _F(1.5 * 2**23)  # adding it rounds to an integer, held in the lowest bits; subtracting it gives that integer
_LN2_HIGH = _F(0.693359375)  # ln 2 in two parts; 9 bits here, so that a product with an integer is exact
_LN2_LOW = _F(math.log(2) - 0.693359375)
_LOWEST = _F(-87.0)  # below it exp is 0: negligible next to the 1 of the largest logit
_ZERO, _ONE = _F(0), _F(1)
_CUT = _F(CUT)
# What an open pair takes: where its assistant's row begins, and the numbers that centre, weigh and bound it from below
# (0 for a set that only lowers).
_OPEN = np.dtype([("start", "i8"), ("largest", "f4"), ("log_mean", "f4"), ("weight", "f4"), ("least", "f4")])
_C2, _C3, _C4, _C5, _C6 = (_F(1 / math.factorial(k)) for k in range(2, 7))


def compiled(**options: Any) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Compile at the first call, and cache if a folder is writable; the function runs without the GIL."""

    def decorate(function: Callable[..., Any]) -> Callable[..., Any]:
        try:
            return njit(nogil=True, cache=True, **options)(function)
        except RuntimeError:  # numba finds no such folder
            return njit(nogil=True, **options)(function)

    return decorate


@njit(inline="always")
def _exp(x: Any) -> Any:
    """exp(x), -87 <= x <= 0, to 2e-7 of itself: 2^n times a Taylor polynomial for what is left, at most ln(2) / 2."""
    rounded = x * _LOG2_E + _ROUND
    n = rounded - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    power = (((((_C6 * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + _ONE) * r + _ONE
    bits = np.int32((np.float32(rounded).view(np.int32) + np.int32(127)) << np.int32(23))
    return power * bits.view(np.float32)


@compiled()
def _extremes(row_V: Any) -> Any:
    """The largest and the smallest; a NaN is neither."""
    largest_L, smallest_L = np.full(LANES, _NONE), np.full(LANES, _MOST)
    for start in range(0, len(row_V), LANES):
        part = row_V[start : start + LANES]
        for lane in range(len(part)):
            x = part[lane]
            largest_L[lane] = x if x > largest_L[lane] else largest_L[lane]
            smallest_L[lane] = x if x < smallest_L[lane] else smallest_L[lane]
    width = LANES
    while width > _FEW:
        width //= 2
        for lane in range(width):
            x, y = largest_L[lane + width], smallest_L[lane + width]
            largest_L[lane] = x if x > largest_L[lane] else largest_L[lane]
            smallest_L[lane] = y if y < smallest_L[lane] else smallest_L[lane]
    return largest_L[:_FEW].max(), smallest_L[:_FEW].min()


@compiled(fastmath={"contract"})
def _moments(row_V: Any, largest: Any) -> Any:
    """The sums of exp(a - largest) and of exp(a - largest) (a - largest); NaN if any is."""
    total, product = 0.0, 0.0
    total_L, product_L = np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for first in range(0, len(row_V), LANES * _SPAN):
        span = row_V[first : first + LANES * _SPAN]
        total_L[:] = _ZERO
        product_L[:] = _ZERO
        for start in range(0, len(span), LANES):
            part = span[start : start + LANES]
            for lane in range(len(part)):
                shifted = part[lane] - largest
                shifted = _LOWEST if shifted < _LOWEST else shifted  # a NaN stays
                e = _exp(shifted)
                total_L[lane] += e
                product_L[lane] += e * shifted
        width = LANES
        while width > _FEW:
            width //= 2
            for lane in range(width):
                total_L[lane] += total_L[lane + width]
                product_L[lane] += product_L[lane + width]
        for lane in range(_FEW):
            total += total_L[lane]
            product += product_L[lane]
    return total, product


@compiled()
def _read(row_V: Any) -> Any:
    """An assistant's evidence, ln mean exp(a - max(a)), max(a) and min(a); the evidence is NaN if one is not finite.

    Span by span, each while it is in the first cache, and relative to the largest so far.
    """
    total, product, highest, lowest = 0.0, 0.0, row_V[0], row_V[0]
    for first in range(0, len(row_V), LANES * _SPAN):
        span = row_V[first : first + LANES * _SPAN]
        high, low = _extremes(span)
        if not (high < _MOST and low > _NONE):
            return math.nan, math.nan, high, low
        lowest = min(lowest, low)
        if high > highest:
            further = float(highest) - high
            factor = math.exp(further)
            product = (product + total * further) * factor
            total *= factor
            highest = high
        more, of_product = _moments(span, high)
        further = float(high) - highest
        factor = math.exp(further)
        total += more * factor
        product += (of_product + more * further) * factor
    if not highest - lowest < _MOST:
        return math.nan, math.nan, highest, lowest
    # ln(total / V), not ln(total) - ln(V): all-equal logits then give ln(1) = 0 exactly.
    log_mean = math.log(total / len(row_V))
    # As fp32, which is what is returned and what a gate may have been set to.
    return float(np.float32(product / total - log_mean)), log_mean, highest, lowest


@compiled()
def _take(
    own_V: Any, assistant: Any, pair_P: Any, threshold: Any, scores: bool, finds_best: bool, composed_V: Any
) -> Any:
    """Into `composed_V`, which may be `own_V`: what is kept, less what open pairs take. Finds the largest, if asked."""
    taken_L, lowered_L, best_L = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.full(LANES, _NONE)
    for begin in range(0, len(own_V), LANES):
        own = own_V[begin : begin + LANES]
        taken_L[:] = _ZERO
        for pair in pair_P:
            high, mean, weight, least = pair.largest, pair.log_mean, pair.weight, pair.least
            of_assistant = assistant[pair.start + begin : pair.start + begin + len(own)]
            for lane in range(len(own)):
                centred = (of_assistant[lane] - high) - mean
                taken_L[lane] += (centred if centred > least else least) * weight
        for lane in range(len(own)):
            x = own[lane]
            below = x if scores or x == _NONE else _CUT
            lowered_L[lane] = x - taken_L[lane] if x >= threshold else below
        if finds_best:
            for lane in range(len(own)):
                x = lowered_L[lane] if own[lane] >= threshold else _NONE
                best_L[lane] = x if x > best_L[lane] else best_L[lane]
        composed = composed_V[begin : begin + LANES]
        for lane in range(len(own)):  # LLVM does not vectorise a loop that writes what it may have to read
            composed[lane] = lowered_L[lane]
    return best_L.max()


@compiled()
def _largest_change(shown_V: Any, own_V: Any) -> Any:
    """The most that was added to an own logit whose token is still allowed, at least 0; +inf if a sum is not finite."""
    largest_L = np.zeros(LANES, np.float32)
    for start in range(0, len(shown_V), LANES):
        shown, own = shown_V[start : start + LANES], own_V[start : start + LANES]
        for lane in range(len(shown)):
            change = shown[lane] - own[lane] if shown[lane] != _NONE else _ZERO
            change = change if change == change else _MOST
            largest_L[lane] = change if change > largest_L[lane] else largest_L[lane]
    return largest_L.max()


@compiled()
def _cut_tail(row_V: Any, threshold: Any) -> None:
    """Cut what is below the threshold; what is not allowed stays so."""
    for i in range(len(row_V)):
        x = row_V[i]
        row_V[i] = _CUT if x < threshold and x > _NONE else x


@compiled()
def _add_changes(shown_V: Any, own_V: Any, composed_V: Any) -> None:
    """Into `shown_V`: the composed logits, with what was added to the target's own; what is not allowed stays so."""
    for i in range(len(shown_V)):
        shown = shown_V[i]
        shown_V[i] = composed_V[i] + (shown - own_V[i]) if shown > _NONE else _NONE


@compiled()
def _block_maxima(row_V: Any, largest_B: Any) -> bool:
    """Into `largest_B`, -inf before: the largest of each block, which is not a NaN. Whether there is a NaN."""
    nan_L = np.zeros(LANES, np.int32)
    for tile in range(0, len(row_V), _TILE):
        top_L = largest_B[tile // _BLOCK : tile // _BLOCK + LANES]
        for start in range(tile, min(tile + _TILE, len(row_V)), LANES):
            part = row_V[start : start + LANES]
            for lane in range(len(part)):
                x = part[lane]
                top_L[lane] = x if x > top_L[lane] else top_L[lane]
                nan_L[lane] |= np.int32(x != x)
    return nan_L.max() != 0


@compiled()
def _keep_threshold(row_V: Any, largest_B: Any, ratio_threshold: Any, rank: int) -> Any:
    """A threshold that keeps what min(ratio_threshold, the rank-th largest) of a row without NaN keeps, rank from 1.

    The rank-th largest of the blocks' maxima, which `_block_maxima` found, is at most that of the row, and few logits
    lie between the two: those are all that is searched. If there are few blocks, the row is.
    """
    pool = largest_B if 2 * rank <= len(largest_B) else row_V
    if _count(pool, ratio_threshold) >= rank:
        return ratio_threshold
    low = _threshold_of_rank(pool, rank, rank // 4, _NONE)
    chosen_B, num_chosen = np.empty(len(largest_B), np.int32), 0
    for block in range(len(largest_B)):
        chosen_B[num_chosen] = block
        num_chosen += largest_B[block] >= low
    candidate_C, num_candidates = np.empty(len(row_V), np.float32), 0
    for block in chosen_B[:num_chosen]:
        tile = block // LANES * _TILE
        for i in range(tile + block % LANES, min(tile + _TILE, len(row_V)), LANES):
            candidate_C[num_candidates] = row_V[i]
            num_candidates += row_V[i] >= low
    return min(ratio_threshold, _threshold_of_rank(candidate_C[:num_candidates], rank, 0, low))


@compiled()
def _threshold_of_rank(x: Any, rank: int, slack: int, least: Any) -> Any:
    """A number, from `least` on, that `rank` of `x` reach, and at most rank + slack unless more are alike."""
    low, high = _order(least), _order(_MOST) + 1
    while high - low > 1:
        middle = (low + high) // 2
        count = _count(x, _number(middle))
        if count < rank:
            high = middle
        else:
            low = middle
            if count <= rank + slack:
                break
    return _number(low)


@compiled()
def _count(x: Any, threshold: Any) -> int:
    """How many are at least the threshold."""
    count_L = np.zeros(LANES, np.int32)
    for start in range(0, len(x), LANES):
        part = x[start : start + LANES]
        for lane in range(len(part)):
            count_L[lane] += np.int32(part[lane] >= threshold)
    return count_L.sum()


@njit(inline="always")
def _order(x: Any) -> Any:
    """An integer in [0, 2^32) that sorts as x does."""
    bits = np.int64(_F(x).view(np.int32))
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)) + 2**31


@njit(inline="always")
def _number(order: Any) -> Any:
    """The opposite of `_order`."""
    bits = order - 2**31
    return np.int32(bits ^ (bits >> 31 & 0x7FFFFFFF)).view(np.float32)


@compiled()
def compose_rows(
    target: Any,
    target_stride: int,
    own: Any,
    own_stride: int,
    assistant: Any,
    assistant_stride: int,
    vocab_size: int,
    finite_max: float,
    scores: bool,
    has_own: bool,
    first: int,
    last: int,
    row_M: Any,
    first_M: Any,
    member_N: Any,
    weight_N: Any,
    gate_nats_N: Any,
    lowers_N: Any,
    log_ratio_M: Any,
    rank_M: Any,
    log_tail_M: Any,
    written_M: Any,
    open_N: Any,
    evidence_N: Any,
    bad_N: Any,
) -> None:
    """The formula of docs/composition.md for the target's rows row_M[first:last], in place.

    Row r of the target is target[r * target_stride :][:vocab_size], fp32, and so are its own logits, which with
    `has_own` lie elsewhere, and the assistants'. The indices are those of `Pairs`. Writes what `Composition` holds, all
    zero before, and which rows were written.
    """
    most = 0
    for m in range(first, last):
        most = max(most, first_M[m + 1] - first_M[m])
    pair_P = np.empty(most, _OPEN)
    largest_B = np.empty(-(-vocab_size // _TILE) * LANES, np.float32)
    apart_V = np.empty(vocab_size if has_own else 0, np.float32)
    for m in range(first, last):
        row_V = target[row_M[m] * target_stride : row_M[m] * target_stride + vocab_size]
        own_V = own[row_M[m] * own_stride : row_M[m] * own_stride + vocab_size]
        largest_B[:] = _NONE
        has_nan = _block_maxima(own_V, largest_B)
        largest = _extremes(largest_B)[0]
        change = _largest_change(row_V, own_V) if has_own else _ZERO
        row_is_bad = not (largest < _MOST and change < _MOST) or has_nan
        one_is_bad = False
        raised, num_open = 0.0, 0
        for place in range(first_M[m], first_M[m + 1]):
            n = member_N[place]
            start = n * assistant_stride
            evidence, log_mean, highest, lowest = _read(assistant[start : start + vocab_size])
            if not math.isfinite(evidence):
                one_is_bad = bad_N[n] = True
                continue
            evidence_N[n] = evidence
            weight = weight_N[n]
            if weight > 0 and (gate_nats_N[n] <= 0 or evidence >= gate_nats_N[n]):
                if not lowers_N[n]:
                    raised += max(0.0, -weight * (lowest - highest - log_mean))
                pair = pair_P[num_open]
                pair.start, pair.largest, pair.weight = start, highest, weight
                pair.log_mean = log_mean + math.log(vocab_size) / 2 if lowers_N[n] else log_mean
                pair.least = _ZERO if lowers_N[n] else _NONE
                open_N[n] = True
                num_open += 1
        row_is_bad |= num_open > 0 and not largest + raised + change <= finite_max
        written_M[m] = num_open > 0 or one_is_bad or row_is_bad
        if row_is_bad:
            for place in range(first_M[m], first_M[m + 1]):
                bad_N[member_N[place]], open_N[member_N[place]] = True, False
        if one_is_bad or row_is_bad:
            row_V[:] = _NONE
        elif num_open > 0:
            threshold = largest + log_ratio_M[m]
            if threshold > _NONE:
                threshold = _keep_threshold(own_V, largest_B, threshold, rank_M[m])
            composed_V = apart_V if has_own else row_V
            cuts_tail = log_tail_M[m] > _NONE and not scores
            best = _take(own_V, assistant, pair_P[:num_open], threshold, scores, cuts_tail, composed_V)
            if cuts_tail:
                _cut_tail(composed_V, best + log_tail_M[m])
            if has_own:
                _add_changes(row_V, own_V, composed_V)
