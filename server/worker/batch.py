"""What is in force in the rows of one batch, as tensors; and what is kept by batch index, as V1 moves it."""

from __future__ import annotations

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
        return cls(slots, pairs, branch_N, place_N, np.array([plan.lease for plan in plans], dtype=np.int64))


def move(of_index: dict[int, Any], source: int, destination: int, *, swap: bool) -> None:
    """Move an entry to another index, or swap the two."""
    moved = of_index.pop(source, None)
    if swap:
        of_index[source] = of_index.pop(destination, None)
    of_index[destination] = moved
