"""How the kernel benchmark times: providers take turns, fresh targets are brought back outside the timed region.

A rotation restores all input sets, then runs the provider once on each. On a CPU each run lies between two readings of
a clock, and its one input set may be in a cache. On a GPU each run lies between two events; the input sets together are
larger than the L2 cache, so that a run finds its logits in memory.

A "-graph" lane is one CUDA graph that holds the provider's run on every input set, one after the other, and nothing
else. It is replayed between two events, after a restore, and its time is divided by the number of input sets: no launch
is waited for. A replay composes fresh targets like any run; composed ones would move as much memory.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
import torch

from benchmarks.providers import Inputs, Run, lack_of_memory

GRAPH = "-graph"
SLOWEST = 5  # budgets; a provider whose first run takes longer is not timed
_ROUNDS = 5
_FEWEST_SAMPLES = 3
_GRAPH_ROWS = 64  # with more rows, launches are no part of the time worth showing
_SLEEP_CYCLES = 10_000_000  # about 5 ms in which the host gets a graph of thousands of launches into the queue
_COMPILED = {"compiled", "ours", "empty"}  # their very first call compiles


@dataclass(slots=True)
class Timing:
    """What one provider took in one case, in microseconds a run; or a note that says why it was not timed."""

    samples_us: list[float] = field(default_factory=list)
    note: str = ""

    def percentile_us(self, percent: float) -> float | None:
        """None if it was not timed."""
        return float(np.percentile(self.samples_us, percent)) if self.samples_us and not self.note else None


@dataclass(slots=True)
class _Lane:
    rotate: Callable[[], list[float]]
    timing: Timing
    spent_s: float = 0.0

    def turn(self, seconds: float) -> None:
        began = time.perf_counter()
        while not self.timing.note and time.perf_counter() - began < seconds:
            self.timing.note = _note_of(self._add_samples)
        self.spent_s += time.perf_counter() - began

    def _add_samples(self) -> None:
        self.timing.samples_us += self.rotate()

    def has_enough(self, budget_s: float) -> bool:
        return self.spent_s >= budget_s and len(self.timing.samples_us) >= _FEWEST_SAMPLES


def measure(
    runs: Mapping[str, Run | str], inputs: Inputs, budget_s: float, announce: Callable[[str], None] = lambda name: None
) -> dict[str, Timing]:
    """Time all providers of a case in turns, so that the noise of a shared machine hits all alike.

    Args:
        runs: provider -> how to run it on an input set, or why not.
        inputs: of the case.
        budget_s: seconds for each provider, warming up and compiling not counted.
        announce: told the name of the provider whose turn it is.

    Returns: provider -> its timing; if one cannot run, its note says why.
    """
    timings: dict[str, Timing] = {}
    lanes: dict[str, _Lane] = {}
    for name, run in runs.items():
        announce(name)
        note = run if isinstance(run, str) else _warm_up(name, run, inputs, budget_s)
        timings[name] = Timing(note=note)
        if isinstance(run, str):
            continue
        lanes[name] = _Lane(_rotation(run, inputs), timings[name])
        if _wants_graph(inputs):
            announce(name + GRAPH)
            lanes[name + GRAPH] = _graph_lane(run, inputs, note)
            timings[name + GRAPH] = lanes[name + GRAPH].timing
    for _ in range(_ROUNDS):
        for name, lane in lanes.items():
            if not (lane.timing.note or lane.has_enough(budget_s)):
                announce(name)
                lane.turn(budget_s / _ROUNDS)
    return timings


def _warm_up(name: str, run: Run, inputs: Inputs, budget_s: float) -> str:
    """Why the provider cannot be timed, or "" after running it."""
    lack = lack_of_memory(inputs.case, name, inputs.device, allocated=True)
    if lack:
        return lack

    def once() -> float:
        inputs.restore()
        _wait(inputs)
        began = time.perf_counter()
        run(0)
        _wait(inputs)
        return time.perf_counter() - began

    seconds = 0.0

    def first() -> None:
        nonlocal seconds
        if name in _COMPILED:
            once()
        seconds = once()

    note = _note_of(first)
    if not note and seconds > SLOWEST * budget_s:
        return f"too slow: the first run took {seconds:.1f} s, {SLOWEST * budget_s:g} s are allowed; raise --budget-s"
    return note


def _note_of(action: Callable[[], None]) -> str:
    try:
        action()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"
    except (MemoryError, RuntimeError) as error:
        first_line = str(error).partition("\n")[0]
        return f"{type(error).__name__}: {first_line}"
    return ""


def _rotation(run: Run, inputs: Inputs) -> Callable[[], list[float]]:
    def by_clock() -> list[float]:
        inputs.restore()
        samples = []
        for s in range(inputs.num_slots):
            began = time.perf_counter()
            run(s)
            samples.append((time.perf_counter() - began) * 1e6)
        return samples

    def by_events() -> list[float]:
        inputs.restore()
        events = [(_event(), _event()) for _ in range(inputs.num_slots)]
        for s, (before, after) in enumerate(events):
            before.record()
            run(s)
            after.record()
        torch.cuda.synchronize(inputs.device)
        return [before.elapsed_time(after) * 1e3 for before, after in events]

    return by_events if inputs.device.type == "cuda" else by_clock


def _wants_graph(inputs: Inputs) -> bool:
    case = inputs.case
    return inputs.device.type == "cuda" and case.num_sets > 0 and case.num_rows <= _GRAPH_ROWS


def _graph_lane(run: Run, inputs: Inputs, note: str) -> _Lane:
    graph = torch.cuda.CUDAGraph()

    def capture() -> None:
        inputs.restore()
        with torch.cuda.graph(graph):
            for s in range(inputs.num_slots):
                run(s)
        graph.replay()
        torch.cuda.synchronize(inputs.device)

    def rotate() -> list[float]:
        before, after = _event(), _event()
        inputs.restore()
        torch.cuda._sleep(_SLEEP_CYCLES)
        before.record()
        graph.replay()
        after.record()
        torch.cuda.synchronize(inputs.device)
        return [before.elapsed_time(after) * 1e3 / inputs.num_slots]

    return _Lane(rotate, Timing(note=note or _note_of(capture)))


def _event() -> torch.cuda.Event:
    return torch.cuda.Event(enable_timing=True)


def _wait(inputs: Inputs) -> None:
    if inputs.device.type == "cuda":
        torch.cuda.synchronize(inputs.device)
