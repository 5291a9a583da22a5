"""Which setting of a sweep to recommend, and within which bounds: an explicit rule, or a refusal that says why.

The rule (docs/training.md, Calibration). A setting *passes* if it meets all limits. It *can be recommended* if it
passes and uses no more than a share, the margin, of what the two limits on forgetting allow. Of these it takes the
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


def best_of(settings: Sequence[Setting], limits: Limits) -> Setting:
    """The nearest setting if none can be recommended: of those that spare the retain data, the one forgetting most."""
    sparing = [s for s in settings if limits.spares(s)]
    if sparing:
        return min(
            sparing, key=lambda s: (s.forget.recited > limits.margin * limits.forget_recited, forget_probability(s))
        )
    return min(settings, key=lambda s: (-s.retain.untouched, s.retain.lost))


def describe(setting: Setting) -> str:
    """A setting and the figures that the rule uses, in one line."""
    s, forget, retain = setting
    return (
        f"weight {s.weight:g}, keep ratio {s.keep_ratio:g}, gate {s.gate_nats:g} nats: forget probability "
        f"{forget_probability(setting):.3g}, recited {forget.recited:.1%}, retain untouched {retain.untouched:.2%}, "
        f"retain probability lost {retain.lost:.3g}"
    )


def _refusal(settings: Sequence[Setting], limits: Limits) -> str:
    best = describe(best_of(settings, limits))
    if not any(limits.spares(s) for s in settings):
        return (
            "no setting of the sweep spares the retain data: expected at least "
            f"{limits.retain_untouched:.2%} untouched and at most {limits.retain_lost:g} of its probability lost; "
            f"the most sparing is {best}. Sweep higher "
            "--gates-nats, train the set with more retain data of this kind, or allow a higher cost with "
            "--untouched-at-least and --retain-loss-at-most"
        )
    most, recited = limits.margin * limits.forget_probability, limits.margin * limits.forget_recited
    return (
        "no setting of the sweep that spares the retain data forgets enough: expected a forget probability of at most "
        f"{most:.3g} and at most {recited:.1%} recited ({limits.margin:g} of the limits "
        f"{limits.forget_probability:.3g} and {limits.forget_recited:.1%}); the one that forgets most is {best}. "
        "Sweep larger --weights or lower --gates-nats, train the set longer or on more wordings, or allow more with "
        "--forget-at-most, --recited-at-most and --margin"
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
