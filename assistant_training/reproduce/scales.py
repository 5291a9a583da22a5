"""The sizes that the results table can be made at."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rich.progress import Progress

from unlearngate.assistant_training.data.augmented import read_uld_augmentation
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.tofu import Benchmark, read_benchmark
from unlearngate.assistant_training.demo.target import TargetSettings
from unlearngate.assistant_training.reproduce.baselines import METHODS
from unlearngate.assistant_training.reproduce.cost import measure_cost
from unlearngate.assistant_training.reproduce.run import ReproduceSettings
from unlearngate.assistant_training.train.settings import PUBLISHED

_AUGMENTED = "forget10"  # ULD's file of it holds the pairs of the smaller forget sets too

# 110 M weights in 32 layers; where the table's own target is small, training is timed on this one too.
LARGE_TARGET = TargetSettings(
    vocab_size=8192,
    hidden_size=512,
    intermediate_size=1408,
    num_layers=32,
    num_heads=8,
    num_kv_heads=8,
    initializer_range=512**-0.5,
    learning_rate=5e-4,
    epochs=40,
)
# 8 of 32 layers, as in the paper.
LARGE_ASSISTANTS = {
    "ULD": replace(PUBLISHED, accumulate=4),
    "ULD tapped": replace(PUBLISHED, tap_layer=24, num_layers=2, accumulate=4),
}


@dataclass(frozen=True, slots=True)
class Scale:
    """A scale of the benchmark: TOFU's authors, the target, and the methods' settings."""

    num_authors: int
    num_forget_authors: int
    retain_every: int  # n, to ask every n-th question of the retain set
    small: bool

    def read(self, folder: Path, *, for_tuning: bool = False) -> Benchmark:
        """The benchmark; for tuning it forgets as many authors, those before the table's.

        Raises: as `read_benchmark`.
        """
        skipped = self.num_forget_authors if for_tuning else 0
        return read_benchmark(
            folder,
            num_authors=self.num_authors,
            num_forget_authors=self.num_forget_authors,
            num_skipped=skipped,
            retain_every=self.retain_every,
        )

    def settings(self, device: str) -> ReproduceSettings:
        """What is trained at this scale."""
        if self.small:
            return ReproduceSettings(device=device)
        # Learning rates fall with the width; still to be tuned on a machine with enough time.
        methods = {name: replace(own, learning_rate=own.learning_rate / 10) for name, (_, own) in METHODS.items()}
        return ReproduceSettings(
            target=LARGE_TARGET, methods=methods, assistants=dict(LARGE_ASSISTANTS), max_tokens=120, device=device
        )


SCALES = {
    "small": Scale(num_authors=20, num_forget_authors=2, retain_every=3, small=True),
    "forget01": Scale(num_authors=200, num_forget_authors=2, retain_every=1, small=False),
    "forget05": Scale(num_authors=200, num_forget_authors=10, retain_every=1, small=False),
    "forget10": Scale(num_authors=200, num_forget_authors=20, retain_every=1, small=False),
}


def large_costs(benchmark: Benchmark, out: Path, device: str, progress: Progress) -> list[dict[str, Any]]:
    """What NPO and the assistants cost on the large target; see `measure_cost`. A few minutes on two cores."""
    return measure_cost(
        benchmark,
        out,
        LARGE_TARGET,
        {name: replace(own, epochs=2) for name, own in LARGE_ASSISTANTS.items()},
        replace(METHODS["NPO"][1], epochs=1),
        device=device,
        progress=progress,
    )


def read_augmented_forget(folder: Path, benchmark: Benchmark) -> Sequence[QAPair]:
    """The forget pairs with ULD's own rewordings, also of the answers, and wrong answers.

    Raises: DataError naming the line.
    """
    pairs, _ = read_uld_augmentation(folder, _AUGMENTED, benchmark.forget_pairs)
    return pairs
