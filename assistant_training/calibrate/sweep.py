"""What a forget set does at every weight, keep ratio and gate of a grid.

A first pass of the target and the assistant over the data keeps a few numbers of each of the P answer positions, none
of which depends on the grid; among them the evidence, from which the gates to sweep are taken. A second pass, over the
answers in which the lowest gate opens somewhere, keeps a few numbers of those O positions for each of S pairs of weight
and keep ratio, as if the gate were open. A gate only decides at which positions they count, so each of G gates costs
one comparison. In total: at most two forward passes of both models, 2 S compositions (both modes), O(O V S), and
O(P S G) for the figures. Memory: a batch of logits, and O S numbers.

Shape legend: N positions of a batch, P positions of all answers, O those of them that may open, A answers, V vocab,
S pairs of a weight and a keep ratio.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from unlearngate.assistant_training.calibrate.positions import Composed, Positions, least_evidence
from unlearngate.errors import CalibrationError
from unlearngate.manifest import LARGEST, Strength


class Grid(NamedTuple):
    """The settings of a sweep: each axis ascending, without repetition."""

    weights: tuple[float, ...]
    keep_ratios: tuple[float, ...]
    gates_nats: tuple[float, ...]

    @classmethod
    def of(cls, weights: Sequence[float], keep_ratios: Sequence[float], gates_nats: Sequence[float]) -> Grid:
        """A grid of these values, in any order.

        Raises: CalibrationError if an axis is empty or a value cannot be one.
        """
        for name, values, most, wanted in (
            ("weights", weights, LARGEST, "numbers above 0"),
            ("keep ratios", keep_ratios, 1.0, "numbers from 0 to 1"),
            ("gates", gates_nats, LARGEST, "nats of at least 0"),
        ):
            wrong = [value for value in values if not 0 <= value <= most or (name == "weights" and value == 0)]
            if wrong or not values:
                raise CalibrationError(f"{name} to sweep must be {wanted}, got {wrong[0] if wrong else 'none'}")
        return cls(*(tuple(sorted(set(map(float, axis)))) for axis in (weights, keep_ratios, gates_nats)))

    def strengths(self) -> Iterator[Strength]:
        """All settings: weight by weight, in each keep ratio by keep ratio."""
        for weight, keep_ratio, gate in itertools.product(*self):
            yield Strength(weight=weight, keep_ratio=keep_ratio, gate_nats=gate)


class Measured(NamedTuple):
    """One file; `facts_A`: in which answers only the tokens of facts were measured."""

    positions: Positions
    composed: Composed
    facts_A: np.ndarray


class FileFigures(NamedTuple):
    """One file's figures at one setting, each in [0, 1].

    probability: p(answer)^(1/tokens) in scoring mode, the mean over answers.
    probability_served: the same in sampling mode; an answer with a token that is cut off has 0.
    right: share of tokens that are the first choice of what is served (exact memorisation, teacher forced).
    recited: share of answers all of whose tokens are; greedy decoding would give them.
    facts_told: share of the answers that name facts in which any token of a fact is; None if no answer names any.
    untouched: share of tokens at which no gate is open, so the target's logits are unchanged bit for bit.
    untouched_answers: share of answers along which no gate opens at all: they stay as they were.
    changed: share of tokens at which the first choice differs from the target's.
    cut: share of tokens that the keep rule cuts off in sampling mode.
    lost: the target's probability minus this one, in the mode in which that is more; below 0 if it grew.
    """

    probability: float
    probability_served: float
    right: float
    recited: float
    facts_told: float | None
    untouched: float
    untouched_answers: float
    changed: float
    cut: float
    lost: float


class Setting(NamedTuple):
    """What one strength does to both files."""

    strength: Strength
    forget: FileFigures
    retain: FileFigures

    def row(self) -> dict[str, float | None]:
        """The figures as a flat row, for tables."""
        figures = {"forget": self.forget, "retain": self.retain}
        outcomes = {
            f"{name}_{key}": value for name, figure in figures.items() for key, value in figure._asdict().items()
        }
        return {**self.strength.model_dump(), **outcomes}


def outcome(measured: Measured, strength: Strength) -> FileFigures:
    """One file's figures at a setting.

    Raises: ValueError if its weight and keep ratio, or positions that its gate opens, were not composed.
    """
    positions, composed = measured.positions, measured.composed
    least = least_evidence(strength.gate_nats)
    pair_S = (composed.pair_S2 == (strength.weight, strength.keep_ratio)).all(axis=1)
    if least < composed.lowest_nats or not pair_S.any():
        raise ValueError(f"{strength} was not measured: gates from {composed.lowest_nats}, pairs {composed.pair_S2}")
    s = int(pair_S.argmax())
    open_P = positions.evidence_P >= least
    counts_O = open_P[positions.evidence_P >= composed.lowest_nats]
    scoring_P, sampling_P, right_P = positions.log_p_P.copy(), positions.log_p_P.copy(), positions.right_P.copy()
    changed_P = np.zeros_like(open_P)
    for whole_P, part_SO in (
        (scoring_P, composed.scoring_SO),
        (sampling_P, composed.sampling_SO),
        (right_P, composed.right_SO),
        (changed_P, composed.changed_SO),
    ):
        whole_P[open_P] = part_SO[s, counts_O]
    return _outcome(measured, scoring_P, sampling_P, right_P, open_P, changed_P)


def plain_outcome(measured: Measured) -> FileFigures:
    """One file's figures with no set in force."""
    positions = measured.positions
    no_P = np.zeros(len(positions.answer_P), dtype=bool)
    return _outcome(measured, positions.log_p_P, positions.log_p_P, positions.right_P, no_P, no_P)


def sweep(forget: Measured, retain: Measured, grid: Grid) -> list[Setting]:
    """Both files' figures at every setting, in the order of `Grid.strengths`."""
    return [Setting(s, outcome(forget, s), outcome(retain, s)) for s in grid.strengths()]


def _outcome(
    measured: Measured,
    scoring_P: np.ndarray,
    sampling_P: np.ndarray,
    right_P: np.ndarray,
    open_P: np.ndarray,
    changed_P: np.ndarray,
) -> FileFigures:
    answer_P, facts_A = measured.positions.answer_P, measured.facts_A
    tokens_A = np.bincount(answer_P)
    plain, scoring, sampling = (
        float(np.exp(np.bincount(answer_P, weights=log_p_P) / tokens_A).mean())
        for log_p_P in (measured.positions.log_p_P, scoring_P, sampling_P)
    )
    right_A = np.bincount(answer_P, weights=right_P)
    return FileFigures(
        probability=scoring,
        probability_served=sampling,
        right=float(right_P.mean()),
        recited=float((right_A == tokens_A).mean()),
        facts_told=float((right_A > 0)[facts_A].mean()) if facts_A.any() else None,
        untouched=float((~open_P).mean()),
        untouched_answers=float((np.bincount(answer_P, weights=open_P) == 0).mean()),
        changed=float(changed_P.mean()),
        cut=float(np.isneginf(sampling_P).mean()),
        lost=plain - min(scoring, sampling),
    )
