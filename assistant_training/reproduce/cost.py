"""What training costs: time an assistant's epochs, and NPO's and assistants' on a target whose layers dominate."""

from __future__ import annotations

import json
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.tofu import Benchmark
from unlearngate.assistant_training.demo.target import TargetSettings, new_target, train_tokenizer
from unlearngate.assistant_training.reproduce.baselines import Unlearned, UnlearnSettings, unlearn
from unlearngate.assistant_training.train.run_files import LOG_FILE, RunFiles
from unlearngate.assistant_training.train.settings import AssistantSettings
from unlearngate.assistant_training.train.uld import train_assistant
from unlearngate.files import complete_lines

COST_FILE = "cost.jsonl"


def train_timed(
    target: Any,
    tokenizer: Any,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    settings: AssistantSettings,
    *,
    epoch_answers: int,
    seed: int,
    progress: Progress,
) -> tuple[Any, dict[str, float]]:
    """Train an assistant and measure its cost.

    Args:
        target: frozen.
        tokenizer: the target's.
        forget: what the assistant is to know.
        retain: what it is not to know.
        settings: its shape and training.
        epoch_answers: answers that count as an epoch; the assistant's own passes over its data have other sizes.
        seed: of the training.
        progress: shows how far it is.

    Returns: the assistant; `seconds_per_epoch`, of the steps alone, `seconds_once`, before the first step (drawing
        conversations, and the layers before a tap), `seconds` in all, and `trainable` weights.
    """
    torch.manual_seed(seed)
    started = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        run = RunFiles(Path(folder), {"settings": asdict(settings)}, checkpoint_every=1_000_000)
        assistant = train_assistant(
            *(target, tokenizer, forget, retain, settings), model_id="tofu", seed=seed, progress=progress, run=run
        )
        seconds = time.monotonic() - started
        last = json.loads(complete_lines(Path(folder) / LOG_FILE)[-1])
    epochs = last["step"] * (settings.forget_batch + settings.retain_batch) / epoch_answers
    return assistant, {
        "seconds_per_epoch": last["seconds"] / epochs,
        "seconds_once": seconds - last["seconds"],
        "seconds": seconds,
        "trainable": sum(weight.numel() for weight in assistant.parameters() if weight.requires_grad),
    }


def cost_of(tuned: Unlearned, settings: UnlearnSettings) -> dict[str, float]:
    """The same figures for a tuned copy of the target."""
    return {
        "seconds_per_epoch": tuned.seconds_per_epoch,
        "seconds": tuned.seconds_per_epoch * settings.epochs,
        "trainable": tuned.num_trainable,
    }


def measure_cost(
    benchmark: Benchmark,
    out: Path,
    target: TargetSettings,
    assistants: dict[str, AssistantSettings],
    npo: UnlearnSettings,
    *,
    rounds: int = 3,
    device: str,
    progress: Progress,
) -> list[dict[str, Any]]:
    """Time NPO's epochs and the assistants', in turn, on an untrained target: time does not depend on what is known.

    An epoch is every forget answer once, and as many retain answers. OUT/cost.jsonl keeps what is done.

    Args:
        benchmark: whose answers are trained on.
        out: a folder.
        target: its size.
        assistants: by name.
        npo: what they are compared with.
        rounds: times everything is measured.
        device: where.
        progress: shows how far it is.

    Returns: a row for each round and model; its "seed" is the round's number.
    """
    path = out / COST_FILE
    rows: list[dict[str, Any]] = [json.loads(line) for line in complete_lines(path)]
    done = {(row["seed"], row["model"]) for row in rows}
    wanted = [(index, name) for index in range(rounds) for name in ("NPO", *assistants)]
    if done >= set(wanted):
        return rows
    tokenizer = train_tokenizer(benchmark.learned, target)
    torch.manual_seed(0)
    model = new_target(tokenizer, target).to(device).requires_grad_(False).eval()
    forget = benchmark.forget_pairs
    retain = benchmark.split_retain()[0][: len(forget)]
    for index, name in wanted:
        if (index, name) in done:
            continue
        if name == "NPO":
            tuned = unlearn(model, tokenizer, name, forget, retain, seed=index, progress=progress, settings=npo)
            cost = cost_of(tuned, npo)
        else:
            _, cost = train_timed(
                *(model, tokenizer, forget, retain, assistants[name]),
                epoch_answers=2 * len(forget),
                seed=index,
                progress=progress,
            )
        rows.append({"seed": index, "model": name, **cost})
        with path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(rows[-1]) + "\n")
    return rows
