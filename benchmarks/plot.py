"""Plot a benchmark's CSV: time over rows, a panel for each vocab, a line for each provider."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Annotated

import matplotlib
import typer
from matplotlib.axes import Axes
from matplotlib.figure import Figure

NUM_SETS = 1
COLOURS = {
    "reference": "#7f7f7f",
    "compiled": "#1f77b4",
    "paper": "#ff7f0e",
    "ours": "#d62728",
    "copy": "#000000",
    "empty": "#9467bd",
}
_FLOORS = {"copy", "empty"}
_GRAPH = "-graph"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    path: Annotated[Path, typer.Argument(metavar="CSV", exists=True, dir_okay=False, help="written by kernels.py")],
) -> None:
    """Plot the cases with one forget set in force in every row, as SVG and PNG beside the CSV.

    Solid: each run launched by itself. Dashed: as CUDA graphs. Dotted: the floors, a copy of the minimal bytes and an
    empty launch. Bands: 20th to 80th percentile.

    Example:  python benchmarks/plot.py build/bench/kernels.csv
    """
    try:
        written = plot(path)
    except ValueError as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
    for figure in written:
        typer.echo(f"{figure} is written")


def plot(path: Path) -> list[Path]:
    """Draw the CSV.

    Returns: the files that were written.
    Raises: ValueError if it holds nothing to draw.
    """
    with path.open(newline="") as file:
        lines = [line for line in csv.DictReader(file) if line["sets"] == str(NUM_SETS)]
    timed = [line for line in lines if line["median_us"]]
    if not timed:
        raise ValueError(f"{path} holds no timed case with {NUM_SETS} set in every row; run kernels.py with --sets 1")
    vocabs = sorted({int(line["V"]) for line in timed})
    first = timed[0]
    figure = Figure(figsize=(4 + 4 * len(vocabs), 5), layout="constrained")
    panels = figure.subplots(1, len(vocabs), sharey=True, squeeze=False)[0]
    for panel, vocab_size in zip(panels, vocabs, strict=True):
        _draw(panel, vocab_size, [line for line in timed if int(line["V"]) == vocab_size])
    panels[0].set_ylabel("time of one call, microseconds (median)")
    figure.suptitle(
        f"compose with one forget set in every row, on {first['device']}\n"
        f"target {first['target_dtype']}, assistants {first['assistant_dtype']}, host threads: {first['threads']}, "
        f"torch {first['torch']}, commit {first['commit']}, {first['date'][:10]}",
        fontsize=9,
    )
    handles = {label: line for panel in panels for line, label in zip(*panel.get_legend_handles_labels(), strict=True)}
    figure.legend(list(handles.values()), list(handles), loc="outside right center", frameon=False, fontsize=9)
    written = [path.with_suffix(suffix) for suffix in (".svg", ".png")]
    # Fixed ids and no date: the same CSV gives the same file.
    with matplotlib.rc_context({"svg.hashsalt": "unlearngate"}):
        figure.savefig(written[0], metadata={"Date": None})
    figure.savefig(written[1], dpi=160)
    return written


def _draw(panel: Axes, vocab_size: int, lines: list[dict[str, str]]) -> None:
    for provider in dict.fromkeys(line["provider"] for line in lines):
        points = sorted((line for line in lines if line["provider"] == provider), key=lambda line: int(line["R"]))
        rows = [int(line["R"]) for line in points]
        low, median, high = ([float(line[key]) for line in points] for key in ("p20_us", "median_us", "p80_us"))
        name = provider.removesuffix(_GRAPH)
        style = "--" if provider.endswith(_GRAPH) else ":" if name in _FLOORS else "-"
        colour = COLOURS.get(name, "#2ca02c")
        width = 2.2 if name == "ours" else 1.3
        panel.plot(rows, median, style, color=colour, marker="o", markersize=3, linewidth=width, label=provider)
        panel.fill_between(rows, low, high, color=colour, alpha=0.12, linewidth=0)
    ticks = sorted({int(line["R"]) for line in lines})
    panel.set(xscale="log", yscale="log", title=f"V = {vocab_size:,}", xlabel="rows R")
    panel.set_xticks(ticks, labels=[str(tick) for tick in ticks])
    panel.minorticks_off()
    panel.grid(alpha=0.3)


if __name__ == "__main__":
    app()
