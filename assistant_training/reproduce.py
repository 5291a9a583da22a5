"""The results table: every method on TOFU, from targets trained from scratch, over several seeds.

OUT/results.jsonl    one line per seed and model, appended as they are done; what is there is not done again
OUT/seed-N/          the target and the retain model of a seed, Hugging Face checkpoint folders

Nothing is selected on the test: every method runs with settings fixed beforehand, and its last epoch counts.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearngate.assistant_training import memorization
from unlearngate.assistant_training.calibration import calibrate
from unlearngate.assistant_training.data import TOFU_PAIRS_PER_AUTHOR, QAPair
from unlearngate.assistant_training.demo_target import (
    TargetSettings,
    new_target,
    save_target,
    train_target,
    train_tokenizer,
)
from unlearngate.assistant_training.in_force import InForce, Model
from unlearngate.assistant_training.metrics import RECITED_AT
from unlearngate.assistant_training.tofu import Benchmark, Question
from unlearngate.assistant_training.tofu_evaluation import (
    Figures,
    evaluate,
    sampled_rouge,
    summary,
    untouched_share,
)
from unlearngate.assistant_training.trainer import AssistantSettings, train_assistant
from unlearngate.assistant_training.unlearn import METHODS, unlearn
from unlearngate.manifest import Strength

RESULTS_FILE = "results.jsonl"
GATED = " + gate"
ASSISTANTS = {
    "ULD": AssistantSettings(weight=1.5),
    "ULD tapped": AssistantSettings(weight=1.5, tap_layer=4, num_layers=2),
}


@dataclass(frozen=True, slots=True)
class ReproduceSettings:
    """What is trained, and how much is decoded."""

    target: TargetSettings = field(default_factory=lambda: TargetSettings(vocab_size=2048))
    assistants: dict[str, AssistantSettings] = field(default_factory=lambda: dict(ASSISTANTS))
    methods: tuple[str, ...] = tuple(METHODS)
    num_samples: int = 4  # sampled answers to each forget question
    max_tokens: int = 80


Row = dict[str, Any]


def reproduce(
    benchmark: Benchmark, out: Path, *, seeds: Sequence[int], settings: ReproduceSettings, progress: Progress
) -> list[Row]:
    """Do what OUT/results.jsonl does not hold yet, and return all of it.

    Raises: TrainingError if a training fails; everything done before is kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        done = {row["model"] for row in read_results(out) if row["seed"] == seed}
        for row in _seed_rows(benchmark, out / f"seed-{seed}", seed, settings, progress, done):
            with (out / RESULTS_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": seed, **row}) + "\n")
    return [row for row in read_results(out) if row["seed"] in seeds]


def read_results(out: Path) -> list[Row]:
    """The rows that are done; a line that a kill left half-written is not one."""
    path = out / RESULTS_FILE
    lines = path.read_text(encoding="utf-8").splitlines() if path.exists() else []
    return [json.loads(line) for line in lines if line.endswith("}")]


def seen_retain(benchmark: Benchmark) -> tuple[list[QAPair], list[Question]]:
    """What assistants are shown of the retain set, and the questions of it they never see: every other author's."""
    authors = range(0, len(benchmark.retain), TOFU_PAIRS_PER_AUTHOR)
    unseen = [q for i in list(authors)[1::2] for q in benchmark.retain[i : i + TOFU_PAIRS_PER_AUTHOR]]
    hidden = {question.question for question in unseen}
    return [pair for pair in benchmark.retained_pairs if pair.question not in hidden], unseen


def _seed_rows(
    benchmark: Benchmark, folder: Path, seed: int, settings: ReproduceSettings, progress: Progress, done: set[str]
) -> Iterator[Row]:
    wanted = {"target", "retain model", *settings.methods}
    wanted |= {name + gate for name in settings.assistants for gate in ("", GATED)}
    if wanted <= done:
        return
    target, tokenizer = _trained(folder / "target", benchmark.learned, benchmark, settings, seed, progress)
    retain_model, _ = _trained(folder / "retain", benchmark.retained_pairs, benchmark, settings, seed, progress)
    retain_figures = evaluate(Model(retain_model, tokenizer), benchmark, max_tokens=settings.max_tokens)

    def row(name: str, model: Model, cost: dict[str, float], figures: Figures | None = None) -> Row:
        figures = figures or evaluate(model, benchmark, max_tokens=settings.max_tokens)
        return {"model": name, **summary(figures, retain_figures), **_more(model, benchmark, seed, settings), **cost}

    if "target" not in done:
        yield row("target", Model(target, tokenizer), {})
    if "retain model" not in done:
        yield row("retain model", Model(retain_model, tokenizer), {}, retain_figures)
    for name, chosen in settings.assistants.items():
        if not {name, name + GATED} <= done:
            yield from _uld_rows(target, tokenizer, benchmark, seed, name, chosen, progress, row, done)
    for name in settings.methods:
        if name not in done:
            torch.manual_seed(seed)
            tuned = unlearn(
                *(target, tokenizer, name, benchmark.forget_pairs, benchmark.retained_pairs),
                seed=seed,
                progress=progress,
            )
            cost = {"seconds_per_epoch": tuned.seconds_per_epoch, "trainable": tuned.num_trainable}
            yield row(name, Model(tuned.model, tokenizer), cost)


def _uld_rows(
    target: Any,
    tokenizer: Any,
    benchmark: Benchmark,
    seed: int,
    name: str,
    chosen: AssistantSettings,
    progress: Progress,
    row: Callable[..., Row],
    done: set[str],
) -> Iterator[Row]:
    forget, (retain, _) = benchmark.forget_pairs, seen_retain(benchmark)
    torch.manual_seed(seed)
    started = time.monotonic()
    arguments = (target, tokenizer, forget, retain, chosen)
    assistant = train_assistant(*arguments, model_id="tofu", seed=seed, progress=progress)
    seconds = time.monotonic() - started
    # As the baselines count: an epoch is every forget answer once, and as many others.
    answers = chosen.epochs * len(retain) * (chosen.forget_batch + chosen.retain_batch) / chosen.retain_batch
    cost = {
        "seconds_per_epoch": seconds * 2 * len(forget) / answers,
        "trainable": sum(weight.numel() for weight in assistant.parameters() if weight.requires_grad),
    }
    gate = calibrate(assistant, tokenizer, forget, retain, varied_prompts=chosen.varied_prompts, seed=seed).gate_nats
    for label, gate_nats in ((name, 0.0), (name + GATED, gate)):
        if label not in done:
            strength = Strength(weight=chosen.weight, keep_ratio=chosen.keep_ratio, gate_nats=gate_nats)
            yield row(label, Model(target, tokenizer, [InForce(assistant, strength)]), {"gate_nats": gate_nats, **cost})


def _more(model: Model, benchmark: Benchmark, seed: int, settings: ReproduceSettings) -> dict[str, float]:
    """What sampling brings back, and what becomes of retain authors that no assistant was shown."""
    _, unseen = seen_retain(benchmark)
    rouge_QN = sampled_rouge(
        model, benchmark.forget, num_samples=settings.num_samples, seed=seed, max_tokens=settings.max_tokens
    )
    leaks = [memorization.leak_at_k(row, settings.num_samples, threshold=RECITED_AT) for row in rouge_QN]
    figures = {"leak_at_k": float(sum(leaks) / len(leaks))}
    if unseen and model.in_force:
        figures["unseen_positions_untouched"] = untouched_share(model, unseen)
    return figures


def _trained(
    folder: Path,
    pairs: Sequence[QAPair],
    benchmark: Benchmark,
    settings: ReproduceSettings,
    seed: int,
    progress: Progress,
) -> tuple[Any, Any]:
    """A model that knows the pairs, trained once; every model of a benchmark has the same tokenizer."""
    if not folder.exists():
        torch.manual_seed(seed)
        tokenizer = train_tokenizer(benchmark.learned, settings.target)
        model = new_target(tokenizer, settings.target)
        figures = train_target(model, tokenizer, pairs, settings.target, seed=seed, progress=progress)
        new = folder.with_name(f".{folder.name}")
        save_target(model.eval(), tokenizer, new)
        (new / "training.json").write_text(json.dumps({**figures, "settings": asdict(settings.target)}) + "\n")
        new.rename(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True).requires_grad_(False).eval()
    return model, AutoTokenizer.from_pretrained(folder, local_files_only=True)
