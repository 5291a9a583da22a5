"""The models of a results table: a target, and a retain model that never saw the forget set."""

from __future__ import annotations

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearngate.assistant_training.data.tofu import Benchmark
from unlearngate.assistant_training.demo.target import (
    TargetSettings,
    new_target,
    save_target,
    train_target,
    train_tokenizer,
)
from unlearngate.errors import TrainingError

_ALMOST = 0.97  # the least accepted, as a share of `enough_known`, at which training stops


class TrainedModels(NamedTuple):
    """The target, and the model that it would be if it had never seen the forget set."""

    target: Any
    retain_model: Any
    tokenizer: Any


def train_models(
    benchmark: Benchmark,
    folder: Path,
    settings: TargetSettings,
    *,
    seed: int,
    device: str,
    progress: Progress,
) -> TrainedModels:
    """Train what FOLDER does not hold yet: FOLDER/target and FOLDER/retain, checkpoint folders, from scratch.

    The target learns all of the benchmark's pairs, the retain model all but the forget set; both have the same
    tokenizer and start from the same weights.

    Raises: TrainingError if a loss is not finite, or if a model does not know what it was taught: a table over it
    would say nothing about forgetting.
    """
    for name, pairs in (("target", benchmark.learned), ("retain", benchmark.retained_pairs)):
        if not (folder / name).exists():
            tokenizer = train_tokenizer(benchmark.learned, settings)
            torch.manual_seed(seed)
            model = new_target(tokenizer, settings).to(device)
            figures = train_target(model, tokenizer, pairs, settings, seed=seed, progress=progress)
            if figures["known"] < _ALMOST * settings.enough_known:
                raise TrainingError(
                    f"the {name} model knows {figures['known']:.0%} of its answers after {figures['epochs']:.0f} "
                    f"epochs, {settings.enough_known:.0%} are wanted; more epochs or another learning rate may reach it"
                )
            new = folder / f".{name}"
            save_target(model.eval(), tokenizer, new)
            (new / "training.json").write_text(json.dumps({**figures, "settings": asdict(settings)}) + "\n")
            new.rename(folder / name)
    return TrainedModels(
        _load(folder / "target", device), _load(folder / "retain", device), _tokenizer(folder / "target")
    )


def _load(folder: Path, device: str) -> Any:
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).requires_grad_(False).eval()
    return model.to(device)


def _tokenizer(folder: Path) -> Any:
    return AutoTokenizer.from_pretrained(folder, local_files_only=True)
