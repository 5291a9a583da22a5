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

_SMALLEST = 2 * float(np.finfo(np.float32).tiny)  # below it, a neighbour may be flushed to zero


class _Centred(NamedTuple):
    """An assistant row's statistics: c_v = shifted_v - log_mean, with shifted in the buffer it was computed in."""

    log_mean: float
    evidence: float
    lowest: float


def compose_cpu(target_RV: Tensor, assistant_NV: Tensor, pairs: Pairs, *, mode: Mode = "sampling") -> Composition:
    """The formula of docs/composition.md in fp32, without padding; rows whose gates are all closed are not written."""
    num_pairs = pairs.row_N.shape[0]
    result = Composition(
        torch.zeros(num_pairs, dtype=torch.bool), torch.zeros(num_pairs), torch.zeros(num_pairs, dtype=torch.bool)
    )
    if num_pairs == 0 or pairs.vocab_size == 0:
        return result
    row = _Row(pairs, assistant_NV, mode, torch.finfo(target_RV.dtype).max)
    bounds = pairs.first_M.tolist()
    member_N = pairs.member_N.tolist()
    settings = zip(pairs.row_M.tolist(), pairs.log_ratio_M.tolist(), pairs.rank_M.tolist(), strict=True)
    for m, (r, log_ratio, rank) in enumerate(settings):
        row.compose(target_RV[r], member_N[bounds[m] : bounds[m + 1]], log_ratio, rank, result)
    return result


class _Row:
    """Composes one row at a time in buffers that it keeps."""

    def __init__(self, pairs: Pairs, assistant_NV: Tensor, mode: Mode, limit: float) -> None:
        self._assistant_NV = assistant_NV
        self._weight_N: list[float] = pairs.weight_N.tolist()
        self._gate_nats_N: list[float] = pairs.gate_nats_N.tolist()
        self._mode = mode
        self._limit = limit
        self._shifted_V, self._taken_V, self._exp_V = torch.empty(3, pairs.vocab_size).unbind()

    def compose(self, row_V: Tensor, members: list[int], log_ratio: float, rank: int, result: Composition) -> None:
        """One row in place; its pairs' results into `result`."""
        largest = float(row_V.amax())  # NaN if any is
        opened: list[int] = []
        bad: list[int] = []
        raised = 0.0
        for n in members:
            # The first open pair's centred logits become the sum, the others are added to it.
            buffer_V = self._shifted_V if opened else self._taken_V
            centred = self._centre(self._assistant_NV[n], buffer_V)
            if not math.isfinite(centred.evidence):
                bad.append(n)
                continue
            result.evidence_N[n] = centred.evidence
            weight, gate = self._weight_N[n], self._gate_nats_N[n]
            if weight > 0 and (gate <= 0 or centred.evidence >= gate):
                raised += max(0.0, -weight * centred.lowest)
                buffer_V.sub_(centred.log_mean).mul_(weight)
                if opened:
                    self._taken_V.add_(buffer_V)
                opened.append(n)
        if not largest < math.inf or (opened and not largest + raised <= self._limit):
            bad = members
        if bad:
            row_V.fill_(-math.inf)
        elif opened:
            self._subtract(row_V, largest, log_ratio, rank)
        result.bad_N[bad] = True
        result.open_N[[n for n in opened if n not in bad]] = True

    def _centre(self, assistant_V: Tensor, out_V: Tensor) -> _Centred:
        """Writes a - max(a) to out_V. The evidence is NaN if a is not finite."""
        largest, smallest = float(assistant_V.amax()), float(assistant_V.amin())
        if not (largest < math.inf and smallest > -math.inf):
            return _Centred(math.nan, math.nan, math.nan)
        torch.sub(assistant_V.float(), largest, out=out_V)
        torch.exp(out_V, out=self._exp_V)
        total_1 = self._exp_V.sum()
        # log(total / V), not log(total) - log(V): all-equal logits then give log(1) = 0 exactly.
        log_mean_1 = (total_1 / out_V.shape[0]).log()
        evidence = float(torch.dot(self._exp_V, out_V) / total_1 - log_mean_1)
        log_mean = float(log_mean_1)
        return _Centred(log_mean, evidence, smallest - largest - log_mean)

    def _subtract(self, row_V: Tensor, largest: float, log_ratio: float, rank: int) -> None:
        logits_V = row_V.float()
        if log_ratio > -math.inf:
            ratio = float(np.float32(largest) + np.float32(log_ratio))
            threshold = min(ratio, _kth_largest(logits_V, rank))
        else:
            threshold = -math.inf
        if self._mode == "sampling" and abs(threshold) > _SMALLEST:
            # torch.threshold keeps what is larger than its bound, and is several times faster than a mask.
            below = float(torch.nextafter(torch.tensor(threshold), torch.tensor(-math.inf)))
            kept_V = torch.threshold(logits_V, below, -math.inf)
            composed_V = torch.sub(kept_V, self._taken_V, out=self._exp_V)
        else:
            dropped_V = logits_V if self._mode == "scoring" else torch.full_like(logits_V, -math.inf)
            composed_V = torch.where(logits_V >= threshold, logits_V - self._taken_V, dropped_V)
        row_V.copy_(composed_V)


def _kth_largest(logits_V: Tensor, rank: int) -> float:
    """Exact, by partition: about twenty times faster than any selection in torch."""
    position = logits_V.shape[0] - rank
    return float(np.partition(logits_V.numpy(), position)[position])
