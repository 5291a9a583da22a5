"""The results table for people and for machines: Markdown, JSON, and a picture of forgetting against utility."""

from __future__ import annotations

import json
import statistics
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

from unlearngate.assistant_training.evaluate.report import markdown_lines

Summary = dict[str, dict[str, dict[str, float]]]

# Table -> column -> heading and number format.
TABLES = {
    "What is forgotten": {
        "forget_quality": ("forget quality (KS p)", "{:.2g}"),
        "forget_distance": ("KS distance", "{:.2f}"),
        "forget_rouge": ("ROUGE-L", "{:.2f}"),
        "forget_probability": ("probability", "{:.2f}"),
        "forget_extraction": ("extraction strength", "{:.2f}"),
        "leak_at_k": ("leak@4", "{:.1%}"),
        "membership_min_k_score": ("Min-K% AUC", "{:.2f}"),
        "forget_positions_open": ("positions open", "{:.1%}"),
    },
    "What is kept": {
        "utility": ("utility", "{:.3f}"),
        "utility_share": ("of the target's", "{:.1%}"),
        "retain_rouge": ("ROUGE-L retain", "{:.2f}"),
        "retain_probability": ("probability retain", "{:.2f}"),
        "retain_positions_untouched": ("positions untouched", "{:.1%}"),
        "unseen_utility": ("utility, unseen authors", "{:.3f}"),
        "unseen_positions_untouched": ("positions untouched, unseen authors", "{:.1%}"),
    },
    "What it costs": {
        "seconds_per_epoch": ("seconds an epoch", "{:.2f}"),
        "epoch_of_npo": ("of NPO's epoch", "{:.3f}"),
        "seconds_once": ("seconds before the first", "{:.1f}"),
        "seconds": ("seconds in all", "{:.0f}"),
        "trainable": ("trained weights", "{:,.0f}"),
    },
}
_REFERENCES = ("target", "retain model")


class Goal(NamedTuple):
    """A goal, what the table shows, and whether that meets it."""

    text: str
    measured: float
    met: bool


def summarize(rows: Sequence[dict[str, Any]]) -> Summary:
    """Model -> figure -> its median, lowest and highest over the seeds, in the order of the rows."""
    models = dict.fromkeys(str(row["model"]) for row in rows)
    table: Summary = {model: {} for model in models}
    for model, figures in table.items():
        mine = [row for row in _with_shares(rows) if row["model"] == model]
        for name in dict.fromkeys(key for row in mine for key in row if key not in ("model", "seed")):
            values = [float(row[name]) for row in mine if name in row]
            figures[name] = {"median": statistics.median(values), "low": min(values), "high": max(values)}
    return table


def goals(summary: Summary, costs: Summary) -> list[Goal]:
    """The goals for assistants, on medians over the seeds; goals whose models the tables lack are left out.

    Args:
        summary: of the results' rows.
        costs: of the rows of a larger target, if its costs were measured.
    """
    best = max((f["forget_quality"]["median"] for m, f in summary.items() if m not in _REFERENCES), default=0.0)
    wanted = [
        (summary, "ULD + gate", "utility_share", "utility, of the target's, at least", 0.99),
        (summary, "ULD + gate", "forget_quality", "forget quality, at least the best other's", best),
        (summary, "ULD + gate", "unseen_positions_untouched", "positions of unseen authors untouched, at least", 0.99),
    ]
    for table in (summary, costs):
        # NPO trains every weight, so its count is the target's size.
        size = f"{table['NPO']['trainable']['median'] / 1e6:.0f} M weights" if "NPO" in table else ""
        for model, most in (("ULD", 1 / 3), ("ULD tapped", 0.1)):
            wanted.append((table, model, "epoch_of_npo", f"seconds an epoch, of NPO's, {size}, at most", most))
    found = []
    for table, model, figure, text, threshold in wanted:
        if figure in table.get(model, {}):
            measured = table[model][figure]["median"]
            met = measured <= threshold if text.endswith("at most") else measured >= threshold
            found.append(Goal(f"{model}: {text} {threshold:.3g}", measured, met))
    return found


