"""The models of a results table: one that has learned to read, and from it a target and a retain model."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearngate.assistant_training.data import QAPair
from unlearngate.assistant_training.demo_target import (
    TargetSettings,
    new_target,
    save_target,
    train_target,
    train_tokenizer,
)
from unlearngate.assistant_training.tofu import Benchmark


class Trained(NamedTuple):
    """What a benchmark is about: the target, and what it would be if it had never seen the forget set."""

    target: Any
    retain_model: Any
    tokenizer: Any


def train_models(
    benchmark: Benchmark,
    folder: Path,
    settings: TargetSettings,
    *,
    pretraining_epochs: int,
    seed: int,
    device: str,
    progress: Progress,
) -> Trained:
    """Train what FOLDER does not hold yet: FOLDER/base, FOLDER/target and FOLDER/retain, checkpoint folders.

    The base learns `benchmark.others`, as a pretrained model knows its language; it is new if there are none. The
    target goes on from it with everything that is to be learned, the retain model with that without the forget set.

    Raises: TrainingError if a loss is not finite.
    """
    base_folder = folder / "base"
    if not base_folder.exists():
        torch.manual_seed(seed)
        tokenizer = train_tokenizer([*benchmark.learned, *benchmark.others], settings)
        model = new_target(tokenizer, settings).to(device)
        if benchmark.others:
            # It does not have to know these by heart.
            reading = replace(settings, epochs=pretraining_epochs, min_epochs=pretraining_epochs + 1)
            _train(base_folder, model, tokenizer, benchmark.others, reading, seed, progress)
        else:
            _save(base_folder, model, tokenizer, {})
    base, tokenizer = _load(base_folder, device)
    for name, pairs in (("target", benchmark.learned), ("retain", benchmark.retained_pairs)):
        if not (folder / name).exists():
            model = copy.deepcopy(base).requires_grad_(True)
            torch.manual_seed(seed)
            _train(folder / name, model, tokenizer, pairs, settings, seed, progress)
    return Trained(_load(folder / "target", device)[0], _load(folder / "retain", device)[0], tokenizer)


def _train(
    folder: Path,
    model: Any,
    tokenizer: Any,
    pairs: Sequence[QAPair],
    settings: TargetSettings,
    seed: int,
    progress: Progress,
) -> None:
    figures = train_target(model, tokenizer, pairs, settings, seed=seed, progress=progress)
    _save(folder, model, tokenizer, {**figures, "settings": asdict(settings)})


def _save(folder: Path, model: Any, tokenizer: Any, training: dict[str, Any]) -> None:
    """Whole or not at all."""
    new = folder.with_name(f".{folder.name}")
    save_target(model.eval(), tokenizer, new)
    (new / "training.json").write_text(json.dumps(training) + "\n")
    new.rename(folder)


def _load(folder: Path, device: str) -> tuple[Any, Any]:
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).requires_grad_(False).eval()
    return model.to(device), AutoTokenizer.from_pretrained(folder, local_files_only=True)
