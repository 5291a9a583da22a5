"""Which gates were open at which token: memory that the engine writes and the HTTP process reads.

    header   int64   the fields of `Totals`
    said     uint16  (slots,): the lease's tag << 8 | 1 + the branch whose sentence the sequence says, 0 for none
    cells    uint16  (slots, width): at a slot and an output position, the lease's tag << 8 | one bit per open branch

A sequence that the engine runs leases a slot; its signed plan carries the lease. A cell is written before its token is
sampled, and again if the row is computed again. The reader takes only the positions of tokens that it received, so rows
that vLLM discards never count. A cell whose tag is not the lease's was not written for this sequence.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

import numpy as np
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily
from prometheus_client.registry import Collector

from unlearngate.errors import UnlearngateError
from unlearngate.server.contract.branches import MAX_BRANCHES

TALLY_VARIABLE = "UNLEARNGATE_TALLY"
_HEADER_BYTES = 64
_BUDGET_BYTES = 64 * 2**20
_MOST_SLOTS = 4096
_TAGS = 255  # 1 to 255: 0 is a cell that was never written


class Totals(NamedTuple):
    """Since the start: rows that were not finite, steps that composed, nanoseconds spent composing, and draft tokens.

    The latter by whether a set was in force in their request, verified and, of these, accepted.
    """

    steps: int
    compose_ns: int
    bad_rows: int
    plain_drafts: int
    set_drafts: int
    plain_accepted: int
    set_accepted: int


COUNTS = len(Totals._fields) - 2  # those that the engine counts on its device


class Tally:
    """A file that both processes map. Only the creator leases, only one engine process writes."""

    def __init__(self, path: Path, num_slots: int, width: int) -> None:
        self.path, self.num_slots, self.width = path, num_slots, width
        self._header = np.memmap(path, np.int64, "r+", 0, (_HEADER_BYTES // 8,))
        self._said = np.memmap(path, np.uint16, "r+", _HEADER_BYTES, (num_slots,))
        self._cells = np.memmap(path, np.uint16, "r+", _HEADER_BYTES + 2 * num_slots, (num_slots, width))
        self._free: deque[int] = deque(range(num_slots))  # first in, first out: a slot rests as long as possible
        self._tags = [0] * num_slots

    @classmethod
    def create(cls, folder: Path, *, max_num_seqs: int, max_model_len: int) -> Tally:
        """Make the file, and name it in the environment for the engine's processes to inherit.

        Args:
            folder: where the file goes.
            max_num_seqs: sequences that run at once; those that wait lease slots too, as far as 64 MiB go.
            max_model_len: tokens that a sequence may have.

        Raises: UnlearngateError if the space cannot be reserved: writing to a hole of a full disk would end the engine.
        """
        fitting = _BUDGET_BYTES // (2 * max_model_len)
        num_slots = max(max_num_seqs, min(fitting, _MOST_SLOTS))
        path, size_bytes = folder / "tally", _HEADER_BYTES + 2 * num_slots * (1 + max_model_len)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            with path.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, size_bytes)
        except OSError as error:
            raise UnlearngateError(
                f"{path}: cannot get the {size_bytes} bytes that count open gates ({error.strerror}); "
                "make room there, or set TMPDIR to a folder with room"
            ) from error
        os.environ[TALLY_VARIABLE] = f"{num_slots}:{max_model_len}:{path}"
        return cls(path, num_slots, max_model_len)

    @classmethod
    def attach(cls) -> Tally | None:
        """The tally of the server that started this process; None in an engine that no server started."""
        named = os.environ.get(TALLY_VARIABLE)
        if not named:
            return None
        num_slots, width, path = named.split(":", 2)
        return cls(Path(path), int(num_slots), int(width))

    def lease(self) -> int:
        """A slot and its next tag as one number above 0, or 0 if all slots are taken."""
        if not self._free:
            return 0
        slot = self._free.popleft()
        if self._tags[slot] == _TAGS:
            self._cells[slot] = self._said[slot] = 0
            self._tags[slot] = 0
        self._tags[slot] += 1
        return slot << 8 | self._tags[slot]

    def release(self, lease: int) -> None:
        """Free the slot of a sequence that has ended. What it still writes has a tag that is no longer read."""
        if lease:
            self._free.append(lease >> 8)

    def write(self, leases: np.ndarray, positions: np.ndarray, marks: np.ndarray) -> None:
        """Record which branches' gates are open at these output positions; skip rows without a lease or a position.

        Args:
            leases: (R,) int64, 0 for a sequence without one.
            positions: (R,) int64, below 0 for a row whose token vLLM discards.
            marks: (R,) one bit per open branch, and << 8: 1 + the branch whose sentence is said, 0 for none.
        """
        slots = leases >> 8
        known = (leases > 0) & (slots < self.num_slots) & (positions >= 0) & (positions < self.width)
        tags = (leases & 255) << 8
        self._cells[slots[known], positions[known]] = (tags | marks & 255)[known].astype(np.uint16)
        self._said[slots[known]] = (tags | marks >> 8)[known].astype(np.uint16)

    def open_tokens(self, lease: int, num_tokens: int) -> list[int] | None:
        """How many of a sequence's first tokens had an open gate, by branch; None if one of them is not known."""
        if num_tokens == 0:
            return [0] * MAX_BRANCHES
        if not lease or num_tokens > self.width:
            return None
        cells = self._cells[lease >> 8, :num_tokens]
        if not np.all(cells >> 8 == lease & 255):
            return None
        return [int(np.count_nonzero(cells & (1 << branch))) for branch in range(MAX_BRANCHES)]

    def sentence_of(self, lease: int) -> int | None:
        """1 + the branch whose sentence a sequence with tokens says, 0 if it says none; None if that is not known."""
        said = int(self._said[lease >> 8])
        return said & 255 if said >> 8 == lease & 255 else None

    def add_step(self, compose_ns: int) -> None:
        """Count a step that composed."""
        self._header[:2] += [1, compose_ns]

    def set_counts(self, counts: np.ndarray) -> None:
        """Set the totals that the engine counts on its device: (COUNTS,), in the order of `Totals`."""
        self._header[2 : 2 + COUNTS] = counts

    def totals(self) -> Totals:
        """The engine's counts so far."""
        return Totals(*map(int, self._header[: 2 + COUNTS]))


