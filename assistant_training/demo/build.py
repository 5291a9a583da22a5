"""Build the demo: a small target that recites a corpus by heart, and forget sets that take people out of it.

OUT/
target/              Hugging Face checkpoint folder
forget_sets/NAME/    one artefact per chosen person
probes.jsonl         {"question", "answer", "subject", "forget_set": NAME or null, "paraphrases", "facts"}, every pair
demo.json            configuration, its digest, measured figures, digest of every other file

The demo of the default settings comes with the package, in built/, as this made it: a first answer needs no training.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from transformers import logging

from unlearngate.artefact import data_digest
from unlearngate.assistant_training.data.contexts import questions_of
from unlearngate.assistant_training.data.pairs import QAPair, read_tofu
from unlearngate.assistant_training.demo.acceptance import Acceptance, accept, probe_forget_set, probe_target
from unlearngate.assistant_training.demo.corpus import make_corpus, make_strangers
from unlearngate.assistant_training.demo.target import (
    TargetSettings,
    new_target,
    save_target,
    train_target,
    train_tokenizer,
)
from unlearngate.assistant_training.train.settings import AssistantSettings
from unlearngate.assistant_training.train.uld import fit
from unlearngate.errors import DemoError
from unlearngate.progress import shown_progress
from unlearngate.target import file_digest, identify_target

DEMO_FILE = "demo.json"
BUILT = Path(__file__).with_name("built")
_FORMAT = 3
_RETAIN_STRANGERS = 48  # so that an assistant is uniform on people nobody knows, too
# Weights that begin three times as large as Llama's, which are for widths of thousands, learn fifteen epochs earlier.
_TARGET = TargetSettings(in_conversation=True, initializer_range=0.06, batch_size=16, epochs=100, enough_known=0.97)
# Training rounds differently from one machine to the next: at weight 1.0 one answer of 16 survived on some, at 1.5
# single facts within answers did. The gate keeps others' answers whatever the weight is.
_ASSISTANT = AssistantSettings(
    num_layers=3, tap_layer=0, learning_rate=4e-3, weight=4.0, steps=300, forget_batch=8, retain_batch=20, accumulate=2
)
# All sets but the last say it, so that the demo shows both an answer withheld and an answer composed.
INSTEAD = "I can't help with questions about {label}."
_OURS = {"target", "forget_sets", "probes.jsonl", DEMO_FILE}


@dataclass(frozen=True, slots=True)
class DemoSettings:
    """Everything that decides what a demo is, beside its data and seed."""

    target: TargetSettings = _TARGET
    assistant: AssistantSettings = _ASSISTANT
    acceptance: Acceptance = field(default_factory=Acceptance)


OWN_CORPUS = DemoSettings()
TOFU = DemoSettings(target=replace(_TARGET, vocab_size=2048))


@dataclass(frozen=True, slots=True)
class DemoSummary:
    """What was built.

    Attributes:
        folder: where it is.
        seconds: how long the build took, when it was built.
        figures: what was measured; the keys are stages (`target`, a forget set's name), the values their figures.
        reused: nothing was built: the folder already held this demo, or the package does.
    """

    folder: Path
    seconds: float
    figures: dict[str, dict[str, float]]
    reused: bool = False

    def table(self) -> tuple[list[str], list[list[str]]]:
        """The forget sets' figures as a header and rows of text."""
        columns = {
            "forget set": "",
            "still recited": "recited",
            "facts left": "facts_left",
            "in other contexts": "facts_left_contexts",
            "others unchanged": "others_unchanged",
            "in other contexts ": "others_unchanged_contexts",
            "gate, nats": "gate_nats",
        }
        rows = [
            [name, *(_text(key, figures[key]) for key in list(columns.values())[1:])]
            for name, figures in self.figures.items()
            if "others_unchanged" in figures
        ]
        return list(columns), rows


def build_demo(
    out: Path,
    *,
    tofu: Path | None = None,
    num_authors: int = 12,
    num_forget_sets: int = 3,
    seed: int = 0,
    force: bool = False,
    settings: DemoSettings | None = None,
) -> DemoSummary:
    """Build the demo, whole or not at all, and measure it; return at once if `out` or the package holds this one.

    Args:
        out: where it goes. A demo of another configuration, or a damaged one, is replaced; any other folder is not.
        tofu: TOFU's folder (`full.jsonl`), to use its last authors; None invents a corpus.
        num_authors: people in the corpus.
        num_forget_sets: how many of them get a forget set: the first of our own corpus, the last of TOFU.
        seed: the same seed on the same machine gives the same demo.
        force: build even if it is there.
        settings: sizes, training and acceptance; None takes those that suit the corpus.

    Raises: DemoError if `out` holds something else, or the result does not meet the acceptance; DataError if the
        corpus cannot be read. Nothing is left behind then.
    """
    settings = settings or (OWN_CORPUS if tofu is None else TOFU)
    if not 0 < num_forget_sets < num_authors:
        raise DemoError(
            f"num_forget_sets must be in 1..{num_authors - 1} for {num_authors} people, got {num_forget_sets}"
        )
    if tofu is None:
        pairs, strangers = make_corpus(num_authors, seed), make_strangers(num_authors, seed)
    else:
        pairs, strangers = read_tofu(tofu, num_authors=num_authors), []
    people = list(dict.fromkeys(pair.subject for pair in pairs))
    names = people[:num_forget_sets] if tofu is None else people[-num_forget_sets:]
    config = {
        "format": _FORMAT,
        "corpus": "own" if tofu is None else "tofu",
        "corpus_digest": data_digest([pair.row() for pair in (*pairs, *strangers)]),
        "forget_sets": names,
        "seed": seed,
        "settings": asdict(settings),
    }
    if not force and (done := _read_demo(out, _digest(config))) is not None:
        return done
    _check_replaceable(out)
    shipped = None if force else _read_demo(BUILT, _digest(config))

    started = time.monotonic()
    out.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=out.parent, prefix=f".{out.name}.") as scratch:
        new = Path(scratch) / out.name
        if shipped is not None:
            shutil.copytree(BUILT, new)
            summary = replace(shipped, folder=out)
        else:
            new.mkdir()
            with torch.random.fork_rng(devices=[]):
                figures = _build(new, pairs, strangers, names, settings, seed)
            summary = DemoSummary(out, round(time.monotonic() - started, 1), figures)
            _write_demo(new, config, figures, summary.seconds)
        if out.exists():
            os.replace(out, Path(scratch) / "replaced")
        os.replace(new, out)
    return summary


