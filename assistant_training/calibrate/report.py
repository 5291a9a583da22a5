"""Report a sweep, for people and machines: Markdown, CSV, JSON, and a picture of forgetting against its cost."""

from __future__ import annotations

import csv
import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

from unlearngate.assistant_training.calibrate.selection import Choice
from unlearngate.assistant_training.calibrate.settings import Limits, forget_probability
from unlearngate.assistant_training.calibrate.sweep import Grid, Setting
from unlearngate.assistant_training.evaluate.report import markdown_lines
from unlearngate.manifest import Strength

HEADER = (
    *("", "weight", "keep ratio", "gate, nats", "forget p", "forget right", "forget recited", "facts told"),
    *("answers untouched", "retain untouched", "retain changed", "retain p lost", "retain cut", "passes"),
)
_LEAST = 1e-4  # where the picture's logarithmic axis ends


class Report(NamedTuple):
    """A sweep and its result.

    reference: the set's name and digest.
    counts: of answers and tokens measured, by name.
    plain: both files' figures with no set in force, at a strength of 0.
    before: what the set recommended.
    settings: of the whole grid, in the order of `Grid.strengths`.
    choice: the recommended setting or, if there is a reason, the nearest.
    decoded: figures of answers decoded at that setting, by name.
    proposal: the manifest of the set at that setting, without the digests of its files.
    reason: why it is not recommended.
    """

    reference: str
    counts: dict[str, int]
    grid: Grid
    limits: Limits
    plain: Setting
    before: Strength
    settings: Sequence[Setting]
    choice: Choice
    decoded: dict[str, float]
    proposal: dict[str, Any]
    reason: str | None


def table(report: Report) -> list[list[str]]:
    """The rows below HEADER: no set, the old recommendation, the new, and all weights at its keep ratio and gate."""
    focus = report.choice.setting
    before = [s for s in report.settings if s.strength == report.before]
    along = [s for s in report.settings if _elsewhere(s) == _elsewhere(focus)]
    named = [("no set", report.plain), *(("before", s) for s in before)]
    named += [("best" if report.reason else "chosen", focus), *(("", s) for s in along)]
    return [[name, *_cells(setting, report.limits)] for name, setting in named]


def markdown(report: Report, accept: str) -> str:
    """The table, what was asked for, and what was chosen; if that does not pass, why not.

    `accept` is the command that takes it all the same.
    """
    lines = [f"# Calibration of {report.reference}", "", *markdown_lines(HEADER, table(report))]
    counts = ", ".join(f"{count} {name.replace('_', ' ')}" for name, count in report.counts.items())
    lines += ["", f"{len(report.settings)} settings were measured on {counts}. {_limits(report.limits)}", ""]
    lines += markdown_lines(("decoded at this setting", ""), [[key, f"{v:.3f}"] for key, v in report.decoded.items()])
    if report.reason:
        lines += ["", f"No setting can be recommended: {report.reason}.", ""]
        lines += ["The best is in sweep.json under `proposal`. This takes it as it is:", "", f"    {accept}", ""]
        return "\n".join(lines)
    bounds = report.choice.bounds.model_dump()
    ranges = ", ".join(f"{name} {b['low']:g} to {b['high']:g}" for name, b in bounds.items())
    return "\n".join([*lines, "", f"Bounds, inside which every measured setting passes: {ranges}.", ""])


