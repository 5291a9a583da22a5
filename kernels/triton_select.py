"""The exact k-th largest logit of a row, by selection: a sampled bracket, then bisection of order-preserving integers.

fp32 logits compare like the int32 keys of `_key`, so at most 32 halvings find the k-th largest; ties need no care.
"""

from __future__ import annotations

import triton
import triton.language as tl

_KEY_OF_MINUS_INF: tl.constexpr = tl.constexpr(-2139095041)
_KEY_OF_INF: tl.constexpr = tl.constexpr(2139095040)
_RUN: tl.constexpr = tl.constexpr(16)  # logits next to each other in a sample: one read of 64 bytes


@triton.jit
def _key(x):
    bits = x.to(tl.int32, bitcast=True)
    return bits ^ ((bits >> 31) & 0x7FFFFFFF)


@triton.jit
def _value(key):
    return (key ^ ((key >> 31) & 0x7FFFFFFF)).to(tl.float32, bitcast=True)


@triton.jit
def kth_largest(x, valid, k):
    """The k-th largest of the valid entries of a block; k in [1, number of valid]."""
    key = _key(x)
    low = tl.min(tl.where(valid, key, _KEY_OF_INF), axis=0)
    high = tl.max(tl.where(valid, key, _KEY_OF_MINUS_INF), axis=0)
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)  # the mean, rounded up, without overflow
        count = tl.sum((valid & (key >= middle)).to(tl.int32), axis=0)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count >= k, high, middle - 1)
    return _value(low)


@triton.jit
def kth_largest_in_memory(logits_ptr, num_logits, k, BLOCK: tl.constexpr):
    """The same over a row in memory, which is read up to 32 times."""
    low = tl.full((), _KEY_OF_MINUS_INF, tl.int32)
    high = tl.full((), _KEY_OF_INF, tl.int32)
    while low < high:
        middle = (low | high) - ((low ^ high) >> 1)
        counts = tl.zeros((BLOCK,), tl.int32)
        for start in range(0, num_logits, BLOCK):
            at = start + tl.arange(0, BLOCK)
            x = tl.load(logits_ptr + at, mask=at < num_logits, other=-float("inf")).to(tl.float32)
            counts += ((at < num_logits) & (_key(x) >= middle)).to(tl.int32)
        count = tl.sum(counts, axis=0)
        low = tl.where(count >= k, middle, low)
        high = tl.where(count >= k, high, middle - 1)
    return _value(low)


@triton.jit
def guess_bracket(logits_ptr, vocab_size, k, SAMPLE: tl.constexpr):
    """Logits (low, high) that the k-th largest of a row very probably lies between, from a sample of the row.

    The rank of the k-th largest within a sample of n is binomial: mean n p, variance n p (1 - p), p = k / V. Four
    standard deviations to each side, and two ranks for the smallest k.
    """
    at = tl.arange(0, SAMPLE)
    spacing = vocab_size // (SAMPLE // _RUN)
    x = tl.load(logits_ptr + (at // _RUN) * spacing + at % _RUN).to(tl.float32)
    share = k.to(tl.float32) / vocab_size
    middle = share * SAMPLE
    margin = 4.0 * tl.sqrt(middle * tl.maximum(1.0 - share, 0.0)) + 2.0
    upper = tl.floor(middle - margin).to(tl.int32)
    lower = tl.ceil(middle + margin).to(tl.int32)
    low = -float("inf")
    high = float("inf")
    if lower <= SAMPLE:
        low = kth_largest(x, at < SAMPLE, lower)
    if upper >= 1:
        high = kth_largest(x, at < SAMPLE, upper)
    return low, high
