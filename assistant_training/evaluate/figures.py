"""Compute every figure, with its interval, from columns that hold one value per question.

A report keeps the columns, so every figure can be computed again. Intervals are 95 % percentile bootstraps over
questions, each with its own generator from the report's seed. Nothing is selected: every row is what was asked for.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any, NamedTuple

import numpy as np

from unlearngate.assistant_training.evaluate import memorization, metrics
from unlearngate.assistant_training.evaluate.qa import Columns
from unlearngate.assistant_training.evaluate.tofu import SetFigures

MEMBERSHIP_SCORES = {"loss_score": "mia_loss", "min_k_score": "mia_min_k", "min_k_plus_score": "mia_min_k_plus"}
_NO_FIGURES = {"question", "answer", "generated", "token_ids", "num_positions"}
_RESAMPLES = 2000


class Figure(NamedTuple):
    """A number and the ends of its interval; None where there is none, as for a p-value."""

    value: float
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True, slots=True)
class ModelFigures:
    """One evaluated model.

    Attributes:
        model: "target", "retain model", or the sets in force, "a+b".
        mode: of the probabilities, "scoring" or "sampling"; "served" for a server, which gives no probabilities.
        in_force: the sets' names, digests and strengths.
        questions: the columns of every question set.
        figures: what `figures_of` makes of them.
    """

    model: str
    mode: str
    in_force: list[dict[str, Any]]
    questions: dict[str, Columns]
    figures: dict[str, Figure]


def columns_of(figures: SetFigures) -> Columns:
    """TOFU's figures of one set as columns, one per field."""
    values = {field.name: getattr(figures, field.name) for field in fields(figures)}
    # Texts stay lists: a numpy array drops trailing U+0000.
    return {name: own.tolist() if isinstance(own, np.ndarray) else list(own) for name, own in values.items()}


def figures_of(
    questions: Mapping[str, Columns], *, seed: int, retain_model: Mapping[str, Columns] | None = None
) -> dict[str, Figure]:
    """Every figure that the columns are enough for, named `SET_FIGURE`.

    Means over questions, except: `untouched_positions` is the share of all positions, `untouched_answers` of answers
    that are untouched throughout; `truth_ratio` of `forget` is the mean of min(R, 1/R), as OpenUnlearning publishes
    it, of other sets the mean of max(0, 1 - R); `recited` is the share with a ROUGE-L recall of at least 0.9;
    `leak_at_K` and `best_of_K` are of sampled answers; `mia_*` are areas under the curve, `forget` against `holdout`,
    0.5 being forgotten; `utility` is TOFU's.

    Args:
        questions: set -> column -> a value per question, None where a question has none.
        seed: of the bootstrap.
        retain_model: the same of a model that never saw `forget`; adds forget quality.
    """
    found: dict[str, Figure] = {}
    if retain_model and _has_ratio(questions) and _has_ratio(retain_model):
        ratios = (_numbers(columns["forget"]["truth_ratio"]) for columns in (questions, retain_model))
        quality = metrics.forget_quality(*ratios)
        found |= {"forget_quality": Figure(quality.p_value), "forget_distance": Figure(quality.distance)}
    if all({"probability", "rouge", "truth_ratio"} <= questions.get(name, {}).keys() for name in metrics.UTILITY_SETS):
        found["utility"] = _utility(questions, seed)
    for name, columns in questions.items():
        for column, values in columns.items():
            if name != "holdout" and column not in _NO_FIGURES and column not in MEMBERSHIP_SCORES:
                for figure, numbers in _means(name, column, values).items():
                    interval = metrics.bootstrap_interval(numbers, rng=np.random.default_rng(seed))
                    found[f"{name}_{figure}"] = Figure(*interval)
        if name != "holdout" and "num_positions" in columns:  # a share of positions, not a mean of shares
            weighted = [_numbers(columns[column]) for column in ("untouched_positions", "num_positions")]
            interval = metrics.bootstrap_interval(*weighted, rng=np.random.default_rng(seed), statistic=_weighted)
            found[f"{name}_untouched_positions"] = Figure(*interval)
    if "holdout" in questions:
        for column, figure in MEMBERSHIP_SCORES.items():
            samples = [_numbers(questions[name][column]) for name in ("forget", "holdout")]
            found[figure] = _stratified(samples, memorization.member_auc, seed)
    return found


def _means(name: str, column: str, values: Sequence[Any]) -> dict[str, np.ndarray]:
    """The values to average for a column's figures, by figure."""
    if column == "sampled_rouge":
        num_samples = len(values[0])
        at = metrics.RECITED_AT
        leaks = {
            f"leak_at_{k}": np.array([memorization.leak_at_k(row, k, threshold=at) for row in values])
            for k in sorted({1, num_samples})
        }
        return {**leaks, f"best_of_{num_samples}": np.array([memorization.best_of_k(r, num_samples) for r in values])}
    numbers = _numbers(values)
    if column == "truth_ratio":
        with np.errstate(divide="ignore"):
            closeness = np.minimum(numbers, 1.0 / numbers)
        return {column: closeness if name == "forget" else metrics.truthfulness(numbers)}
    if column == "rouge":
        return {column: numbers, "recited": (numbers >= metrics.RECITED_AT).astype(float)}
    if column == "untouched_positions":
        return {"untouched_answers": (numbers == 1.0).astype(float)}
    return {column: numbers}


def _weighted(values: np.ndarray, weights: np.ndarray) -> float:
    return float(np.average(values, weights=weights))


def _utility(questions: Mapping[str, Columns], seed: int) -> Figure:
    samples = []
    for name in metrics.UTILITY_SETS:
        columns = questions[name]
        truthful = metrics.truthfulness(_numbers(columns["truth_ratio"]))
        samples.append(np.stack([_numbers(columns["probability"]), _numbers(columns["rouge"]), truthful], axis=1))

    def utility(*resampled: np.ndarray) -> float:
        means = (sample.mean(axis=0) for sample in resampled)
        scores = (dict(zip(metrics.UTILITY_METRICS, mean, strict=True)) for mean in means)
        return metrics.model_utility(dict(zip(metrics.UTILITY_SETS, scores, strict=True)))

    return _stratified(samples, utility, seed)


def _stratified(samples: Sequence[np.ndarray], statistic: Callable[..., float], seed: int) -> Figure:
    """A bootstrap of a statistic of several sets of questions, each resampled on its own: (Q,) or (Q, C) arrays."""
    rng = np.random.default_rng(seed)
    drawn = [
        statistic(*(sample[rng.integers(len(sample), size=len(sample))] for sample in samples))
        for _ in range(_RESAMPLES)
    ]
    low, high = np.quantile(drawn, [0.025, 0.975])
    return Figure(statistic(*samples), float(low), float(high))


def _has_ratio(questions: Mapping[str, Columns]) -> bool:
    return "truth_ratio" in questions["forget"]


def _numbers(values: Sequence[Any]) -> np.ndarray:
    return np.array([float(value) for value in values if value is not None])