def write_report(report: Report, folder: Path, accept: str) -> list[Path]:
    """Write sweep.md, sweep.csv, sweep.json and sweep.png; the picture needs matplotlib.

    Args:
        report: the sweep and its result.
        folder: made if it is not there.
        accept: the command that takes the best setting although it does not pass; said only then.

    Returns: the files.
    """
    folder.mkdir(parents=True, exist_ok=True)
    rows = [{**setting.row(), "passes": report.limits.passes(setting)} for setting in report.settings]
    (folder / "sweep.md").write_text(markdown(report, accept), encoding="utf-8")
    with (folder / "sweep.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    passed = report.reason is None
    whole: dict[str, Any] = {
        "forget_set": report.reference,
        "counts": report.counts,
        "grid": report.grid._asdict(),
        "limits": asdict(report.limits),
        "recommended_before": report.before.model_dump(),
        "recommended": report.choice.setting.strength.model_dump() if passed else None,
        "bounds": report.choice.bounds.model_dump() if passed else None,
        "decoded": report.decoded,
        "reason": report.reason,
        "accept_with": None if passed else accept,
        "proposal": report.proposal,
        "no_set": report.plain.row(),
        "settings": rows,
    }
    (folder / "sweep.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    _plot(report, folder / "sweep.png")
    return [folder / f"sweep.{suffix}" for suffix in ("md", "csv", "json", "png")]


def _elsewhere(setting: Setting) -> tuple[float, float]:
    return setting.strength.keep_ratio, setting.strength.gate_nats


def _cells(setting: Setting, limits: Limits) -> list[str]:
    strength, forget, retain = setting
    if strength.weight == 0:
        strengths, passes = ["", "", ""], ""
    else:
        strengths = [f"{value:g}" for value in (strength.weight, strength.keep_ratio, strength.gate_nats)]
        passes = "yes" if limits.passes(setting) else "no"
    shares = (forget.right, forget.recited, forget.facts_told, retain.untouched_answers, retain.untouched)
    texts = ["" if value is None else f"{value:.1%}" for value in (*shares, retain.changed)]
    return [*strengths, f"{forget_probability(setting):.3g}", *texts, f"{retain.lost:.4f}", f"{retain.cut:.2%}", passes]


def _limits(limits: Limits) -> str:
    return (
        f"A setting passes with a forget probability of at most {limits.forget_probability:.3g} in both modes, at most "
        f"{limits.forget_recited:.1%} of the forget answers recited, facts told in at most "
        f"{limits.forget_facts_told:.1%} of them, at least {limits.retain_untouched_answers:.1%} of the retain answers "
        f"and {limits.retain_untouched:.1%} of their tokens untouched, and at most {limits.retain_lost:g} of their "
        f"probability lost. The recommended one uses at most {limits.margin:g} of the first three."
    )


def _plot(report: Report, path: Path) -> None:
    from matplotlib.figure import Figure

    focus, limits, grid = report.choice.setting, report.limits, report.grid
    figure = Figure(figsize=(12.5, 5.4), layout="constrained")
    by_gate, by_keep = figure.subplots(1, 2, sharey=True)
    # Left: what each gate costs, at the chosen keep ratio. Right: what weight and keep ratio do, at the chosen gate.
    for index, gate in enumerate(grid.gates_nats):
        line = [s for s in report.settings if _elsewhere(s) == (focus.strength.keep_ratio, gate)]
        retain = line[0].retain  # what the gate leaves alone is the same at every weight
        enough = (
            retain.untouched >= limits.retain_untouched and retain.untouched_answers >= limits.retain_untouched_answers
        )
        style = "o-" if enough else "o--"
        label = f"gate {gate:g}: {retain.untouched_answers:.1%} of answers untouched"
        chosen = gate == focus.strength.gate_nats
        _line(by_gate, [s.retain.lost for s in line], line, style, index / len(grid.gates_nats), label, chosen)
    for index, keep_ratio in enumerate(grid.keep_ratios):
        line = [s for s in report.settings if _elsewhere(s) == (keep_ratio, focus.strength.gate_nats)]
        chosen = keep_ratio == focus.strength.keep_ratio
        label = f"keep ratio {keep_ratio:g}"
        _line(by_keep, [s.strength.weight for s in line], line, "o-", index / len(grid.keep_ratios), label, chosen)
    by_gate.axvline(limits.retain_lost, color="black", linestyle=":", linewidth=1)
    by_gate.set_xscale("symlog", linthresh=0.01)
    by_gate.set_xlabel(
        "cost: probability of the retain answers that is lost\n"
        "(dotted: the limits; dashed: too little of the retain data is untouched)"
    )
    by_gate.set_ylabel("forgetting: probability of the forget answers, lower is better\n(the higher of both modes)")
    by_gate.set_title(f"Every gate, at keep ratio {focus.strength.keep_ratio:g}", fontsize=10)
    by_keep.set_xlabel("weight")
    by_keep.set_title(f"Every keep ratio, at gate {focus.strength.gate_nats:g} nats", fontsize=10)
    if report.reason is None:
        weights = report.choice.bounds.weight
        by_keep.axvspan(weights.low, weights.high, color="#2ca02c", alpha=0.15, label="bounds of the weight")
    for axes, x in ((by_gate, focus.retain.lost), (by_keep, focus.strength.weight)):
        axes.axhline(
            report.plain.forget.probability, color="gray", linestyle="--", linewidth=1, label="no set in force"
        )
        axes.axhline(limits.forget_probability, color="black", linestyle=":", linewidth=1, label="limit")
        margin = limits.margin * limits.forget_probability
        axes.axhline(margin, color="black", linestyle=":", linewidth=0.5, label="limit with its margin")
        star = {"marker": "*", "markersize": 17, "color": "#ffbf00", "markeredgecolor": "black", "linestyle": "none"}
        axes.plot([x], [_height(focus)], **star, zorder=5, label="best found" if report.reason else "recommended")
        axes.set_yscale("log")
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8, loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    strength = focus.strength
    figure.suptitle(
        f"{report.reference}: {'nothing can be recommended; best found:' if report.reason else 'recommended'} "
        f"weight {strength.weight:g}, keep ratio {strength.keep_ratio:g}, gate {strength.gate_nats:g} nats"
    )
    figure.savefig(path, dpi=120)


def _line(
    axes: Any, x: list[float], settings: Sequence[Setting], style: str, shade: float, label: str, chosen: bool
) -> None:
    from matplotlib import colormaps

    colour, width = ("#d62728", 2.6) if chosen else (colormaps["viridis"](shade), 1.3)
    axes.plot(x, [_height(s) for s in settings], style, color=colour, markersize=4, linewidth=width, label=label)


def _height(setting: Setting) -> float:
    return max(forget_probability(setting), _LEAST)
