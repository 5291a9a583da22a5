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

from unlearngate.server.contract.tally import Tally


class _Step(NamedTuple):
    leases: np.ndarray
    numbers: Tensor  # (2 R + 1,) int64 on the host: the rows' positions, their marks, then all bad rows so far
    started: Any
    ended: Any


class Recorder:
    """Writes the tally."""

    def __init__(self, tally: Tally, device: torch.device) -> None:
        self._tally = tally
        self._steps: queue.SimpleQueue[_Step] | None = None
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

    def start(self) -> Any:
        """A mark in time, on the device's clock."""
        return time.perf_counter_ns() if self._steps is None else _recorded_event()

    def record(self, started: Any, leases: np.ndarray, position_R: Tensor, marks_R: Tensor, bad_rows: Tensor) -> None:
        """Record a step that was composed since `started`.

        Args:
            started: from `start`.
            leases: (R,) int64, the rows' leases; 0 for none.
            position_R: (R,) int64, the output position that each row samples; below 0 if vLLM discards the row.
            marks_R: (R,) int64, as `Tally.write` takes them.
            bad_rows: () int64, rows so far that were not finite.
        """
        numbers = torch.cat([position_R, marks_R, bad_rows.view(1)])
        if self._steps is None:
            self._write(leases, numbers.numpy(), time.perf_counter_ns() - started)
            return
        on_host = torch.empty(numbers.shape, dtype=numbers.dtype, pin_memory=True)
        on_host.copy_(numbers, non_blocking=True)
        self._steps.put(_Step(leases, on_host, started, _recorded_event()))

    def _write(self, leases: np.ndarray, numbers: np.ndarray, compose_ns: int) -> None:
        positions, marks = np.split(numbers[:-1], 2)
        self._tally.write(leases, positions, marks)
        self._tally.add_step(compose_ns, int(numbers[-1]))

    def _write_steps(self, steps: queue.SimpleQueue[_Step]) -> None:
        while True:
            step = steps.get()
            step.ended.synchronize()
            compose_ns = int(step.started.elapsed_time(step.ended) * 1e6)
            self._write(step.leases, step.numbers.numpy(), compose_ns)


def _recorded_event() -> Any:
    event = torch.cuda.Event(enable_timing=True)
    event.record()
    return event
