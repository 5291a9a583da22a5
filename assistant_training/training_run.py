"""From a checkpoint folder and two files of questions to a forget set that can be served."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearngate.artefact import ForgetSet, data_digest
from unlearngate.assistant_training.data import QAPair, read_pairs
from unlearngate.assistant_training.objectives import TrainingError
from unlearngate.assistant_training.run_files import RunFiles
from unlearngate.assistant_training.trainer import AssistantSettings, fit
from unlearngate.manifest import NAME_PATTERN
from unlearngate.target import TargetIdentity, identify_target


@dataclass(frozen=True, slots=True)
class LoadedTarget:
    """A target that assistants can be trained on."""

    model: Any
    tokenizer: Any
    identity: TargetIdentity


def load_target(folder: Path, *, model_id: str | None = None, device: str | None = None) -> LoadedTarget:
    """Load a Hugging Face checkpoint folder as a frozen target.

    Args:
        folder: config.json, *.safetensors and a tokenizer with a chat template.
        model_id: the target's public name; the folder's name if None.
        device: "cpu", "cuda", ...; a GPU if there is one and None was given.

    Raises: ArtefactError if a file is missing; TrainingError if no assistant could be trained on it.
    """
    identity = identify_target(folder, model_id)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    if not getattr(tokenizer, "is_fast", False):
        raise TrainingError(f"{folder}: only a fast tokenizer (tokenizer.json) knows where in a text its tokens are")
    if tokenizer.chat_template is None:
        raise TrainingError(
            f"{folder}: the tokenizer has no chat template, so nobody knows how the server would put a question; "
            "add the one you will serve with as chat_template to tokenizer_config.json"
        )
    if tokenizer.eos_token_id is None:
        raise TrainingError(f"{folder}: the tokenizer has no end token; set eos_token in tokenizer_config.json")
    if tokenizer.pad_token_id is None:
        tokenizer.pad_token = tokenizer.eos_token  # never seen: padding is masked and unlabelled
    model = AutoModelForCausalLM.from_pretrained(folder, dtype="auto", local_files_only=True)
    if not hasattr(getattr(model, "model", None), "layers"):
        raise TrainingError(f"{folder}: {type(model).__name__} keeps its layers elsewhere than in model.layers")
    model.requires_grad_(False)
    model.to(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    return LoadedTarget(model.eval(), tokenizer, identity)


def train_forget_set(
    target: LoadedTarget,
    forget_file: Path,
    retain_file: Path,
    out: Path,
    settings: AssistantSettings,
    *,
    seed: int,
    progress: Progress,
    checkpoint_every: int = 50,
) -> ForgetSet:
    """Train an assistant, calibrate it, and write it as the forget set `out`, named like that folder.

    While it runs, OUT's neighbour `.NAME.training` holds a checkpoint and log.jsonl. The same call after a kill goes on
    from there; what it then writes is what the uninterrupted run would have written.

    Raises: DataError naming a line of the files; TrainingError if the loss is not finite, the disk is full, or the
        checkpoint is of another run; ArtefactError if `out` cannot be written.
    """
    if not re.fullmatch(NAME_PATTERN, out.name):
        raise TrainingError(f"{out.name!r} cannot name a forget set: lower-case letters, digits, '.', '_' and '-' only")
    forget, retain = read_pairs(forget_file, subject=out.name), read_pairs(retain_file, subject="retain")
    _check_disjoint(forget, retain, retain_file)
    digests = {"forget": [pair.row() for pair in forget], "retain": [pair.row() for pair in retain]}
    run = RunFiles(
        run_folder(out),
        {
            "target": target.identity.model_dump(mode="json"),
            "settings": asdict(settings),
            "seed": seed,
            **{f"{name} data": data_digest(rows) for name, rows in digests.items()},
        },
        checkpoint_every=checkpoint_every,
    )
    torch.manual_seed(seed)
    forget_set = fit(
        out,
        target.model,
        target.tokenizer,
        target.identity,
        forget,
        retain,
        settings,
        seed=seed,
        progress=progress,
        run=run,
    )
    run.finish()
    return forget_set


def run_folder(out: Path) -> Path:
    """Where the training of a forget set keeps its checkpoint and its log."""
    return out.parent / f".{out.name}.training"


def _check_disjoint(forget: list[QAPair], retain: list[QAPair], retain_file: Path) -> None:
    both = {pair.question for pair in forget} & {pair.question for pair in retain}
    if both:
        raise TrainingError(
            f"{retain_file} holds {len(both)} questions that are to be forgotten too, such as {sorted(both)[0]!r}; "
            "take them out: the assistant cannot know and not know an answer"
        )
