"""What a soak found: whether its goals are met, a page and a picture."""

from __future__ import annotations

import json
import statistics
from dataclasses import asdict, dataclass
from itertools import pairwise
from pathlib import Path

import matplotlib

MEMORY_GROWTH = 0.05


@dataclass
class Sample:
    """A look at the server: minutes since the load began, MiB of its processes, tokens answered so far."""

    minute: float
    memory_mib: float
    tokens: int


@dataclass
class Report:
    """The figures of a soak.

    Memory is the unique set size of all the server's processes, medians of a tenth of the time each: after a warm-up
    of a tenth, and at the end.
    """

    seed: int
    minutes: float
    requests: int
    tokens: int
    outcomes: dict[str, int]
    changes: dict[str, int]
    wrong: int
    unanswered: int
    audited: int
    audit_differs: int
    still_running: int
    memory_start_mib: float
    memory_end_mib: float
    exit_code: int

    @property
    def growth(self) -> float:
        """Of memory, as a share of what it was."""
        return self.memory_end_mib / self.memory_start_mib - 1

    @property
    def failures(self) -> list[str]:
        """Every goal that is missed."""
        zero = ("wrong", "unanswered", "audit_differs", "still_running", "exit_code")
        missed = [f"{name} is {getattr(self, name)}, not 0" for name in zero if getattr(self, name)]
        if self.growth > MEMORY_GROWTH:
            missed.append(f"memory grew by {self.growth:.1%}, at most {MEMORY_GROWTH:.0%} is allowed")
        return missed

    def markdown(self) -> str:
        """A table."""
        changes = ", ".join(f"{name} {count}" for name, count in sorted(self.changes.items()))
        outcomes = ", ".join(f"{name} {count}" for name, count in sorted(self.outcomes.items()))
        memory = f"{self.memory_start_mib:,.0f} MiB, {self.memory_end_mib:,.0f} MiB ({self.growth:+.1%})"
        rows = [
            ("minutes of load", f"{self.minutes:.1f}"),
            ("requests", f"{self.requests:,} ({outcomes})"),
            ("tokens, each compared with Hugging Face + PEFT", f"{self.tokens:,}"),
            ("changes of sets", f"{sum(self.changes.values()):,} ({changes})"),
            ("wrong answers", f"{self.wrong}"),
            ("unanswered", f"{self.unanswered}"),
            (
                "answers without their line in the audit log, or differing",
                f"{self.audit_differs} of {self.audited:,}",
            ),
            ("requests still in the engine afterwards", f"{self.still_running}"),
            ("memory at the start, at the end", memory),
            ("exit code after SIGTERM", f"{self.exit_code}"),
            ("seed", f"{self.seed}"),
        ]
        return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows)]) + "\n"

    def write(self, out: Path, samples: list[Sample]) -> None:
        """OUT/soak.md, soak.json and soak.png."""
        (out / "soak.md").write_text(self.markdown(), encoding="utf-8")
        everything = {**asdict(self), "samples": [asdict(sample) for sample in samples]}
        (out / "soak.json").write_text(json.dumps(everything, indent=1) + "\n", encoding="utf-8")
        _draw(samples, out / "soak.png")


def memory(samples: list[Sample]) -> tuple[float, float]:
    """MiB after the warm-up, and at the end."""
    tenth = max(1, len(samples) // 10)
    start, end = samples[tenth : 2 * tenth] or samples, samples[-tenth:]
    return statistics.median(s.memory_mib for s in start), statistics.median(s.memory_mib for s in end)


def _draw(samples: list[Sample], path: Path) -> None:
    matplotlib.use("Agg")
    from matplotlib.figure import Figure

    figure = Figure(figsize=(8, 4), layout="constrained")
    upper, lower = figure.subplots(2, 1, sharex=True)
    minutes = [sample.minute for sample in samples]
    upper.plot(minutes, [sample.memory_mib for sample in samples])
    upper.set(ylabel="MiB", ylim=(0, None), title="memory of the server's processes")
    rates = [
        (later.tokens - before.tokens) / max(1e-9, later.minute - before.minute) / 60
        for before, later in pairwise(samples)
    ]
    lower.plot(minutes[1:], rates)
    lower.set(xlabel="minutes", ylabel="tokens/s", ylim=(0, None), title="tokens answered")
    figure.savefig(path, dpi=120)
