"""The CPU kernels: a row is read, decided and written while it is in the cache, in a few passes that LLVM vectorises.

No fast-math: sums are kept in LANES partial sums, which a compiler can vectorise without reordering, so a result
depends on the numbers alone and not on where they lie in memory. A partial sum in fp32 covers at most _SPAN numbers;
partial sums are added in fp64.

Shape legend: V vocab; a row is V contiguous fp32 logits of an array that holds all of them.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numba import njit

from unlearngate.kernels.pairs import CUT

LANES = 128
_SPAN = 64

_F = np.float32
_NONE, _MOST = _F(-np.inf), _F(np.inf)
_LOG2_E = _F(1 / math.log(2))
_ROUND = _F(1.5 * 2**23)  # adding it rounds to an integer, held in the lowest bits; subtracting it gives that integer
_LN2_HIGH = _F(0.693359375)  # ln 2 in two parts; 9 bits here, so that a product with an integer is exact
_LN2_LOW = _F(math.log(2) - 0.693359375)
_LOWEST = _F(-87.0)  # below it exp is 0: negligible next to the 1 of the largest logit
_ZERO, _ONE = _F(0), _F(1)
_CUT = _F(CUT)
_C2, _C3, _C4, _C5, _C6, _C7 = (_F(1 / math.factorial(k)) for k in range(2, 8))


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
    """exp(x), x <= 0, to 2e-7 of itself: 2^n times a Taylor polynomial for what is left, at most ln(2) / 2."""
    rounded = x * _LOG2_E + _ROUND
    n = rounded - _ROUND
    r = (x - n * _LN2_HIGH) - n * _LN2_LOW
    power = ((((((_C7 * r + _C6) * r + _C5) * r + _C4) * r + _C3) * r + _C2) * r + _ONE) * r + _ONE
    bits = np.int32((np.float32(rounded).view(np.int32) + np.int32(127)) << np.int32(23))
    return power * bits.view(np.float32) if x >= _LOWEST else (x if x != x else _ZERO)


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
    return largest_L.max(), smallest_L.min()


@compiled()
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
                e = _exp(shifted)
                total_L[lane] += e
                product_L[lane] += e * shifted
        for lane in range(LANES):
            total += total_L[lane]
            product += product_L[lane]
    return total, product


@compiled()
def _read(row_V: Any) -> Any:
    """An assistant's evidence, ln mean exp(a - max(a)), max(a) and min(a); the evidence is NaN if one is not finite."""
    highest, lowest = _extremes(row_V)
    if not (highest < _MOST and lowest > _NONE):
        return math.nan, math.nan, highest, lowest
    total, product = _moments(row_V, highest)
    # ln(total / V), not ln(total) - ln(V): all-equal logits then give ln(1) = 0 exactly.
    log_mean = math.log(total / len(row_V))
    # As fp32, which is what is returned and what a gate may have been set to.
    return float(np.float32(product / total - log_mean)), log_mean, highest, lowest


@compiled()
def _count(row_V: Any, threshold: Any) -> Any:
    """How many are at least the threshold, and how many are below: a NaN is neither."""
    kept_L, dropped_L = np.zeros(LANES, np.float32), np.zeros(LANES, np.float32)  # exact up to 2^24 each
    for start in range(0, len(row_V), LANES):
        part = row_V[start : start + LANES]
        for lane in range(len(part)):
            kept_L[lane] += _ONE if part[lane] >= threshold else _ZERO
            dropped_L[lane] += _ONE if part[lane] < threshold else _ZERO
    return np.int64(kept_L.sum()), np.int64(dropped_L.sum())


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


@njit(inline="always")
def _order(x: Any) -> Any:
    """An integer in [0, 2^32) that sorts as x does."""
    bits = np.int64(np.float32(x).view(np.int32))
    return (bits ^ (bits >> 31 & 0x7FFFFFFF)) + 2**31


@compiled()
def _digit_of_kth(count_of: Any, rank: int) -> Any:
    """From counts by digit: the digit of the rank-th largest, and its rank among those of the same digit."""
    digit = len(count_of) - 1
    while count_of[digit] < rank:
        rank -= count_of[digit]
        digit -= 1
    return digit, rank


