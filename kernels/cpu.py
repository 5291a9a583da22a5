"""`compose` on a CPU: as many rows at a time as stay in the cache between the passes over them.

Shape legend: R target rows, N (row, forget set) pairs, V vocab; in a block B rows with P pairs, W of the rows written.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearngate.kernels.pairs import Composition, Mode, Pairs

_BLOCK = 2**17  # logits, half a MiB in fp32
# A threshold beyond these has no fp32 neighbour below it that a comparison can tell from it.
_SMALLEST, _LARGEST = 2 * float(np.finfo(np.float32).tiny), float(np.finfo(np.float32).max)


class _Done(NamedTuple):
    """What is known of each pair so far."""

    open_N: list[bool]
    evidence_N: list[float]
    bad_N: list[bool]


class _Row(NamedTuple):
    """A row that is written, and those of the block's pairs that are open in it."""

    place: int  # in the block
    opened: list[int]


def compose_cpu(target_RV: Tensor, assistant_NV: Tensor, pairs: Pairs, *, mode: Mode = "sampling") -> Composition:
    """The formula of docs/composition.md in fp32, without padding; rows whose gates are all closed are not written."""
    num_pairs = pairs.row_N.shape[0]
    done = _Done([False] * num_pairs, [0.0] * num_pairs, [False] * num_pairs)
    if num_pairs and pairs.vocab_size:
        composer = _Composer(target_RV, assistant_NV, pairs, mode, done)
        num_rows, step = pairs.row_M.shape[0], max(1, _BLOCK // pairs.vocab_size)
        for first in range(0, num_rows, step):
            composer.compose(first, min(first + step, num_rows))
    return Composition(
        torch.tensor(done.open_N, dtype=torch.bool),
        torch.tensor(done.evidence_N, dtype=torch.float32),
        torch.tensor(done.bad_N, dtype=torch.bool),
    )


class _Composer:
    """Composes a block of rows at a time, in buffers that it keeps: fresh pages cost more than a pass over them."""

    def __init__(self, target_RV: Tensor, assistant_NV: Tensor, pairs: Pairs, mode: Mode, done: _Done) -> None:
        self._target_RV = target_RV
        self._assistant_NV = assistant_NV
        self._pairs = pairs
        self._mode = mode
        self._done = done
        self._row_M: list[int] = pairs.row_M.tolist()
        self._first_M: list[int] = pairs.first_M.tolist()
        self._member_N: list[int] = pairs.member_N.tolist()
        self._weight_N: list[float] = pairs.weight_N.tolist()
        self._gate_nats_N: list[float] = pairs.gate_nats_N.tolist()
        self._shifted = torch.empty(0)
        self._exp = torch.empty(0)

    def compose(self, first: int, last: int) -> None:
        """Rows row_M[first:last], in place."""
        start = self._first_M[first]
        members = self._member_N[start : self._first_M[last]]
        target_BV = _rows(self._target_RV, self._row_M[first:last])
        largest_B = target_BV.amax(-1)  # NaN if any is
        shifted_PV, log_mean_P, lowest, evidence = self._shift(_rows(self._assistant_NV, members))
        written: list[_Row] = []
        for place, largest in enumerate(largest_B.tolist()):
            own = range(self._first_M[first + place] - start, self._first_M[first + place + 1] - start)
            opened = self._decide(own, members, lowest, evidence, largest)
            if opened is None:
                self._target_RV[self._row_M[first + place]] = -math.inf
            elif opened:
                written.append(_Row(place, opened))
        if written:
            weight_P1 = _rows(self._pairs.weight_N, members)[:, None]
            taken_PV = shifted_PV.sub_(log_mean_P[:, None]).mul_(weight_P1)
            self._subtract(first, written, largest_B.float(), _sums(taken_PV, [row.opened for row in written]))

    def _shift(self, assistant_PV: Tensor) -> tuple[Tensor, Tensor, list[float], list[float]]:
        """Returns a - max(a), ln mean exp(a - max(a)), min(c), and the evidence, which is NaN if `a` is not finite."""
        num_pairs, vocab_size = assistant_PV.shape
        if self._shifted.shape[0] < num_pairs:
            self._shifted, self._exp = torch.empty(num_pairs, vocab_size), torch.empty(num_pairs, vocab_size)
        largest_P, smallest_P = assistant_PV.amax(-1).float(), assistant_PV.amin(-1).float()
        shifted_PV = self._shifted[:num_pairs].copy_(assistant_PV).sub_(largest_P[:, None])
        exp_PV = torch.exp(shifted_PV, out=self._exp[:num_pairs])
        total_P = exp_PV.sum(-1)
        # ln(total / V), not ln(total) - ln(V): all-equal logits then give ln(1) = 0 exactly.
        log_mean_P = (total_P / vocab_size).log()
        # Not a dot product: over a large vocab that rounds ten times as much as torch's sum, which adds in a tree.
        evidence_P = exp_PV.mul_(shifted_PV).sum(-1) / total_P - log_mean_P
        lowest_P = smallest_P - largest_P - log_mean_P
        finite_P = (largest_P < math.inf) & (smallest_P > -math.inf)
        return shifted_PV, log_mean_P, lowest_P.tolist(), torch.where(finite_P, evidence_P, math.nan).tolist()

    def _decide(
        self, own: range, members: list[int], lowest: list[float], evidence: list[float], largest: float
    ) -> list[int] | None:
        """The pairs that are open in a row, as places in its block; None if the row can't be composed."""
        opened, bad = [], []
        raised = 0.0
        for p in own:
            n = members[p]
            if not math.isfinite(evidence[p]):
                bad.append(n)
                continue
            self._done.evidence_N[n] = evidence[p]
            weight, gate = self._weight_N[n], self._gate_nats_N[n]
            if weight > 0 and (gate <= 0 or evidence[p] >= gate):
                raised += max(0.0, -weight * lowest[p])
                opened.append(p)
        if not largest < math.inf or (opened and not largest + raised <= torch.finfo(self._target_RV.dtype).max):
            bad = [members[p] for p in own]
        for n in bad:
            self._done.bad_N[n] = True
        for p in opened:
            self._done.open_N[members[p]] = members[p] not in bad
        return None if bad else opened

    def _subtract(self, first: int, written: list[_Row], largest_B: Tensor, taken_WV: Tensor) -> None:
        rows = [self._row_M[first + row.place] for row in written]
        target_WV = _rows(self._target_RV, rows)
        logits_WV = target_WV.float()
        places = [first + row.place for row in written]
        log_ratio_W = _rows(self._pairs.log_ratio_M, places)
        ratio_W = _rows(largest_B, [row.place for row in written]) + log_ratio_W
        threshold = ratio_W.tolist()
        kept_WV = (logits_WV >= ratio_W[:, None]).numpy()
        for w, rank in enumerate(_rows(self._pairs.rank_M, places).tolist()):
            # Where so many are kept, the rank-th largest is one of them.
            if np.count_nonzero(kept_WV[w]) < rank:
                threshold[w] = _kth_largest(logits_WV[w], rank)
        if self._mode == "scoring":
            threshold_W1 = torch.tensor(threshold)[:, None]
            composed_WV = torch.where(logits_WV >= threshold_W1, logits_WV - taken_WV, logits_WV)
        else:
            for row_V, bound in zip(logits_WV, threshold, strict=True):
                _drop_below(row_V, bound)
            composed_WV = logits_WV.sub_(taken_WV)
        if composed_WV.data_ptr() != self._target_RV[rows[0]].data_ptr():
            self._target_RV[torch.tensor(rows)] = composed_WV.to(target_WV.dtype)


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    """The rows of `x` in this order: a view if they are neighbours, else a copy."""
    if rows[-1] - rows[0] + 1 == len(rows) and rows == list(range(rows[0], rows[-1] + 1)):
        return x[rows[0] : rows[-1] + 1]
    return x[torch.tensor(rows)]


def _sums(taken_PV: Tensor, opened: list[list[int]]) -> Tensor:
    """(W, V): for each row, the sum over its open pairs, which may lie in taken_PV."""
    for first, *others in opened:
        for p in others:
            taken_PV[first].add_(taken_PV[p])
    return _rows(taken_PV, [places[0] for places in opened])


def _drop_below(row_V: Tensor, threshold: float) -> None:
    if _SMALLEST < abs(threshold) < _LARGEST:
        # torch.threshold keeps what is larger than its bound, and is several times faster than a mask.
        below = float(np.nextafter(np.float32(threshold), np.float32(-np.inf)))
        torch.threshold_(row_V, below, -math.inf)
    else:
        row_V.masked_fill_(row_V < threshold, -math.inf)


def _kth_largest(row_V: Tensor, rank: int) -> float:
    """Exact, by partition: several times faster than any selection in torch."""
    position = row_V.shape[0] - rank
    return float(np.partition(row_V.numpy(), position)[position])
