"""The benchmark's CSV: one line for each case and provider, with all that is needed to judge it later."""

from __future__ import annotations

import csv
import importlib.metadata
import platform
import subprocess
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from types import TracebackType

import torch

from benchmarks.providers import Case
from benchmarks.timing import GRAPH, Timing

ROOT = Path(__file__).parents[1]
FIELDS = (
    *("op", "provider", "R", "V", "sets", "target_dtype", "assistant_dtype"),
    *("median_us", "p20_us", "p80_us", "min_bytes", "gb_per_s", "share_of_copy"),
    *("device", "threads", "torch", "triton", "commit", "seed", "date", "note"),
)


@dataclass(frozen=True, slots=True)
class Environment:
    """Where and when a run took place; the same for all its lines."""

    device: str
    threads: int
    torch_version: str
    triton_version: str
    commit: str
    seed: int
    date: str

    @classmethod
    def read(cls, device: torch.device, seed: int) -> Environment:
        """Ask torch, the processor and git."""
        return cls(
            device=torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu_name(),
            threads=torch.get_num_threads(),
            torch_version=torch.__version__,
            triton_version=_version("triton"),
            commit=_commit(),
            seed=seed,
            date=datetime.now(UTC).isoformat(timespec="seconds"),
        )


@dataclass(frozen=True, slots=True)
class Result:
    """One line. Times in microseconds a run; gb_per_s counts minimal bytes, so it says nothing where there are none."""

    provider: str
    case: Case
    timing: Timing
    gb_per_s: float | None
    share_of_copy: float | None
    ours_over_this: float | None

    def line(self, environment: Environment) -> dict[str, object]:
        """As `FIELDS` name it; empty where it was not timed."""
        case, timing = self.case, self.timing
        return {
            "op": "compose",
            "provider": self.provider,
            "R": case.num_rows,
            "V": case.vocab_size,
            "sets": case.num_sets,
            "target_dtype": dtype_name(case.target_dtype),
            "assistant_dtype": dtype_name(case.assistant_dtype),
            "median_us": _short(timing.percentile_us(50)),
            "p20_us": _short(timing.percentile_us(20)),
            "p80_us": _short(timing.percentile_us(80)),
            "min_bytes": case.min_bytes,
            "gb_per_s": _short(self.gb_per_s),
            "share_of_copy": _short(self.share_of_copy),
            "device": environment.device,
            "threads": environment.threads,
            "torch": environment.torch_version,
            "triton": environment.triton_version,
            "commit": environment.commit,
            "seed": environment.seed,
            "date": environment.date,
            "note": timing.note,
        }


class Recorder:
    """Writes the CSV case by case, so that an interrupted run keeps what it measured."""

    def __init__(self, path: Path, environment: Environment) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        self._environment = environment
        self._file = path.open("w", newline="")
        self._writer = csv.DictWriter(self._file, FIELDS)
        self._writer.writeheader()

    def __enter__(self) -> Recorder:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._file.close()

    def add(self, results: list[Result]) -> None:
        """Append lines and put them on disk."""
        self._writer.writerows(result.line(self._environment) for result in results)
        self._file.flush()


def results_of(case: Case, timings: Mapping[str, Timing]) -> list[Result]:
    """Relate a case's timings to its bytes, to the copy, and to ours; graphs are compared with graphs."""

    def related(name: str, to: str) -> float | None:
        """The other's median over this one's."""
        other = timings.get(to + (GRAPH if name.endswith(GRAPH) else ""), Timing())
        mine_us, other_us = timings[name].percentile_us(50), other.percentile_us(50)
        return other_us / mine_us if mine_us and other_us else None

    results = []
    for name, timing in timings.items():
        median_us = timing.percentile_us(50)
        moves = bool(case.min_bytes) and not name.startswith("empty")
        gb_per_s = case.min_bytes / median_us / 1e3 if median_us and moves else None
        share = related(name, "copy") if moves else None
        results.append(Result(name, case, timing, gb_per_s, share, related(name, "ours")))
    return results


def dtype_name(dtype: torch.dtype) -> str:
    """fp32, bf16 or fp16."""
    return {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[dtype]


def _short(value: float | None) -> str:
    if value is None:
        return ""
    return f"{value:.5g}" if value < 10_000 else f"{value:.0f}"


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return ""


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    for line in cpuinfo.read_text().splitlines() if cpuinfo.exists() else []:
        if line.startswith("model name"):
            return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _commit() -> str:
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        return git("rev-parse", "--short", "HEAD") + ("+dirty" if git("status", "--porcelain") else "")
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
