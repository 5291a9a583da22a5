"""What an assistant's depth costs in quality: the results table's figures against its number of layers.

OUT/depths.jsonl     one line per seed and assistant; OUT/seed-N/ are the models of the results table

Only the depth differs. Assistants that start at the embeddings have the settings of the table's "ULD"; those that run
from a layer of the target to its last have those of "ULD tapped". Weights and epochs are the same too.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from unlearngate.assistant_training.reproduce.results import TABLES, Summary, markdown_table, summarize
from unlearngate.assistant_training.reproduce.run import GATED, ReproduceSettings, TableRow
from unlearngate.assistant_training.train.settings import AssistantSettings

DEPTHS_FILE = "depths.jsonl"
EMBEDDINGS, TAPPED = "from the embeddings", "tapped"
# The picture's panels: figure -> label and perfect value.
_PANELS = {
    "forget_distance": ("KS distance from the retain model (lower is better)", 0.0),
    "utility_share": ("utility, of the target's", 1.0),
    "unseen_positions_untouched": ("positions untouched, unseen authors", 1.0),
}


def name_of(start: str, num_layers: int) -> str:
    """An assistant's name, as its row has it without " + gate"."""
    return f"{num_layers} layer{'s' * (num_layers != 1)}, {start}"


def with_depths(settings: ReproduceSettings) -> ReproduceSettings:
    """The settings with assistants of several depths in place of what the table compares, all with their gates."""
    total = settings.target.num_layers
    assistants: dict[str, AssistantSettings] = {}
    for num_layers in depths(total):
        of_start = {
            EMBEDDINGS: replace(settings.assistants["ULD"], num_layers=num_layers),
            TAPPED: replace(settings.assistants["ULD tapped"], num_layers=num_layers, tap_layer=total - num_layers),
        }
        assistants |= {name_of(start, num_layers): own for start, own in of_start.items()}
    return replace(settings, assistants=assistants, methods={}, gates=(GATED,))


def depths(num_layers: int) -> list[int]:
    """One layer, a sixth, a third and half of the target's."""
    return sorted({1, *(max(1, num_layers // part) for part in (6, 3, 2))})


def write_depths(rows: Sequence[TableRow], out: Path, num_layers: int) -> list[Path]:
    """Write depths.md, depths.json and depths.png below `out`; the picture needs matplotlib.

    Returns: the files.
    """
    summary = summarize(rows)
    del summary["retain model"]  # it is what the others are measured against
    kept = ("What is forgotten", "What is kept")
    lines = [line for title in kept for line in markdown_table(title, TABLES[title], summary)]
    (out / "depths.md").write_text("\n".join(lines), encoding="utf-8")
    machines = {"summary": summary, "rows": list(rows)}
    (out / "depths.json").write_text(json.dumps(machines, indent=1) + "\n", encoding="utf-8")
    _plot(summary, out / "depths.png", num_layers)
    return [out / name for name in ("depths.md", "depths.json", "depths.png")]


def _plot(summary: Summary, path: Path, num_layers: int) -> None:
    from matplotlib.figure import Figure

    figure = Figure(figsize=(12, 4), layout="constrained")
    for axes, (name, (title, perfect)) in zip(figure.subplots(1, len(_PANELS)), _PANELS.items(), strict=True):
        for start in (EMBEDDINGS, TAPPED):
            found = {m: summary.get(name_of(start, m) + GATED, {}).get(name) for m in depths(num_layers)}
            points = {m: figures for m, figures in found.items() if figures}
            middle = [figures["median"] for figures in points.values()]
            below = [figures["median"] - figures["low"] for figures in points.values()]
            above = [figures["high"] - figures["median"] for figures in points.values()]
            axes.errorbar(list(points), middle, yerr=[below, above], marker="o", capsize=3, label=start)
        axes.axhline(perfect, color="0.5", linestyle="--", linewidth=1)
        axes.set_xlabel(f"layers an assistant runs, of {num_layers}")
        axes.set_title(title, fontsize=9)
        axes.grid(alpha=0.3)
        axes.legend()
    figure.savefig(path, dpi=120)
