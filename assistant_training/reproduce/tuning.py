"""Choose every method's settings on another forget set than the results table's, before the table is made.

OUT/tuning.jsonl     one line per method and setting, appended as they are done; existing lines are not done again
OUT/tuned.json       what was chosen

One rule for all: the largest (1 - ROUGE-L of the forget answers) x (1 - KS distance) x utility, of one seed, on another
forget set's target. The factors: what is recited, how far truth ratios are from a retain model's, what is kept.
Forget quality itself cannot tell bad settings from worse ones: far from the goal its p-values are all about 0.
Of equals, the first in the grid's order.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.tofu import Benchmark
from unlearngate.assistant_training.reproduce.baselines import UnlearnSettings
from unlearngate.assistant_training.reproduce.models import train_models
from unlearngate.assistant_training.reproduce.run import ReproduceSettings, Table, TableRow
from unlearngate.errors import DataError
from unlearngate.files import complete_lines

TUNING_FILE = "tuning.jsonl"
TUNED_FILE = "tuned.json"
SEED = 1000  # far from the table's
LEARNING_RATES = (0.3, 1.0, 3.0)  # factors on a method's initial learning rate
WEIGHTS = (0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)


def tune(
    benchmark: Benchmark,
    out: Path,
    *,
    settings: ReproduceSettings,
    progress: Progress,
    augmented: Sequence[QAPair] = (),
) -> tuple[list[TableRow], Path]:
    """Try every setting that OUT/tuning.jsonl does not hold yet, and write OUT/tuned.json.

    Methods are tried with several learning rates; assistants, with their gate, with several weights.

    Args:
        benchmark: of another forget set than the table's.
        out: where models and rows go.
        settings: where the grids start from.
        progress: shows how far it is.
        augmented: as in `reproduce`.

    Returns: the rows, and the path of what was chosen.
    Raises: TrainingError if a training fails; everything done before is kept.
    """
    models = train_models(
        benchmark,
        out / f"seed-{SEED}",
        settings.target,
        seed=SEED,
        device=settings.device,
        progress=progress,
    )
    path = out / TUNING_FILE
    rows: list[TableRow] = [json.loads(line) for line in complete_lines(path)]
    done = {_key(row) for row in rows}
    for row in _tries(Table(benchmark, models, settings, SEED, progress, augmented), settings, done):
        rows.append(row)
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
    chosen = best_settings(rows)
    (out / TUNED_FILE).write_text(json.dumps(chosen, indent=1) + "\n", encoding="utf-8")
    return rows, out / TUNED_FILE


def best_settings(rows: Sequence[TableRow]) -> dict[str, dict[str, float]]:
    """Method -> its settings that score best."""
    best: dict[str, TableRow] = {}
    for row in rows:
        if row["model"] not in best or _score(row) > _score(best[row["model"]]):
            best[row["model"]] = row
    return {name: row["tried"] for name, row in best.items()}


def with_tuned(settings: ReproduceSettings, path: Path) -> ReproduceSettings:
    """The settings, with those that a tuning chose.

    Raises: DataError if the file is not one that `tune` wrote.
    """
    try:
        chosen: dict[str, dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))
        return replace(
            settings,
            assistants={name: replace(own, **chosen.get(name, {})) for name, own in settings.assistants.items()},
            methods={name: replace(own, **chosen.get(name, {})) for name, own in settings.methods.items()},
        )
    except (OSError, ValueError, TypeError, AttributeError) as error:
        raise DataError(f"{path}: is not what `unlearngate reproduce --tune` writes ({error})") from error


def _tries(table: Table, settings: ReproduceSettings, done: set[str]) -> Iterator[TableRow]:
    for name, own in settings.assistants.items():
        wanted = [w for w in WEIGHTS if _key({"model": name, "tried": {"weight": w}}) not in done]
        if not wanted:
            continue
        assistant, _ = table.trained_assistant(own)
        gate_nats = table.gate_nats(assistant, own)
        for weight in wanted:
            model = table.composed(assistant, replace(own, weight=weight), gate_nats)
            yield {"tried": {"weight": weight}, **table.row(name, model, {})}
    for name, start in settings.methods.items():
        for tuned in _grid(start):
            tried = {"learning_rate": tuned.learning_rate}
            if _key({"model": name, "tried": tried}) not in done:
                yield {"tried": tried, **table.method_row(name, tuned)}


def _grid(start: UnlearnSettings) -> Iterator[UnlearnSettings]:
    for factor in LEARNING_RATES:
        yield replace(start, learning_rate=start.learning_rate * factor)


def _score(row: TableRow) -> float:
    return float((1.0 - row["forget_rouge"]) * (1.0 - row["forget_distance"]) * row["utility"])


def _key(row: TableRow) -> str:
    return json.dumps([row["model"], row["tried"]], sort_keys=True)
