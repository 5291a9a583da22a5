"""What is in force in the rows of one batch, as tensors; and what is kept by batch index, as V1 moves it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearngate.kernels.pairs import Pairs
from unlearngate.server.contract.plan import Plan
from unlearngate.server.worker.saying import Sentences


class Batch(NamedTuple):
    """The (row, forget set) pairs of one batch, and the branch that computed each pair's assistant. N pairs, R rows."""

    slots: tuple[int, ...]
    pairs: Pairs
    branch_N: Tensor
    place_N: Tensor  # of each pair's assistant among all S * R, branch by branch
    leases: np.ndarray  # (R,) int64: where the rows' open gates are recorded
    adapted_R: Tensor  # bool: whose target has LoRA
    sentences: Sentences | None = None

    @classmethod
    def build(cls, slots: tuple[int, ...], plans: list[Plan], vocab_size: int, device: torch.device) -> Batch:
        """Of the rows' slots and plans; without sentences."""
        terms = [(row, term) for row, plan in enumerate(plans) for term in plan.terms]
        pairs = Pairs.build(
            [row for row, _ in terms],
            [term.weight for _, term in terms],
            [term.gate_nats for _, term in terms],
            [plan.keep_ratio for plan in plans],
            lowers_N=[term.lowers for _, term in terms],
            tail_ratio_R=[plan.tail_ratio for plan in plans],
            vocab_size=vocab_size,
            device=device,
        )
        branch_N = torch.tensor([term.branch for _, term in terms], dtype=torch.int64, device=device)
        place_N = branch_N * len(slots) + pairs.row_N
        leases = np.array([plan.lease for plan in plans], dtype=np.int64)
        adapted_R = torch.tensor([plan.adapts_target for plan in plans], dtype=torch.bool, device=device)
        return cls(slots, pairs, branch_N, place_N, leases, adapted_R)


class Parts(NamedTuple):
    """The rows of a step, part by part: the target's T, then each branch's, M in all.

    A branch runs over the rows of the requests that have a set on it. Behind the attention of its last layer it goes on
    with those alone whose final hidden states are asked for: each request's last row, or all where a prompt is scored.
    """

    sizes: tuple[int, ...]  # of each part
    row_M: Tensor  # int64: which of the T rows each of the branches' is
    part_M: Tensor  # int64: which part it is in
    requests: tuple[Tensor | None, ...]  # of each branch (N,) int64, its requests' places in the batch; None: all
    asked_X: Tensor  # int64: which of the T + M rows are asked for, part by part
    asked_sizes: tuple[int, ...]  # how many of each part
    asked_R: Tensor | None = None  # int32: how many of each request's rows, its last ones; None: all, so X = T + M

    @classmethod
    def build(
        cls,
        branches: Sequence[int],
        starts: Sequence[int],
        num_rows: int,
        *,
        scored: Sequence[bool] = (),
        cuts_target: bool = False,
    ) -> Parts:
        """On the host.

        Args:
            branches: how many branches, from the first on, each request needs; one of them needs one.
            starts: the first row of each request, and where the last one's end; rows behind it are padding.
            num_rows: T.
            scored: of each request, whether all its rows are asked for; none says the same as all False.
            cuts_target: whether of the target's rows, too, only those that are asked for go on: its last layer is the
                branches' last.
        """
        needed, lengths = np.array(branches), np.diff(starts)
        needed_T = np.repeat(needed, lengths)
        rows = [np.flatnonzero(needed_T > branch) for branch in range(needed.max())]
        requests = tuple(
            None if (needed > branch).all() else torch.from_numpy(np.flatnonzero(needed > branch))
            for branch in range(len(rows))
        )
        parts = cls._of(num_rows, rows, requests)
        asked = np.where(scored or [False], lengths, np.minimum(lengths, 1))
        if (asked == lengths).all():  # as while decoding
            return parts
        return parts._asking(asked, np.array(starts), cuts_target=cuts_target)

    @classmethod
    def whole(cls, num_rows: int, num_branches: int) -> Parts:
        """All branches over all rows, padding too."""
        return cls._of(num_rows, [np.arange(num_rows)] * num_branches, (None,) * num_branches)

    @classmethod
    def _of(cls, num_rows: int, rows: Sequence[np.ndarray], requests: tuple[Tensor | None, ...]) -> Parts:
        sizes = (num_rows, *map(len, rows))
        part_M = torch.from_numpy(np.repeat(np.arange(len(rows)) + 1, sizes[1:]))
        return cls(sizes, torch.from_numpy(np.concatenate(rows)), part_M, requests, torch.arange(sum(sizes)), sizes)

    def _asking(self, asked_R: np.ndarray, starts: np.ndarray, *, cuts_target: bool) -> Parts:
        """For so many of each request's rows, its last ones."""
        is_asked_T = np.zeros(self.sizes[0], dtype=bool)
        is_asked_T[: starts[-1]] = np.arange(starts[-1]) >= np.repeat(starts[1:] - asked_R, np.diff(starts))
        of_target = is_asked_T if cuts_target else np.ones_like(is_asked_T)
        is_asked_X = torch.from_numpy(np.concatenate([of_target, is_asked_T[self.row_M.numpy()]]))
        if is_asked_X.all():
            return self
        return self._replace(
            asked_X=is_asked_X.nonzero().flatten(),
            asked_sizes=tuple(int(part.sum()) for part in is_asked_X.split(self.sizes)),
            asked_R=torch.from_numpy(asked_R.astype(np.int32)),
        )

    def unstack(self, hidden_XH: Tensor) -> Tensor:
        """(T + M, H), part by part -> (T, parts * H); NaN where a branch did not run, so that nothing composes it.

        Rows that nobody asked for are NaN already.
        """
        num_rows = self.sizes[0]
        hidden_TPH = hidden_XH.new_full((num_rows, len(self.sizes), hidden_XH.shape[1]), torch.nan)
        hidden_TPH[:, 0] = hidden_XH[:num_rows]
        hidden_TPH[self.row_M, self.part_M] = hidden_XH[num_rows:]
        return hidden_TPH.flatten(1)


def move(of_index: dict[int, Any], source: int, destination: int, *, swap: bool) -> None:
    """Move an entry to another index, or swap the two."""
    moved = of_index.pop(source, None)
    if swap:
        of_index[source] = of_index.pop(destination, None)
    of_index[destination] = moved
