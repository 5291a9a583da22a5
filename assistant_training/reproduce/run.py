"""The results table: every method on TOFU, from targets trained from scratch, over several seeds.

OUT/results.jsonl    one line per seed and model, appended as they are done; existing lines are not done again
                     (depths.py, which varies only the assistants, has its own file)
OUT/seed-N/          the models of a seed, Hugging Face checkpoint folders

Nothing is selected on the test set: every method runs with settings fixed before (tuning.py: on another forget set),
and its last epoch counts. All methods are shown the same retain authors, every other one.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import Progress

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.tofu import Benchmark
from unlearngate.assistant_training.demo.target import TargetSettings
from unlearngate.assistant_training.evaluate import memorization
from unlearngate.assistant_training.evaluate.metrics import RECITED_AT
from unlearngate.assistant_training.evaluate.tofu import (
    Figures,
    evaluate,
    membership,
    sampled_rouge,
    summary,
    utility,
)
from unlearngate.assistant_training.model.in_force import LoadedSet, Model
from unlearngate.assistant_training.reproduce.baselines import METHODS, UnlearnSettings, unlearn
from unlearngate.assistant_training.reproduce.cost import cost_of, train_timed
from unlearngate.assistant_training.reproduce.models import TrainedModels, train_models
from unlearngate.assistant_training.train.gate import fit_gate
from unlearngate.assistant_training.train.settings import PUBLISHED, AssistantSettings
from unlearngate.files import complete_lines
from unlearngate.manifest import Strength

RESULTS_FILE = "results.jsonl"
GATED = " + gate"
# Deep and narrow, so that layers and not the head dominate its cost, as in a large target.
SMALL = TargetSettings(
    vocab_size=2048,
    hidden_size=128,
    intermediate_size=384,
    num_layers=12,
    num_heads=4,
    initializer_range=128**-0.5,
    batch_size=16,
    epochs=20,
    min_epochs=12,
)
# Weights as `tune` chose them. Behind a tap an epoch costs little, and it takes more of them to be uniform.
ASSISTANTS = {
    "ULD": replace(PUBLISHED, num_layers=4, learning_rate=4e-3, weight=1.5, accumulate=4),
    "ULD tapped": replace(
        PUBLISHED, tap_layer=8, num_layers=2, learning_rate=4e-3, epochs=25, weight=2.0, accumulate=4
    ),
}


@dataclass(frozen=True, slots=True)
class ReproduceSettings:
    """What is trained, and how much is decoded."""

    target: TargetSettings = SMALL
    assistants: dict[str, AssistantSettings] = field(default_factory=lambda: dict(ASSISTANTS))
    methods: dict[str, UnlearnSettings] = field(
        default_factory=lambda: {name: own for name, (_, own) in METHODS.items()}
    )
    gates: tuple[str, ...] = ("", GATED)  # assistants without their gate, and with it
    num_samples: int = 4  # sampled answers to each forget question
    max_tokens: int = 80
    device: str = "cpu"


TableRow = dict[str, Any]


def reproduce(
    benchmark: Benchmark,
    out: Path,
    *,
    seeds: Sequence[int],
    settings: ReproduceSettings,
    progress: Progress,
    augmented: Sequence[QAPair] = (),
    results_file: str = RESULTS_FILE,
) -> list[TableRow]:
    """Add the rows that OUT/results.jsonl does not hold yet, and return all rows.

    Args:
        benchmark: what is learned, forgotten and asked.
        out: where models and rows go.
        seeds: of everything that is drawn.
        settings: of everything that is trained.
        progress: shows how far it is.
        augmented: the forget pairs with rewordings and wrong answers, for the assistants; empty: the plain pairs.
        results_file: the name of the file in `out`.

    Raises: TrainingError if a training fails; everything done before is kept.
    """
    out.mkdir(parents=True, exist_ok=True)
    for seed in seeds:
        done = {row["model"] for row in read_results(out, results_file) if row["seed"] == seed}
        wanted = {"target", "retain model", *settings.methods}
        wanted |= {name + gate for name in settings.assistants for gate in settings.gates}
        if wanted <= done:
            continue
        models = train_models(
            benchmark,
            out / f"seed-{seed}",
            settings.target,
            seed=seed,
            device=settings.device,
            progress=progress,
        )
        for row in Table(benchmark, models, settings, seed, progress, augmented).rows(done):
            with (out / results_file).open("a", encoding="utf-8") as file:
                file.write(json.dumps({"seed": seed, **row}) + "\n")
    return [row for row in read_results(out, results_file) if row["seed"] in seeds]


def read_results(out: Path, results_file: str = RESULTS_FILE) -> list[TableRow]:
    """The rows that are done."""
    return [json.loads(line) for line in complete_lines(out / results_file)]


class Table:
    """The rows of one seed."""

    def __init__(
        self,
        benchmark: Benchmark,
        models: TrainedModels,
        settings: ReproduceSettings,
        seed: int,
        progress: Progress,
        augmented: Sequence[QAPair] = (),
    ) -> None:
        self._benchmark = benchmark
        self._models = models
        self._settings = settings
        self._seed = seed
        self._progress = progress
        self._retain, unseen = benchmark.split_retain()
        hidden = {pair.question for pair in unseen}
        self._unseen_Q = np.array([question.question in hidden for question in benchmark.retain])
        self._told = list(augmented) or benchmark.forget_pairs
        self._retain_figures = self.figures(self._plain(models.retain_model))

    def rows(self, done: set[str]) -> Iterator[TableRow]:
        """The rows that are not done yet."""
        if "target" not in done:
            yield self.row("target", self._plain(self._models.target), {})
        if "retain model" not in done:
            yield self.row("retain model", self._plain(self._models.retain_model), {}, self._retain_figures)
        for name, chosen in self._settings.assistants.items():
            if not {name + gate for gate in self._settings.gates} <= done:
                yield from self._assistant_rows(name, chosen, done)
        for name, tuned in self._settings.methods.items():
            if name not in done:
                yield self.method_row(name, tuned)

    def figures(self, model: Model) -> Figures:
        """The model's figures on all four sets."""
        return evaluate(model, self._benchmark, max_tokens=self._settings.max_tokens)

    def row(self, name: str, model: Model, cost: dict[str, float], figures: Figures | None = None) -> TableRow:
        """A line of the table."""
        found = figures or self.figures(model)
        row = {"model": name, **summary(found, self._retain_figures), **self._more(model, found), **cost}
        # Without a set in force there is no gate.
        return row if model.in_force else {key: value for key, value in row.items() if "positions" not in key}

    def method_row(self, name: str, tuned: UnlearnSettings) -> TableRow:
        """The row of a copy of the target, tuned to forget."""
        torch.manual_seed(self._seed)
        result = unlearn(
            *(self._models.target, self._models.tokenizer, name, self._benchmark.forget_pairs, self._retain),
            seed=self._seed,
            progress=self._progress,
            settings=tuned,
        )
        return self.row(name, self._plain(result.model), cost_of(result, tuned))

    def trained_assistant(self, chosen: AssistantSettings) -> tuple[Any, dict[str, float]]:
        """An assistant, and what it cost."""
        # As the baselines count: an epoch is every forget answer once, and as many retain answers.
        return train_timed(
            *(self._models.target, self._models.tokenizer, self._told, self._retain, chosen),
            epoch_answers=2 * len(self._benchmark.forget),
            seed=self._seed,
            progress=self._progress,
        )

    def composed(self, assistant: Any, chosen: AssistantSettings, gate_nats: float) -> Model:
        """The target with the assistant in force."""
        strength = Strength(weight=chosen.weight, keep_ratio=chosen.keep_ratio, gate_nats=gate_nats)
        return Model(self._models.target, self._models.tokenizer, [LoadedSet(assistant, strength)])

    def gate_nats(self, assistant: Any, chosen: AssistantSettings) -> float:
        """The gate as `unlearngate train uld` chooses it, from the training data."""
        return fit_gate(
            *(assistant, self._models.tokenizer, self._told, self._retain),
            varied_prompts=chosen.varied_prompts,
            seed=self._seed,
        ).gate_nats

    def _assistant_rows(self, name: str, chosen: AssistantSettings, done: set[str]) -> Iterator[TableRow]:
        assistant, cost = self.trained_assistant(chosen)
        for gate in self._settings.gates:
            gate_nats = self.gate_nats(assistant, chosen) if gate else 0.0
            if name + gate not in done:
                composed = self.composed(assistant, chosen, gate_nats)
                yield self.row(name + gate, composed, {"gate_nats": gate_nats, **cost})

    def _plain(self, model: Any) -> Model:
        return Model(model, self._models.tokenizer)

    def _more(self, model: Model, figures: Figures) -> dict[str, float]:
        """The results of sampling and membership attacks, and figures of retain authors that no method was shown."""
        samples, tokens = self._settings.num_samples, self._settings.max_tokens
        rouge_QN = sampled_rouge(model, self._benchmark.forget, num_samples=samples, seed=self._seed, max_tokens=tokens)
        leaks = [memorization.leak_at_k(rouge_N, samples, threshold=RECITED_AT) for rouge_N in rouge_QN]
        best = [memorization.best_of_k(rouge_N, samples) for rouge_N in rouge_QN]
        more = {"leak_at_k": float(np.mean(leaks)), "best_of_k": float(np.mean(best))}
        if self._unseen_Q.any():
            unseen = figures["retain"].only(self._unseen_Q)
            more["unseen_utility"] = utility({**figures, "retain": unseen})
            more["unseen_positions_untouched"] = unseen.untouched_share()
        if self._benchmark.holdout:
            attacked = membership(model, figures["forget"], self._benchmark.holdout[: len(self._benchmark.forget)])
            more |= {f"membership_{name}": auc for name, auc in attacked.items()}
        return more