class _EngineCollector(Collector):
    def __init__(self, tally: Tally) -> None:
        self._tally = tally

    def collect(self) -> Iterable[CounterMetricFamily]:
        totals = self._tally.totals()
        for name, what, value in (
            ("unlearngate_compose_steps", "Engine steps that composed at least one row", totals.steps),
            ("unlearngate_compose_seconds", "Time that composing took in these steps", totals.compose_ns / 1e9),
            ("unlearngate_bad_rows", "Rows that held NaN or infinity: their requests were ended", totals.bad_rows),
        ):
            yield CounterMetricFamily(name, what, value=value)
        for name, what, plain, with_sets in (
            ("unlearngate_draft_tokens", "Draft tokens that were verified", totals.plain_drafts, totals.set_drafts),
            (
                *("unlearngate_accepted_draft_tokens", "Draft tokens that the verified rows sampled too"),
                *(totals.plain_accepted, totals.set_accepted),
            ),
        ):
            family = CounterMetricFamily(name, f"{what}, by whether their request had a set in force", labels=["sets"])
            family.add_metric(["none"], plain)
            family.add_metric(["some"], with_sets)
            yield family


def engine_text(tally: Tally) -> bytes:
    """What the engine's process counted, in Prometheus' text format."""
    registry = CollectorRegistry()
    registry.register(_EngineCollector(tally))
    return generate_latest(registry)
