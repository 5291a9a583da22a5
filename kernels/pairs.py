"""The inputs and outputs of one composition, besides the logits."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
import torch
from torch import Tensor

Mode = Literal["sampling", "scoring"]
MODES = ("sampling", "scoring")
# The served logit of a token that is not kept, in nats. Not -inf: a client's mask or grammar may leave nothing else,
# and equally likely tokens can be sampled where an empty row cannot. A client's logit_bias, at most 100, lifts no token
# from here, and the logits of tokens that are kept lie far above.
CUT = -10_000.0
_NO_ROW = -1
_LARGEST = torch.finfo(torch.float32).max


class Composition(NamedTuple):
    """What `compose` did beside writing the logits.

    open_N: (N,) bool, the pair's gate was open and its weight above 0.
    evidence_N: (N,) fp32, KL(p_assistant || uniform) in nats; 0 where the assistant row is not finite.
    bad_N: (N,) bool, the pair's target row holds NaN or +inf, its assistant row is not finite, or the row overflows.
    """

    open_N: Tensor
    evidence_N: Tensor
    bad_N: Tensor


class Numbers(NamedTuple):
    """The index tensors of `Pairs` that the CPU kernel reads, as numpy arrays, in the order of its arguments."""

    row_M: np.ndarray
    first_M: np.ndarray
    member_N: np.ndarray
    weight_N: np.ndarray
    gate_nats_N: np.ndarray
    lowers_N: np.ndarray
    log_ratio_M: np.ndarray
    rank_M: np.ndarray
    log_tail_M: np.ndarray


@dataclass(frozen=True, slots=True)
class Pairs:
    """The (row, forget set) pairs of one batch as index tensors: in this row, this set is in force.

    Built once per batch composition by `Pairs.build`, which checks every value on the host, so that `compose` need not
    check any: on a GPU that would stall the queue. Rows without a pair appear nowhere.

    N pairs in the order of the assistants' rows; M distinct rows among them, ascending; row_M is -1 in padding.
    The pairs of row_M[m] are member_N[first_M[m] : first_M[m + 1]].
    """

    row_N: Tensor  # (N,) int64
    weight_N: Tensor  # (N,) fp32
    gate_nats_N: Tensor  # (N,) fp32
    lowers_N: Tensor  # (N,) bool, the set lowers tokens and raises none
    row_M: Tensor  # (M,) int64
    first_M: Tensor  # (M + 1,) int32
    member_N: Tensor  # (N,) int32
    log_ratio_M: Tensor  # (M,) fp32, ln of the keep ratio; -inf keeps every token
    rank_M: Tensor  # (M,) int32, k = max(1, floor(keep ratio * V))
    log_tail_M: Tensor  # (M,) fp32, ln of the tail ratio; -inf cuts nothing
    num_rows: int
    vocab_size: int
    padded: bool = False
    ranks: bool = True  # whether a row may have a keep ratio above 0
    cuts_tails: bool = True  # whether a row may have a tail ratio above 0
    _numbers: list[Numbers] = field(default_factory=list, init=False, repr=False, compare=False)

    @classmethod
    def build(
        cls,
        row_N: Sequence[int],
        weight_N: Sequence[float],
        gate_nats_N: Sequence[float],
        keep_ratio_R: Sequence[float],
        *,
        lowers_N: Sequence[bool] | None = None,
        tail_ratio_R: Sequence[float] | None = None,
        vocab_size: int,
        device: torch.device | str = "cpu",
        capacity: int | None = None,
    ) -> Pairs:
        """Check the pairs and put them on the device.

        Args:
            row_N: the row of each pair, in [0, R). Several pairs may name one row; their subtractions add.
            weight_N: finite and >= 0; a pair of weight 0 is not in force.
            gate_nats_N: >= 0; the evidence in nats from which a pair is open; 0 is always open.
            keep_ratio_R: tau in [0, 1] of every row of the batch; 0 keeps every token. Its length is R.
            lowers_N: the set of this pair lowers tokens and raises none; None: each set does both.
            tail_ratio_R: rho in [0, 1] of every row: the share of the best composed probability that a token needs; 0
                and None cut nothing.
            vocab_size: V.
            device: where the logits are.
            capacity: pad to this many pairs and rows, for `copy_` and CUDA graphs.

        Raises: ValueError that names the pair and what was expected.
        """
        num_pairs, num_rows = len(row_N), len(keep_ratio_R)
        lowers_N = [False] * num_pairs if lowers_N is None else lowers_N
        tail_ratio_R = [0.0] * num_rows if tail_ratio_R is None else tail_ratio_R
        _check_pairs(row_N, weight_N, gate_nats_N, lowers_N, num_rows)
        _check_ratios(keep_ratio_R, tail_ratio_R)
        if capacity is not None and num_pairs > capacity:
            raise ValueError(f"{num_pairs} pairs do not fit in a capacity of {capacity}")
        members: dict[int, list[int]] = {}
        for n, row in enumerate(row_N):
            members.setdefault(row, []).append(n)
        rows = sorted(members)
        first = [0]
        for row in rows:
            first.append(first[-1] + len(members[row]))
        ratios, tails = [keep_ratio_R[row] for row in rows], [tail_ratio_R[row] for row in rows]
        pad_n = max(0, (capacity or 0) - num_pairs)
        pad_m = max(0, (capacity or 0) - len(rows))

        def tensor(values: Sequence[float], dtype: torch.dtype, pad: int, fill: float) -> Tensor:
            return torch.tensor([*values, *[fill] * pad], dtype=dtype).to(device)

        return cls(
            row_N=tensor(row_N, torch.int64, pad_n, _NO_ROW),
            weight_N=tensor(weight_N, torch.float32, pad_n, 0.0),
            gate_nats_N=tensor(gate_nats_N, torch.float32, pad_n, 0.0),
            lowers_N=tensor(lowers_N, torch.bool, pad_n, False),
            row_M=tensor(rows, torch.int64, pad_m, _NO_ROW),
            first_M=tensor(first, torch.int32, pad_m, num_pairs),
            member_N=tensor([n for row in rows for n in members[row]], torch.int32, pad_n, 0),
            log_ratio_M=tensor([_log(t) for t in ratios], torch.float32, pad_m, -math.inf),
            rank_M=tensor([max(1, math.floor(t * vocab_size)) for t in ratios], torch.int32, pad_m, 1),
            log_tail_M=tensor([_log(t) for t in tails], torch.float32, pad_m, -math.inf),
            num_rows=num_rows,
            vocab_size=vocab_size,
            padded=capacity is not None,
            # Padded pairs may be replaced by others, at the same addresses.
            ranks=capacity is not None or any(ratios),
            cuts_tails=capacity is not None or any(tails),
        )

    def without_padding(self) -> Pairs:
        """The same pairs; on a GPU this waits for the device."""
        num_pairs, num_members = int((self.row_N >= 0).sum()), int((self.row_M >= 0).sum())
        return Pairs(
            row_N=self.row_N[:num_pairs],
            weight_N=self.weight_N[:num_pairs],
            gate_nats_N=self.gate_nats_N[:num_pairs],
            lowers_N=self.lowers_N[:num_pairs],
            row_M=self.row_M[:num_members],
            first_M=self.first_M[: num_members + 1],
            member_N=self.member_N[:num_pairs],
            log_ratio_M=self.log_ratio_M[:num_members],
            rank_M=self.rank_M[:num_members],
            log_tail_M=self.log_tail_M[:num_members],
            num_rows=self.num_rows,
            vocab_size=self.vocab_size,
        )

    def numbers(self) -> Numbers:
        """The tensors' memory as arrays, made once: after a model's weights, each call into torch finds cold caches."""
        if not self._numbers:
            self._numbers.append(Numbers(*(getattr(self, name).numpy() for name in Numbers._fields)))
        return self._numbers[0]

    def copy_(self, other: Pairs) -> None:
        """Take over another batch's pairs at the same addresses, so that a captured CUDA graph composes them.

        Raises: ValueError if `other` was built for other sizes.
        """
        if (self.num_rows, self.vocab_size) != (other.num_rows, other.vocab_size):
            raise ValueError(
                f"pairs are for (R, V) = {(self.num_rows, self.vocab_size)}, "
                f"got pairs for {(other.num_rows, other.vocab_size)}"
            )
        for mine, theirs in zip(self.tensors(), other.tensors(), strict=True):
            if mine.shape != theirs.shape or not self.padded or not other.padded:
                raise ValueError(
                    f"pairs have capacity {self.row_N.shape[0]}, got {other.row_N.shape[0]}: "
                    "build both with the same capacity"
                )
            mine.copy_(theirs, non_blocking=True)

    def tensors(self) -> tuple[Tensor, ...]:
        """All index tensors, in the order of the fields."""
        return (
            self.row_N,
            self.weight_N,
            self.gate_nats_N,
            self.lowers_N,
            self.row_M,
            self.first_M,
            self.member_N,
            self.log_ratio_M,
            self.rank_M,
            self.log_tail_M,
        )


def _log(ratio: float) -> float:
    return math.log(ratio) if ratio > 0 else -math.inf


def _check_pairs(
    row_N: Sequence[int],
    weight_N: Sequence[float],
    gate_nats_N: Sequence[float],
    lowers_N: Sequence[bool],
    num_rows: int,
) -> None:
    for name, values in (("weight_N", weight_N), ("gate_nats_N", gate_nats_N), ("lowers_N", lowers_N)):
        if len(values) != len(row_N):
            raise ValueError(f"{name} must have one value per pair, {len(row_N)}, got {len(values)}")
    for n, (row, weight, gate) in enumerate(zip(row_N, weight_N, gate_nats_N, strict=True)):
        if not 0 <= row < num_rows:
            raise ValueError(f"row_N[{n}] must be a row of the batch, 0 to {num_rows - 1}, got {row}")
        if not 0 <= weight <= _LARGEST:
            raise ValueError(f"weight_N[{n}] must be a finite fp32 number >= 0, got {weight}")
        if not gate >= 0:
            raise ValueError(f"gate_nats_N[{n}] must be >= 0, got {gate}")


def _check_ratios(keep_ratio_R: Sequence[float], tail_ratio_R: Sequence[float]) -> None:
    if len(tail_ratio_R) != len(keep_ratio_R):
        raise ValueError(f"tail_ratio_R must have one value per row, {len(keep_ratio_R)}, got {len(tail_ratio_R)}")
    for name, ratios in (("keep_ratio_R", keep_ratio_R), ("tail_ratio_R", tail_ratio_R)):
        for row, ratio in enumerate(ratios):
            if not 0 <= ratio <= 1:
                raise ValueError(f"{name}[{row}] must be in [0, 1], got {ratio}")