@compiled()
def _kth_largest(row_V: Any, rank: int) -> Any:
    """The rank-th largest, counting from 1, of a row without NaN, by radix selection: 11, 11 and 10 bits."""
    count_of = np.zeros(2**11, np.int64)
    for i in range(len(row_V)):
        count_of[_order(row_V[i]) >> 21] += 1
    digit, rank = _digit_of_kth(count_of, rank)
    found = digit << 21
    alike = np.empty(count_of[digit], np.int64)
    count = 0
    for i in range(len(row_V)):
        order = _order(row_V[i])
        if order >> 21 == digit:
            alike[count] = order
            count += 1
    for shift, mask in ((10, 2**11 - 1), (0, 2**10 - 1)):
        count_of[:] = 0
        for i in range(count):
            count_of[alike[i] >> shift & mask] += 1
        digit, rank = _digit_of_kth(count_of, rank)
        found |= digit << shift
        left = 0
        for i in range(count):
            if alike[i] >> shift & mask == digit:
                alike[left] = alike[i]
                left += 1
        count = left
    bits = found - 2**31
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
    start_P = np.empty(most, np.int64)  # of the open pairs' rows
    largest_P, log_mean_P, weight_P = (
        np.empty(most, np.float32),
        np.empty(most, np.float32),
        np.empty(most, np.float32),
    )
    least_P = np.empty(most, np.float32)  # what is taken at least: 0 from a set that only lowers
    apart_V = np.empty(vocab_size if has_own else 0, np.float32)
    own_L, taken_L, best_L = np.empty(LANES, np.float32), np.empty(LANES, np.float32), np.empty(LANES, np.float32)
    for m in range(first, last):
        row_V = target[row_M[m] * target_stride : row_M[m] * target_stride + vocab_size]
        own_V = own[row_M[m] * own_stride : row_M[m] * own_stride + vocab_size]
        largest = _extremes(own_V)[0]
        threshold = largest + log_ratio_M[m]
        kept, dropped = _count(own_V, threshold)
        change = _largest_change(row_V, own_V) if has_own else _ZERO
        row_is_bad = not (largest < _MOST and change < _MOST) or kept + dropped < vocab_size
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
                start_P[num_open], weight_P[num_open] = start, weight
                largest_P[num_open] = highest
                log_mean_P[num_open] = log_mean + math.log(vocab_size) / 2 if lowers_N[n] else log_mean
                least_P[num_open] = _ZERO if lowers_N[n] else _NONE
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
            # If the ratio alone keeps that many, the rank-th largest is among them.
            if kept < rank_M[m]:
                threshold = _kth_largest(own_V, rank_M[m])
            composed_V = apart_V if has_own else row_V
            cuts_tail = log_tail_M[m] > _NONE and not scores
            best_L[:] = _NONE
            for begin in range(0, vocab_size, LANES):
                part, of_own = composed_V[begin : begin + LANES], own_V[begin : begin + LANES]
                taken_L[:] = _ZERO
                for p in range(num_open):
                    high, mean, weight, least = largest_P[p], log_mean_P[p], weight_P[p], least_P[p]
                    of_assistant = assistant[start_P[p] + begin : start_P[p] + begin + len(part)]
                    for lane in range(len(part)):
                        centred = (of_assistant[lane] - high) - mean
                        taken_L[lane] += (centred if centred > least else least) * weight
                for lane in range(len(part)):  # LLVM does not vectorise a loop that writes what it may have to read
                    own_L[lane] = of_own[lane]
                for lane in range(len(part)):
                    x = own_L[lane]
                    below = x if scores or x == _NONE else _CUT
                    part[lane] = x - taken_L[lane] if x >= threshold else below
                if cuts_tail:
                    for lane in range(len(part)):
                        x = part[lane] if own_L[lane] >= threshold else _NONE
                        best_L[lane] = x if x > best_L[lane] else best_L[lane]
            if cuts_tail:
                _cut_tail(composed_V, best_L.max() + log_tail_M[m])
            if has_own:
                _add_changes(row_V, own_V, composed_V)
