"""What a benchmark found: a row for each combination of sets, as a table side by side, as JSON and as Markdown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from unlearngate.assistant_training.evaluate.metrics import bootstrap_interval, wilson_interval
from unlearngate.assistant_training.evaluate.report import markdown_lines
from unlearngate.files import write_whole


class Figure(NamedTuple):
    """A number, how many things it is of, and its 95 % interval where there is one."""

    name: str
    value: float
    of: int
    low: float | None = None
    high: float | None = None


class Row(NamedTuple):
    """What was found under one combination of sets; () is the plain target. `items` is a line for each thing asked."""

    forget_sets: tuple[str, ...]
    figures: list[Figure]
    items: list[dict[str, Any]]

    @property
    def name(self) -> str:
        """As a table's head."""
        return "+".join(self.forget_sets) or "target"


def accuracy(name: str, right: Sequence[bool]) -> Figure:
    """A share of right answers with Wilson's interval."""
    return Figure(name, sum(right) / len(right), len(right), *wilson_interval(sum(right), len(right)))


def mean(name: str, values: Sequence[float], *, seed: int = 0) -> Figure:
    """A mean with its bootstrap interval over what was asked."""
    found = bootstrap_interval(values, rng=np.random.default_rng(seed))
    return Figure(name, found.estimate, len(values), found.low, found.high)


def cells(rows: Sequence[Row]) -> tuple[list[str], list[list[str]]]:
    """The head and the lines of the table: a line for each figure, a column for each row."""
    header = ["figure", "of", *(row.name for row in rows)]
    lines = [
        [figure.name, str(figure.of), *(_cell(row.figures[at]) for row in rows)]
        for at, figure in enumerate(rows[0].figures)
    ]
    return header, lines


def write_results(
    rows: Sequence[Row], out: Path, *, title: str, settings: dict[str, Any], notes: Sequence[str]
) -> list[Path]:
    """Write results.json, with every item, and results.md; only the owner may read the former, which holds the data.

    Returns: the files.
    """
    out.mkdir(parents=True, exist_ok=True)
    body = {
        "benchmark": title,
        "settings": settings,
        "notes": list(notes),
        "rows": [
            {
                "forget_sets": list(row.forget_sets),
                "figures": [figure._asdict() for figure in row.figures],
                "items": row.items,
            }
            for row in rows
        ],
    }
    paths = [out / "results.json", out / "results.md"]
    write_whole(paths[0], json.dumps(body, ensure_ascii=False, allow_nan=False, indent=1) + "\n", mode=0o600)
    table = "\n".join(markdown_lines(*cells(rows)))
    write_whole(paths[1], f"# {title}\n\n{table}\n\n" + "".join(f"- {note}\n" for note in notes))
    return paths


def _cell(figure: Figure) -> str:
    if figure.low is None or figure.high is None:
        return f"{figure.value:.3f}"
    return f"{figure.value:.3f} ({figure.low:.3f}-{figure.high:.3f})"
