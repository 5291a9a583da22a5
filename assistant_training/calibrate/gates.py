"""Which gates to sweep where none are given: those between what the assistant shows on retain and on forget answers."""

from __future__ import annotations

import itertools
import math

import numpy as np

from unlearngate.assistant_training.calibrate.positions import Positions

NUM_GATES = 10
_STEPS_PER_NAT = 20  # gates are rounded to 0.05 nats
_LOWEST_NATS = 0.25  # below it, rounding in a 16-bit engine could open a gate
_RETAIN_TOKENS, _FORGET_TOKENS = 0.9, 0.5  # quantiles that the gates are between
_RETAIN_ANSWERS = (0.9, 0.95, 0.97, 0.98, 0.99, 1.0)  # of the highest evidence along an answer: it decides what changes
_FORGET = (0.01, 0.02, 0.05, 0.1, 0.25, 0.5)


def gates_of(forget: Positions, retain: Positions, vocab_size: int) -> tuple[float, ...]:
    """Gates at quantiles of the evidence, in nats, ascending, without repetition.

    Just above quantiles of the retain answers' highest evidence, and just below quantiles of the forget tokens'. All
    are between the 90 % quantile of the retain tokens and the 50 % quantile of the forget tokens, and between 0.25 nats
    and ln V, above which no gate opens. Where that leaves fewer than `NUM_GATES`, the widest gaps (by ratio) are
    halved: where the two files are far apart, that is between them.
    """
    highest_A = np.maximum.reduceat(retain.evidence_P, np.unique(retain.answer_P, return_index=True)[1])
    above = [np.quantile(retain.evidence_P, _RETAIN_TOKENS), *np.quantile(highest_A, _RETAIN_ANSWERS)]
    below = np.quantile(forget.evidence_P, _FORGET)
    low, high = sorted((math.floor(above[0] * _STEPS_PER_NAT) + 1, math.floor(below[-1] * _STEPS_PER_NAT)))
    least, most = math.ceil(_LOWEST_NATS * _STEPS_PER_NAT), math.floor(math.log(vocab_size) * _STEPS_PER_NAT)
    found = [math.floor(value * _STEPS_PER_NAT) + 1 for value in above]
    found += [math.floor(value * _STEPS_PER_NAT) for value in below]
    steps = sorted({min(max(step, low, least), max(least, min(high, most))) for step in found})
    while len(steps) < NUM_GATES:
        gaps = [(right / left, left, right) for left, right in itertools.pairwise(steps) if right - left > 1]
        if not gaps:
            break
        _, left, right = max(gaps)
        steps = sorted({*steps, min(max(round(math.sqrt(left * right)), left + 1), right - 1)})
    return tuple(step / _STEPS_PER_NAT for step in steps)
