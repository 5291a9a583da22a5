"""A report for people and for machines: report.json with every number, report.md, and pictures."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearngate.assistant_training.evaluate.figures import Figure, ModelFigures

NOTES = (
    "Nothing was selected: every row is a model or a combination of sets as it was given, at its recommended strength.",
    "In brackets: 95 % bootstrap interval over questions. One author's questions depend on each other: too narrow.",
    "recited: ROUGE-L recall (stemmed words) of at least 0.9. leak at k: the chance that one of k sampled answers is.",
    "forget truth ratio: mean min(R, 1/R); of other sets mean max(0, 1 - R); R = wrong answers / right one.",
    "verbmem: ROUGE-L F1 of a document's greedy continuation (MUSE, arXiv:2407.06460, equation 1).",
    "mia: area under the curve, forget against holdout questions; 0.5 is forgotten, below it suppressed. "
    "Compare with the retain model's.",
    "untouched: no gate was open, the target's logits stand bit for bit. unchanged: the plain target's answer.",
)
_PANELS = (
    "forget_quality",
    "utility",
    "forget_recited",
    "forget_rouge",
    "forget_verbmem",
    "retain_rouge",
    "retain_unchanged",
    "forget_probability",
    "forget_truth_ratio",
    "forget_extraction_strength",
    "mia_loss",
    "forget_untouched_positions",
    "retain_untouched_positions",
)


def write_report(
    rows: Sequence[ModelFigures], out: Path, *, settings: dict[str, Any], notes: Sequence[str] = ()
) -> list[Path]:
    """Write report.json, report.md and the pictures below `out`; the pictures need matplotlib.

    Infinite numbers, which JSON cannot hold, are the strings "inf" and "-inf": a token that sampling mode does not keep
    has a log probability of -inf.

    Args:
        rows: at least one.
        out: made if it is not there; files of an earlier report are replaced.
        settings: what was asked for, written unchanged.
        notes: what to know of these rows, beside what is true of every report.

    Returns: the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    paths = [out / name for name in ("report.json", "report.md", "report.png")]
    body = {
        "settings": settings,
        "notes": [*NOTES, *notes],
        "rows": [
            {
                "model": row.model,
                "mode": row.mode,
                "forget_sets": row.in_force,
                "figures": {name: figure._asdict() for name, figure in row.figures.items()},
                "questions": row.questions,
            }
            for row in rows
        ],
    }
    paths[0].write_text(json.dumps(_plain(body), allow_nan=False, indent=1) + "\n", encoding="utf-8")
    paths[1].write_text(markdown(rows, notes), encoding="utf-8")
    _plot_figures(rows, paths[2])
    if any("truth_ratio" in row.questions["forget"] for row in rows):
        paths.append(out / "truth_ratios.png")
        _plot_truth_ratios(rows, paths[-1])
    return paths


def markdown(rows: Sequence[ModelFigures], notes: Sequence[str] = ()) -> str:
    """A table with a line for each figure and a column for each row of the report, and the notes below it."""
    header = ["figure", *(_label(row, rows) for row in rows)]
    cells = [[name.replace("_", " "), *(_cell(row.figures.get(name)) for row in rows)] for name in _names(rows)]
    return "\n".join(markdown_lines(header, cells)) + "\n\n" + "".join(f"- {note}\n" for note in (*NOTES, *notes))


def markdown_lines(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """A Markdown table's lines."""
    return [f"| {' | '.join(header)} |", "|---" * len(header) + "|", *(f"| {' | '.join(row)} |" for row in rows)]


def _names(rows: Sequence[ModelFigures]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row.figures))


def _label(row: ModelFigures, rows: Sequence[ModelFigures]) -> str:
    several = len({one.mode for one in rows}) > 1
    return f"{row.model} ({row.mode})" if several else row.model


def _cell(figure: Figure | None) -> str:
    if figure is None:
        return ""
    value = _number(figure.value)
    if figure.low is None or figure.high is None:
        return value
    low, high = _number(figure.low), _number(figure.high)
    return value if low == value == high else f"{value} ({low}-{high})"


def _number(value: float) -> str:
    return f"{value:.1e}" if 0 < abs(value) < 5e-4 else f"{value:.3f}"


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _plain(one) for key, one in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(one) for one in value]
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _plot_figures(rows: Sequence[ModelFigures], path: Path) -> None:
    from matplotlib.figure import Figure as Picture

    panels = [name for name in _PANELS if any(name in row.figures for row in rows)]
    leaks = [name for name in _names(rows) if name.startswith("forget_leak_at_")]
    panels += leaks[-1:]
    across = min(4, len(panels))
    down = math.ceil(len(panels) / across)
    picture = Picture(figsize=(2 + 3 * across, down * (1.2 + 0.3 * len(rows))), layout="constrained")
    grid = picture.subplots(down, across, sharey=True, squeeze=False)
    for axes in grid.flat[len(panels) :]:
        axes.axis("off")
    for axes, name in zip(grid.flat, panels, strict=False):
        for height, row in enumerate(rows):
            if figure := row.figures.get(name):
                ends = (figure.value if end is None else end for end in (figure.low, figure.high))
                axes.plot(list(ends), [height, height], color="C0", linewidth=2)
                axes.plot(figure.value, height, "o", color="C0")
        axes.set_title(name.replace("_", " "), fontsize=9)
        axes.set_xlim(-0.03, 1.03)
        axes.grid(axis="x", alpha=0.3)
        if name.startswith("mia_"):
            axes.axvline(0.5, color="0.5", linestyle="--", linewidth=1)
    grid[0][0].set_yticks(range(len(rows)), [_label(row, rows) for row in rows])
    grid[0][0].set_ylim(len(rows) - 0.5, -0.5)
    picture.savefig(path, dpi=120)


def _plot_truth_ratios(rows: Sequence[ModelFigures], path: Path) -> None:
    """What the Kolmogorov-Smirnov test compares: the largest vertical distance from the retain model."""
    from matplotlib.figure import Figure as Picture

    picture = Picture(figsize=(7, 4.5), layout="constrained")
    axes = picture.subplots()
    models = {row.model: row for row in rows}  # truth ratios are the same in both modes
    for model, row in models.items():
        found = row.questions["forget"].get("truth_ratio", [])
        ratios = np.sort([float(ratio) for ratio in found if ratio is not None])
        axes.step(ratios, np.arange(1, len(ratios) + 1) / len(ratios), where="post", label=model)
    axes.set_xscale("log")
    axes.xaxis.set_major_formatter("{x:g}")
    axes.xaxis.set_minor_formatter("{x:g}")
    axes.axvline(1.0, color="0.5", linestyle="--", linewidth=1)
    axes.set_xlabel("truth ratio R of the forget set (1 or more: ignorance)")
    axes.set_ylabel("share of questions")
    axes.grid(alpha=0.3)
    axes.legend()
    picture.savefig(path, dpi=120)
