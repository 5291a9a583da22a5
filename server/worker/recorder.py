"""What an engine process tells the server about each composed step: open gates, time, rows that were not finite.

On a CPU it is written at once. On a GPU nothing waits for the device: a few bytes are copied to the host behind the
step's kernels, and a thread writes them to the tally once they arrive. They arrive before the step's sampled tokens,
which are copied later, but another process may have those before the tally is written: see docs/audit.md.
"""

from __future__ import annotations

import queue
import threading
import time
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearngate.server.contract.tally import COUNTS, Tally


class Composed(NamedTuple):
    """A step that was composed.

    started, ended: from `Recorder.now`.
    leases: (R,) int64, the rows' leases; 0 for none.
    position_R: (R,) int64, the output position that each row samples; below 0 if its token is not kept.
    marks_R: (R,) int64, as `Tally.write` takes them.
    """

    started: Any
    ended: Any
    leases: np.ndarray
    position_R: Tensor
    marks_R: Tensor


class _Arriving(NamedTuple):
    step: Composed | None
    numbers: Tensor  # (2 R + COUNTS,) int64 on the host: the rows' positions, their marks, then the counts so far
    arrived: Any


class Recorder:
    """Writes the tally."""

    def __init__(self, tally: Tally, device: torch.device) -> None:
        self._tally = tally
        self._steps: queue.SimpleQueue[_Arriving] | None = None
        if device.type == "cuda":
            self._steps = queue.SimpleQueue()
            threading.Thread(target=self._write_steps, args=(self._steps,), name="tally", daemon=True).start()

    @classmethod
    def attach(cls, device: torch.device) -> Recorder | None:
        """A recorder; None if no server reads it, and in all ranks but the first: they compose the same rows."""
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed and torch.distributed.get_rank() != 0:
            return None
        tally = Tally.attach()
        return cls(tally, device) if tally else None

    def now(self) -> Any:
        """A mark in time, on the device's clock."""
        return time.perf_counter_ns() if self._steps is None else _recorded_event()

    def record(self, step: Composed | None, counts: Tensor) -> None:
        """Record a step, if it composed, and the counts so far: (COUNTS,) int64, as `Tally.set_counts` takes them."""
        of_rows = (step.position_R, step.marks_R) if step else ()
        numbers = torch.cat([*of_rows, counts])
        if self._steps is None:
            self._write(step, numbers.numpy(), step.ended - step.started if step else 0)
            return
        on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        on_host.copy_(numbers, non_blocking=True)
        self._steps.put(_Arriving(step, on_host, _recorded_event()))

    def _write(self, step: Composed | None, numbers: np.ndarray, compose_ns: int) -> None:
        if step:
            positions, marks = np.split(numbers[:-COUNTS], 2)
            self._tally.write(step.leases, positions, marks)
            self._tally.add_step(compose_ns)
        self._tally.set_counts(numbers[-COUNTS:])

    def _write_steps(self, steps: queue.SimpleQueue[_Arriving]) -> None:
        while True:
            step, numbers, arrived = steps.get()
            arrived.synchronize()
            compose_ns = int(step.started.elapsed_time(step.ended) * 1e6) if step else 0
            self._write(step, numbers.numpy(), compose_ns)


def _recorded_event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
