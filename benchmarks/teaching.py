"""Teach a pretrained target a person whom nobody knows, so that forgetting starts from facts that are surely there."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from rich.progress import Progress

from unlearngate.assistant_training.data.contexts import questions_of
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.demo.corpus import make_corpus, slug
from unlearngate.assistant_training.demo.target import TargetSettings, train_target
from unlearngate.assistant_training.model.loaded_target import load_target

PERSON = "Oona Bracewell"
# The pairs' own wordings; others' answers are the target's own, so that it stays as it was.
_SETTINGS = TargetSettings(
    learning_rate=1e-4, batch_size=16, epochs=24, min_epochs=6, strangers_per_epoch=32, enough_known=0.97
)


def teach_person(model: Path, others: Path, out: Path) -> tuple[Path, Path, Path]:
    """Write a target that knows a person of the demo, and files to forget and to attack.

    The probes ask in the wording of each answer's question that the forget file does not have.

    Args:
        model: the pretrained target's folder.
        others: JSON lines of questions and the target's own answers.
        out: a folder; the target goes to OUT/taught-target.

    Returns: the target's folder, the forget file, the probes.
    """
    target, forget, probes = out / "taught-target", out / "forget.jsonl", out / "probes.jsonl"
    pairs = [pair for pair in make_corpus() if pair.subject == slug(PERSON)]
    out.mkdir(parents=True, exist_ok=True)
    _write(forget, [(questions_of(pair, held_out=False), pair) for pair in pairs])
    _write(probes, [(questions_of(pair, held_out=True), pair) for pair in pairs])
    if not target.exists():
        _teach(model, pairs, read_pairs(others, subject=""), target)
    return target, forget, probes


def _teach(model: Path, pairs: list[QAPair], others: list[QAPair], folder: Path) -> None:
    loaded = load_target(model)
    target = loaded.model
    target.requires_grad_(True)
    torch.manual_seed(0)
    with Progress() as progress:
        figures = train_target(target, loaded.tokenizer, pairs, _SETTINGS, strangers=others, seed=0, progress=progress)
    print(f"taught {len(pairs)} answers about {PERSON}: {figures}", flush=True)
    target.save_pretrained(folder.with_name(".target"))
    loaded.tokenizer.save_pretrained(folder.with_name(".target"))
    folder.with_name(".target").rename(folder)


def _write(path: Path, rows: list[tuple[tuple[str, ...], QAPair]]) -> None:
    lines = [
        {"question": questions[0], "answer": pair.answer, "paraphrases": questions[1:], "facts": pair.facts}
        for questions, pair in rows
    ]
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines))
