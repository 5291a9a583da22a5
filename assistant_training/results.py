"""The results table for people and for machines: Markdown, JSON, and a picture of forgetting against utility."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any

# Column -> heading, and how a number of it is written.
COLUMNS = {
    "forget_quality": ("forget quality (KS p)", "{:.2g}"),
    "utility": ("utility", "{:.3f}"),
    "forget_rouge": ("ROUGE-L forget", "{:.2f}"),
    "retain_rouge": ("ROUGE-L retain", "{:.2f}"),
    "forget_extraction": ("extraction strength", "{:.2f}"),
    "leak_at_k": ("leak@k", "{:.1%}"),
    "forget_positions_open": ("forget positions open", "{:.1%}"),
    "retain_positions_untouched": ("retain positions untouched", "{:.1%}"),
    "unseen_positions_untouched": ("of unseen authors", "{:.1%}"),
    "seconds_per_epoch": ("seconds per epoch", "{:.2f}"),
    "trainable": ("trained weights", "{:,.0f}"),
}


def summarize(rows: Sequence[dict[str, Any]]) -> dict[str, dict[str, dict[str, float]]]:
    """Model -> figure -> its median, lowest and highest over the seeds, in the order of the rows."""
    models = dict.fromkeys(str(row["model"]) for row in rows)
    table: dict[str, dict[str, dict[str, float]]] = {model: {} for model in models}
    for model, figures in table.items():
        mine = [row for row in rows if row["model"] == model]
        for name in dict.fromkeys(key for row in mine for key in row if key not in ("model", "seed")):
            values = [float(row[name]) for row in mine if name in row]
            figures[name] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return table


def markdown(rows: Sequence[dict[str, Any]]) -> str:
    """A table of medians over seeds; the range in brackets where it does not round to the median."""
    lines = [
        "| model | " + " | ".join(heading for heading, _ in COLUMNS.values()) + " |",
        "|---" * (1 + len(COLUMNS)) + "|",
    ]
    for model, figures in summarize(rows).items():
        cells = [_cell(figures.get(name), form) for name, (_, form) in COLUMNS.items()]
        lines.append(f"| {model} | " + " | ".join(cells) + " |")
    seeds = sorted({row["seed"] for row in rows})
    lines.append(f"\nMedian over {len(seeds)} seeds ({', '.join(map(str, seeds))}), lowest and highest in brackets.")
    return "\n".join(lines) + "\n"


def write_results(rows: Sequence[dict[str, Any]], out: Path) -> list[Path]:
    """Write results.md, results.json and results.png below `out`; the picture needs matplotlib.

    Returns: the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    (out / "results.md").write_text(markdown(rows), encoding="utf-8")
    (out / "results.json").write_text(json.dumps({"rows": list(rows), "summary": summarize(rows)}, indent=1) + "\n")
    _plot(rows, out / "results.png")
    return [out / name for name in ("results.md", "results.json", "results.png")]


def _cell(figure: dict[str, float] | None, form: str) -> str:
    if figure is None:
        return ""
    median, low, high = (form.format(figure[key]) for key in ("median", "low", "high"))
    return median if low == median == high else f"{median} ({low}-{high})"


def _plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for model, figures in summarize(rows).items():
        x, y = figures["utility"], figures["forget_quality"]
        floor = 1e-12  # a p-value of 0 has no place on a logarithmic axis
        spread = [[max(v["median"], floor) - max(v["low"], floor)] for v in (x, y)]
        above = [[max(v["high"], floor) - max(v["median"], floor)] for v in (x, y)]
        point = (max(x["median"], floor), max(y["median"], floor))
        axes.errorbar(*point, xerr=[spread[0], above[0]], yerr=[spread[1], above[1]], fmt="o", capsize=3)
        axes.annotate(model, point, textcoords="offset points", xytext=(6, 4))
    axes.set_yscale("log")
    axes.set_xlabel("model utility (harmonic mean of nine, higher is better)")
    axes.set_ylabel("forget quality (KS p-value, higher is better)")
    axes.set_title("TOFU: what is forgotten, and what is left; medians and ranges over seeds")
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=120)