def markdown(rows: Sequence[dict[str, Any]], costs: Sequence[dict[str, Any]] = ()) -> str:
    """Tables of medians over seeds, with the range in brackets unless it rounds to the median; then the goals.

    Args:
        rows: of `reproduce`.
        costs: of `measure_cost`.
    """
    summary, cost_summary = summarize(rows), summarize(costs)
    lines = [line for title, columns in TABLES.items() for line in markdown_table(title, columns, summary)]
    if costs:
        lines += markdown_table("What it costs on a larger target, untrained", TABLES["What it costs"], cost_summary)
    seeds = sorted({row["seed"] for row in rows})
    count = f"{len(seeds)} seed{'s' * (len(seeds) != 1)}"
    lines.append(f"Medians over {count} ({', '.join(map(str, seeds))}), lowest and highest in brackets.\n")
    found = [[g.text, f"{g.measured:.3g}", "met" if g.met else "missed"] for g in goals(summary, cost_summary)]
    lines += markdown_lines(["goal, on medians", "measured", ""], found)
    return "\n".join(lines) + "\n"


def write_results(
    rows: Sequence[dict[str, Any]], out: Path, costs: Sequence[dict[str, Any]] = (), **more: Any
) -> list[Path]:
    """Write results.md, results.json (with `more`) and results.png below `out`; the picture needs matplotlib.

    Returns: the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    summary, cost_summary = summarize(rows), summarize(costs)
    (out / "results.md").write_text(markdown(rows, costs), encoding="utf-8")
    machines = {
        **more,
        "goals": [goal._asdict() for goal in goals(summary, cost_summary)],
        "summary": summary,
        "costs": cost_summary,
        "rows": list(rows),
        "cost_rows": list(costs),
    }
    (out / "results.json").write_text(json.dumps(machines, indent=1) + "\n")
    _plot(rows, out / "results.png")
    return [out / name for name in ("results.md", "results.json", "results.png")]


def markdown_table(title: str, columns: dict[str, tuple[str, str]], summary: Summary) -> list[str]:
    """One table of medians as Markdown; models without any of its figures have no line."""
    cells = {
        model: [_cell(figures.get(name), form) for name, (_, form) in columns.items()]
        for model, figures in summary.items()
    }
    header = ["model", *(heading for heading, _ in columns.values())]
    rows = [[model, *own] for model, own in cells.items() if any(own)]
    return [f"**{title}**", "", *markdown_lines(header, rows), ""]


def _with_shares(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows, each also measured against its own seed's target and NPO."""
    by_model = {(row["seed"], row["model"]): row for row in rows}
    shared = []
    for row in rows:
        target, npo = (by_model.get((row["seed"], name), {}) for name in ("target", "NPO"))
        row = dict(row)
        if target.get("utility"):
            row["utility_share"] = row["utility"] / target["utility"]
        if "seconds_per_epoch" in row and "seconds_per_epoch" in npo:
            row["epoch_of_npo"] = row["seconds_per_epoch"] / npo["seconds_per_epoch"]
        shared.append(row)
    return shared


def _cell(figure: dict[str, float] | None, form: str) -> str:
    if figure is None:
        return ""
    median, low, high = (form.format(figure[key]) for key in ("median", "low", "high"))
    return median if low == median == high else f"{median} ({low}-{high})"


def _plot(rows: Sequence[dict[str, Any]], path: Path) -> None:
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9, 6), layout="constrained")
    axes = figure.add_subplot()
    axes.set_prop_cycle(color=[colormaps["tab20"](index) for index in range(20)])
    floor = 1e-12  # a p-value of 0 has no place on a logarithmic axis
    for model, figures in summarize(rows).items():
        x, y = figures["utility"], figures["forget_quality"]
        point = (max(x["median"], floor), max(y["median"], floor))
        below = [[max(v["median"], floor) - max(v["low"], floor)] for v in (x, y)]
        above = [[max(v["high"], floor) - max(v["median"], floor)] for v in (x, y)]
        marker = "s" if model in _REFERENCES else "*" if model.startswith("ULD") else "o"
        axes.errorbar(*point, xerr=[below[0], above[0]], yerr=[below[1], above[1]], fmt=marker, capsize=3, label=model)
    axes.set_yscale("log")
    axes.set_xlabel("model utility (harmonic mean of nine, higher is better)")
    axes.set_ylabel("forget quality (KS p-value, higher is better)")
    axes.set_title("TOFU: what is forgotten, and what is left; medians and ranges over seeds")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.0, 0.5))
    figure.savefig(path, dpi=120)
