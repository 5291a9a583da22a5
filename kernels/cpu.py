"""`compose` on a CPU: row by row, so that a row stays in the cache between its passes.

Shape legend: R target rows, N (row, forget set) pairs, V vocab.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearngate.kernels.pairs import Composition, Mode, Pairs

# A threshold beyond these has no fp32 neighbour below it that a comparison can tell from it.
_SMALLEST, _LARGEST = 2 * float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class _Done(NamedTuple):
    """What is known of each pair so far."""

    open_N: list[bool]
    evidence_N: list[float]
    bad_N: list[bool]


def compose_cpu(target_RV: Tensor, assistant_NV: Tensor, pairs: Pairs, *, mode: Mode = "sampling") -> Composition:
    """The formula of docs/composition.md in fp32, without padding; rows whose gates are all closed are not written."""
    num_pairs = pairs.row_N.shape[0]
    done = _Done([False] * num_pairs, [0.0] * num_pairs, [False] * num_pairs)
    if num_pairs and pairs.vocab_size:
        composer = _RowComposer(assistant_NV, pairs, mode, done)
        first_M, member_N = pairs.first_M.tolist(), pairs.member_N.tolist()
        settings = zip(pairs.row_M.tolist(), pairs.log_ratio_M.tolist(), pairs.rank_M.tolist(), strict=True)
        for m, (row, log_ratio, rank) in enumerate(settings):
            composer.compose(target_RV[row], member_N[first_M[m] : first_M[m + 1]], log_ratio, rank)
    return Composition(
        torch.tensor(done.open_N, dtype=torch.bool),
        torch.tensor(done.evidence_N, dtype=torch.float32),
        torch.tensor(done.bad_N, dtype=torch.bool),
    )


class _RowComposer:
    """Composes one row at a time, in buffers that it keeps: fresh pages cost more than a pass over them."""

    def __init__(self, assistant_NV: Tensor, pairs: Pairs, mode: Mode, done: _Done) -> None:
        self._assistant_NV = assistant_NV
        self._weight_N: list[float] = pairs.weight_N.tolist()
        self._gate_nats_N: list[float] = pairs.gate_nats_N.tolist()
        self._mode = mode
        self._done = done
        buffers = (torch.empty(pairs.vocab_size) for _ in range(4))
        self._logits_V, self._shifted_V, self._taken_V, self._exp_V = buffers

    def compose(self, row_V: Tensor, members: list[int], log_ratio: float, rank: int) -> None:
        """One row in place."""
        largest = float(row_V.amax())  # NaN if any is
        opened: list[int] = []
        bad: list[int] = []
        raised = 0.0
        for n in members:
            # The first open pair's centred logits become the sum, the others are added to it.
            buffer_V = self._shifted_V if opened else self._taken_V
            evidence, log_mean, lowest = self._centre(self._assistant_NV[n], buffer_V)
            if not math.isfinite(evidence):
                bad.append(n)
                continue
            self._done.evidence_N[n] = evidence
            weight, gate = self._weight_N[n], self._gate_nats_N[n]
            if weight > 0 and (gate <= 0 or evidence >= gate):
                raised += max(0.0, -weight * lowest)
                buffer_V.sub_(log_mean).mul_(weight)
                if opened:
                    self._taken_V.add_(buffer_V)
                opened.append(n)
        if not largest < math.inf or (opened and not largest + raised <= torch.finfo(row_V.dtype).max):
            bad = members
        for n in bad:
            self._done.bad_N[n] = True
        for n in opened:
            self._done.open_N[n] = n not in bad
        if bad:
            row_V.fill_(-math.inf)
        elif opened:
            self._subtract(row_V, largest, log_ratio, rank)

    def _centre(self, assistant_V: Tensor, out_V: Tensor) -> tuple[float, float, float]:
        """Writes a - max(a) to out_V. Returns the evidence, ln mean exp(a - max(a)) and min(c); NaN if not finite."""
        largest, smallest = float(assistant_V.amax()), float(assistant_V.amin())
        if not (largest < math.inf and smallest > -math.inf):
            return math.nan, math.nan, math.nan
        out_V.copy_(assistant_V).sub_(largest)
        torch.exp(out_V, out=self._exp_V)
        total_1 = self._exp_V.sum()
        # ln(total / V), not ln(total) - ln(V): all-equal logits then give ln(1) = 0 exactly.
        log_mean_1 = (total_1 / out_V.shape[0]).log()
        # Not a dot product: over a large vocab that rounds ten times as much as torch's sum, which adds in a tree.
        evidence = float(self._exp_V.mul_(out_V).sum() / total_1 - log_mean_1)
        log_mean = float(log_mean_1)
        return evidence, log_mean, smallest - largest - log_mean

    def _subtract(self, row_V: Tensor, largest: float, log_ratio: float, rank: int) -> None:
        threshold = -math.inf
        if log_ratio > -math.inf:
            ratio = float(np.float32(largest) + np.float32(log_ratio))
            threshold = min(ratio, self._kth_largest(row_V, rank))
        logits_V = row_V if row_V.dtype == torch.float32 else self._logits_V.copy_(row_V)
        if self._mode == "sampling" and _SMALLEST < abs(threshold) < _LARGEST:
            # torch.threshold keeps what is larger than its bound, and is several times faster than a mask.
            below = float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))
            composed_V = torch.threshold_(logits_V, below, -math.inf).sub_(self._taken_V)
        else:
            dropped_V = logits_V if self._mode == "scoring" else torch.full_like(logits_V, -math.inf)
            composed_V = torch.where(logits_V >= threshold, logits_V - self._taken_V, dropped_V)
        if composed_V is not row_V:
            row_V.copy_(composed_V)

    def _kth_largest(self, row_V: Tensor, rank: int) -> float:
        """Exact, by partition: several times faster than any selection in torch."""
        logits = self._logits_V.copy_(row_V).numpy()
        position = logits.shape[0] - rank
        logits.partition(position)
        return float(logits[position])