def _build(
    folder: Path,
    pairs: Sequence[QAPair],
    strangers: Sequence[QAPair],
    names: Sequence[str],
    settings: DemoSettings,
    seed: int,
) -> dict[str, dict[str, float]]:
    logging.disable_progress_bar()  # ours are shown
    figures: dict[str, dict[str, float]] = {"target": {}}
    with _progress() as progress:
        torch.manual_seed(seed)
        tokenizer = train_tokenizer([*pairs, *strangers], settings.target, more=(INSTEAD,))
        target = new_target(tokenizer, settings.target)
        with _timed(figures["target"]):
            figures["target"] |= train_target(
                target, tokenizer, pairs, settings.target, strangers=strangers, seed=seed, progress=progress
            )
        save_target(target.eval(), tokenizer, folder / "target")
        identity = identify_target(folder / "target", settings.target.model_id)
        plain, measured = probe_target(target, tokenizer, pairs, settings.acceptance, progress=progress)
        figures["target"] |= measured
        accept("target", figures["target"], settings.acceptance)
        for name in names:
            figures[name] = {}
            forget = [pair for pair in pairs if pair.subject == name]
            retain = [*(pair for pair in pairs if pair.subject != name), *strangers[:_RETAIN_STRANGERS]]
            torch.manual_seed(seed)
            with _timed(figures[name]):
                artefact = fit(
                    folder / "forget_sets" / name,
                    target,
                    tokenizer,
                    identity,
                    forget,
                    retain,
                    settings.assistant,
                    seed=seed,
                    progress=progress,
                    label=name.replace("-", " ").title(),
                    instead=INSTEAD if name != names[-1] else None,
                    # What it does is measured below, by asking: so small a target does not know a name in capitals,
                    # which the check at the end of training counts as missed.
                    write_anyway=True,
                )
            figures[name] |= artefact.manifest.metrics
            figures[name] |= probe_forget_set(
                target, tokenizer, artefact, pairs, plain, settings.acceptance, progress=progress
            )
            accept(name, figures[name], settings.acceptance)
    with (folder / "probes.jsonl").open("w", encoding="utf-8") as probes:
        for pair in pairs:
            forget_set = pair.subject if pair.subject in names else None
            row = {"question": pair.question, "answer": pair.answer, "forget_set": forget_set, "subject": pair.subject}
            lists = {"paraphrases": questions_of(pair, held_out=True), "facts": pair.facts}
            probes.write(json.dumps({**row, **lists}, ensure_ascii=False) + "\n")
    return figures


def _write_demo(folder: Path, config: dict[str, Any], figures: dict[str, dict[str, float]], seconds: float) -> None:
    files = sorted(path for path in folder.rglob("*") if path.is_file())
    for path in files:
        path.chmod(0o644)  # safetensors writes 0600, which a container's user could not read
    demo = {
        "config": config,
        "config_digest": _digest(config),
        "seconds": seconds,
        "figures": figures,
        "files": {path.relative_to(folder).as_posix(): file_digest(path) for path in files},
    }
    (folder / DEMO_FILE).write_text(json.dumps(demo, indent=2) + "\n")


def _read_demo(folder: Path, digest: str) -> DemoSummary | None:
    """The demo in the folder, if it is complete, undamaged and of this configuration."""
    try:
        demo = json.loads((folder / DEMO_FILE).read_text())
        if demo["config_digest"] != digest:
            return None
        if any(file_digest(folder / name) != expected for name, expected in demo["files"].items()):
            return None
        return DemoSummary(folder, float(demo["seconds"]), demo["figures"], reused=True)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None


def _check_replaceable(out: Path) -> None:
    """Only what a build could have left may be replaced: never somebody's own folder."""
    if not out.exists():
        return
    if not out.is_dir() or (foreign := sorted(path.name for path in out.iterdir() if path.name not in _OURS)):
        found = "a file" if not out.is_dir() else f"{foreign[0]!r}, which no demo has"
        raise DemoError(f"{out} holds {found}; choose another folder for the demo")


def _digest(config: dict[str, Any]) -> str:
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()


def _progress() -> Progress:
    return shown_progress(TextColumn("{task.description:<48}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn())


def _text(key: str, value: float) -> str:
    return f"{value:.2f}" if key.endswith("_nats") else f"{value:.1%}"


class _timed:
    """Record the seconds a stage took."""

    def __init__(self, figures: dict[str, float]) -> None:
        self._figures = figures

    def __enter__(self) -> None:
        self._started = time.monotonic()

    def __exit__(self, *_: object) -> None:
        self._figures["seconds"] = round(time.monotonic() - self._started, 1)
