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


class _Read(NamedTuple):
    """What is known of an assistant's row `a`; the evidence is NaN if the row is not finite."""

    log_mean: float  # ln mean exp(a - max(a))
    lowest: float  # of the centred row
    evidence: float

    @classmethod
    def of(cls, vocab_size: int, largest: float, smallest: float, total: float, product: float) -> _Read:
        """From max(a), min(a), and the sums of exp(a - max(a)) and of exp(a - max(a)) (a - max(a))."""
        if not (largest < math.inf and smallest > -math.inf):
            return cls(math.nan, math.nan, math.nan)
        # ln(total / V), not ln(total) - ln(V): all-equal logits then give ln(1) = 0 exactly.
        log_mean = math.log(total / vocab_size)
        # As fp32, which is what is returned and what a gate may have been set to.
        return cls(log_mean, smallest - largest - log_mean, float(np.float32(product / total - log_mean)))


class _Row(NamedTuple):
    """A row that is written: row_M[m]."""

    m: int
    largest: float
    opened: list[int]  # the pairs that are open in it, as places in its block


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
    """Composes a block of rows at a time, in buffers that it keeps: fresh pages cost more than a pass over them.

    What is one number a row or pair is a Python float: next to a model's weights each call of torch is a cold one.
    """

    def __init__(self, target_RV: Tensor, assistant_NV: Tensor, pairs: Pairs, mode: Mode, done: _Done) -> None:
        self._target_RV = target_RV
        self._assistant_NV = assistant_NV
        self._mode = mode
        self._done = done
        self._row_M: list[int] = pairs.row_M.tolist()
        self._first_M: list[int] = pairs.first_M.tolist()
        self._log_ratio_M: list[float] = pairs.log_ratio_M.tolist()
        self._rank_M: list[int] = pairs.rank_M.tolist()
        self._member_N: list[int] = pairs.member_N.tolist()
        self._weight_N: list[float] = pairs.weight_N.tolist()
        self._gate_nats_N: list[float] = pairs.gate_nats_N.tolist()
        self._shifted = torch.empty(0)
        self._exp = torch.empty(0)

    def compose(self, first: int, last: int) -> None:
        """Rows row_M[first:last], in place."""
        start = self._first_M[first]
        members = self._member_N[start : self._first_M[last]]
        largest_B: list[float] = _rows(self._target_RV, self._row_M[first:last]).amax(-1).tolist()  # NaN if any is
        shifted_PV, read = self._shift(_rows(self._assistant_NV, members))
        written: list[_Row] = []
        for place, largest in enumerate(largest_B):
            m = first + place
            own = range(self._first_M[m] - start, self._first_M[m + 1] - start)
            opened = self._decide(own, members, read, largest)
            if opened is None:
                self._target_RV[self._row_M[m]] = -math.inf
            elif opened:
                written.append(_Row(m, largest, opened))
        if written:
            log_mean = _column([one.log_mean for one in read])
            taken_PV = shifted_PV.sub_(log_mean).mul_(_column([self._weight_N[n] for n in members]))
            self._subtract(written, _sums(taken_PV, [row.opened for row in written]))

    def _shift(self, assistant_PV: Tensor) -> tuple[Tensor, list[_Read]]:
        """Returns a - max(a), and what was read of each row."""
        num_pairs, vocab_size = assistant_PV.shape
        if self._shifted.shape[0] < num_pairs:
            self._shifted, self._exp = torch.empty(num_pairs, vocab_size), torch.empty(num_pairs, vocab_size)
        largest_P, smallest_P = assistant_PV.amax(-1).float(), assistant_PV.amin(-1).float()
        shifted_PV = self._shifted[:num_pairs].copy_(assistant_PV).sub_(largest_P[:, None])
        exp_PV = torch.exp(shifted_PV, out=self._exp[:num_pairs])
        total_P = exp_PV.sum(-1)
        # Not a dot product: over a large vocab that rounds ten times as much as torch's sum, which adds in a tree.
        product_P = exp_PV.mul_(shifted_PV).sum(-1)
        numbers = torch.stack((largest_P, smallest_P, total_P, product_P), dim=-1).tolist()
        return shifted_PV, [_Read.of(vocab_size, *four) for four in numbers]

    def _decide(self, own: range, members: list[int], read: list[_Read], largest: float) -> list[int] | None:
        """The pairs that are open in a row, as places in its block; None if the row can't be composed."""
        opened, bad = [], []
        raised = 0.0
        for p in own:
            n = members[p]
            evidence = read[p].evidence
            if not math.isfinite(evidence):
                bad.append(n)
                continue
            self._done.evidence_N[n] = evidence
            weight, gate = self._weight_N[n], self._gate_nats_N[n]
            if weight > 0 and (gate <= 0 or evidence >= gate):
                raised += max(0.0, -weight * read[p].lowest)
                opened.append(p)
        if not largest < math.inf or (opened and not largest + raised <= torch.finfo(self._target_RV.dtype).max):
            bad = [members[p] for p in own]
        for n in bad:
            self._done.bad_N[n] = True
        for p in opened:
            self._done.open_N[members[p]] = members[p] not in bad
        return None if bad else opened

    def _subtract(self, written: list[_Row], taken_WV: Tensor) -> None:
        rows = [self._row_M[row.m] for row in written]
        target_WV = _rows(self._target_RV, rows)
        logits_WV = target_WV.float()
        threshold_W = [self._threshold(row, logits) for row, logits in zip(written, logits_WV.numpy(), strict=True)]
        if self._mode == "scoring":
            composed_WV = torch.where(logits_WV >= _column(threshold_W), logits_WV - taken_WV, logits_WV)
        else:
            for row_V, threshold in zip(logits_WV, threshold_W, strict=True):
                _drop_below(row_V, threshold)
            composed_WV = logits_WV.sub_(taken_WV)
        if composed_WV.data_ptr() != self._target_RV[rows[0]].data_ptr():
            self._target_RV[torch.tensor(rows)] = composed_WV.to(target_WV.dtype)

    def _threshold(self, row: _Row, logits_V: np.ndarray) -> float:
        """The smallest logit that is kept."""
        threshold = np.float32(row.largest) + np.float32(self._log_ratio_M[row.m])
        rank = self._rank_M[row.m]
        # Where so many are kept, the rank-th largest is one of them.
        if np.count_nonzero(logits_V >= threshold) < rank:
            threshold = np.partition(logits_V, len(logits_V) - rank)[len(logits_V) - rank]
        return float(threshold)


def _rows(x: Tensor, rows: list[int]) -> Tensor:
    """The rows of `x` in this order: a view if they are neighbours, else a copy."""
    if rows[-1] - rows[0] + 1 == len(rows) and rows == list(range(rows[0], rows[-1] + 1)):
        return x[rows[0] : rows[-1] + 1]
    return x[torch.tensor(rows)]


def _column(values: list[float]) -> Tensor | float:
    """A number for each row, in the cheapest form that broadcasts."""
    return values[0] if len(values) == 1 else torch.tensor(values)[:, None]


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
