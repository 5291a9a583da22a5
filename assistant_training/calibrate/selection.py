"""Which setting of a sweep to recommend, and within which bounds: an explicit rule, or a refusal that says why.

The rule (docs/training.md, Calibration). A setting *passes* if it meets all limits. It *can be recommended* if it
passes and uses no more than a share, the margin, of what the limits on forgetting allow. Of these it takes the
smallest weight; at that weight the middle gate, which is farthest from opening on retain data and from staying closed
on forget data; at that gate the middle keep ratio. Of two in the middle it takes the lower one. The bounds are the box
around it that holds the most settings of the sweep, all of which pass.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from unlearngate.assistant_training.calibrate.settings import Limits, forget_probability
from unlearngate.assistant_training.calibrate.sweep import Grid, Setting
from unlearngate.errors import CalibrationError
from unlearngate.manifest import Bounds, Strength, StrengthBounds


class Choice(NamedTuple):
    """What to recommend."""

    setting: Setting
    bounds: StrengthBounds


def choose_setting(settings: Sequence[Setting], grid: Grid, limits: Limits) -> Choice:
    """Apply the rule.

    Args:
        settings: of the whole grid, in the order of `Grid.strengths`.
        grid: what was swept.
        limits: what must be met.

    Raises: CalibrationError if no setting can be recommended, with the best that was found and what to do.
    """
    fit = [s for s in settings if limits.passes(s) and limits.forgets(s, limits.margin)]
    if not fit:
        raise CalibrationError(_refusal(settings, limits))
    weight = min(s.strength.weight for s in fit)
    fit = [s for s in fit if s.strength.weight == weight]
    gate = _middle(sorted({s.strength.gate_nats for s in fit}))
    fit = [s for s in fit if s.strength.gate_nats == gate]
    keep_ratio = _middle([s.strength.keep_ratio for s in fit])
    chosen = next(s for s in fit if s.strength.keep_ratio == keep_ratio)
    return Choice(chosen, _bounds(settings, grid, limits, chosen.strength))


def best_of(settings: Sequence[Setting], limits: Limits) -> Choice:
    """What is nearest if none can be recommended: exceeds the limits by the least in sum; of equals the first.

    Its bounds allow nothing else, as nothing around it passes either.
    """
    best = min(settings, key=lambda s: limits.told_too_much(s, limits.margin) + limits.lost_too_much(s))
    alone = {name: Bounds(low=value, high=value) for name, value in best.strength.model_dump().items()}
    return Choice(best, StrengthBounds(**alone))


def describe(setting: Setting) -> str:
    """A setting and the figures that the rule uses, in one line."""
    s, forget, retain = setting
    told = "" if forget.facts_told is None else f"facts told {forget.facts_told:.1%}, "
    return (
        f"weight {s.weight:g}, keep ratio {s.keep_ratio:g}, gate {s.gate_nats:g} nats: forget probability "
        f"{forget_probability(setting):.3g}, recited {forget.recited:.1%}, {told}retain answers untouched "
        f"{retain.untouched_answers:.2%}, tokens {retain.untouched:.2%}, probability lost {retain.lost:.3g}"
    )


def _refusal(settings: Sequence[Setting], limits: Limits) -> str:
    best = describe(best_of(settings, limits).setting)
    if not any(limits.spares(s) for s in settings):
        return (
            f"no setting of the sweep spares the retain data: expected at least {limits.retain_untouched_answers:.2%} "
            f"of its answers and {limits.retain_untouched:.2%} of its tokens untouched, and at most "
            f"{limits.retain_lost:g} of its probability lost; the nearest is {best}. Sweep higher "
            "--gates-nats, train the set with more retain data of this kind, or allow a higher cost with "
            "--untouched-answers-at-least, --untouched-at-least and --retain-loss-at-most"
        )
    most = [limits.margin * m for m in (limits.forget_probability, limits.forget_recited, limits.forget_facts_told)]
    return (
        "no setting of the sweep that spares the retain data forgets enough: expected a forget probability of at most "
        f"{most[0]:.3g}, at most {most[1]:.1%} recited and facts told in at most {most[2]:.1%} ({limits.margin:g} of "
        f"the limits {limits.forget_probability:.3g}, {limits.forget_recited:.1%} and {limits.forget_facts_told:.1%}); "
        f"the nearest is {best}. Sweep larger --weights or lower --gates-nats, train the set longer or on more "
        "wordings, or allow more with --forget-at-most, --recited-at-most, --facts-told-at-most and --margin"
    )


def _middle(values: Sequence[float]) -> float:
    return values[(len(values) - 1) // 2]


def _bounds(settings: Sequence[Setting], grid: Grid, limits: Limits, chosen: Strength) -> StrengthBounds:
    """The box around the chosen setting with the most settings, all passing; the first of equals."""
    passes_WKG = np.array([limits.passes(s) for s in settings]).reshape([len(axis) for axis in grid])
    at = (chosen.weight, chosen.keep_ratio, chosen.gate_nats)
    ranges = [_ranges_around(axis.index(value), len(axis)) for axis, value in zip(grid, at, strict=True)]
    boxes = [box for box in itertools.product(*ranges) if passes_WKG[box].all()]
    widest = max(boxes, key=lambda box: passes_WKG[box].size)
    weight, keep_ratio, gate_nats = (
        Bounds(low=axis[part.start], high=axis[part.stop - 1]) for axis, part in zip(grid, widest, strict=True)
    )
    return StrengthBounds(weight=weight, keep_ratio=keep_ratio, gate_nats=gate_nats)


def _ranges_around(index: int, length: int) -> list[slice]:
    return [slice(low, high + 1) for low in range(index + 1) for high in range(index, length)]
