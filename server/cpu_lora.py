"""LoRA on a CPU by adapter: two matmuls for each of the batch's, where vLLM copies an adapter's weights for each row.

vLLM's own operations also take the last slot's adapter for rows that have none (index -1): plain rows of a mixed batch
then answer with a set of kind `undial` that another request asked for (vLLM pull request 48421, not in 0.32).
"""

from __future__ import annotations

import itertools
import weakref
from typing import Any, NamedTuple

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.utils.torch_utils import direct_register_custom_op

Group = tuple[int, slice | Tensor]  # a slot and the rows whose adapter is there
SEPARATELY = 4  # adapters in a batch that are applied one after the other; more are faster together


class Padded(NamedTuple):
    """The N rows that have an adapter as `most` places for each slot from `first` to `last`, P in all."""

    first: int
    last: int
    most: int
    row_N: Tensor
    place_N: Tensor
    row_P: Tensor  # any of the rows where there is none of the slot's

    def fills_enough(self) -> bool:
        """Whether the padding costs less than going slot by slot, as it does unless one has far more rows than most."""
        return len(self.row_P) <= 4 * len(self.row_N)


_numbers = itertools.count()
_wrappers: weakref.WeakValueDictionary[int, GroupedLora] = weakref.WeakValueDictionary()


class GroupedLora(PunicaWrapperCPU):
    """Applies LoRA to linear maps; every adapted module of an engine has the same object of this class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batch: Padded | list[Group] = []
        self._of_slot: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self._number = next(_numbers)  # an operation takes no objects
        _wrappers[self._number] = self

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Learn which row has which slot in the batches to come."""
        super().update_metadata(*args, **kwargs)
        self.batch = group_rows(self.token_lora_indices)

    def add_lora_linear(
        self,
        y: Tensor,
        x: Tensor,
        lora_a_stacked: tuple[Tensor, ...],
        lora_b_stacked: tuple[Tensor, ...],
        scale: float,
        output_slices: tuple[int, ...],
        *,
        buffer: tuple[Tensor, ...] | None = None,
        **kwargs: Any,
    ) -> None:
        """(T, out) y += scale * (T, in) x @ A^T @ B^T, in place, by slices of the output; in between fp32.

        A is (slots, 1, rank, in), B (slots, 1, slice, rank).
        """
        torch.ops.vllm.unlearngate_add_lora(y, x, list(lora_a_stacked), list(lora_b_stacked), scale, self._number)

    def of_slot(self, a: list[Tensor], b: list[Tensor], slot: int) -> list[tuple[Tensor, Tensor]]:
        """A^T and B^T of every slice: views of a module's weights, made once, which change as vLLM writes those."""
        key = (a[0].data_ptr(), slot)
        if key not in self._of_slot:
            self._of_slot[key] = [(a_[slot, 0].T, b_[slot, 0].T) for a_, b_ in zip(a, b, strict=True)]
        return self._of_slot[key]


def _add_lora(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float, wrapper: int) -> None:
    """One operation to a compiler, which must not look at a batch's groups."""
    lora = _wrappers[wrapper]
    if isinstance(lora.batch, Padded):
        _add_together(y, x, a, b, scale, lora.batch)
        return
    for slot, rows in lora.batch:
        x_group = x[rows].float()
        y_group = y[rows]  # a view if the rows are neighbours
        start = 0
        for a_t, b_t in lora.of_slot(a, b, slot):
            low = (x_group @ a_t.float()).to(y.dtype)
            size = b_t.shape[1]
            y_group.narrow(1, start, size).addmm_(low, b_t.to(y.dtype), alpha=scale)
            start += size
        if isinstance(rows, Tensor):
            y[rows] = y_group


def _add_together(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float, batch: Padded) -> None:
    slots = slice(batch.first, batch.last + 1)
    x_padded = x.index_select(0, batch.row_P).float().unflatten(0, (-1, batch.most))
    start = 0
    for a_stacked, b_stacked in zip(a, b, strict=True):
        low = torch.bmm(x_padded, a_stacked[slots, 0].float().mT).to(y.dtype)
        update = torch.bmm(low, b_stacked[slots, 0].to(y.dtype).mT).flatten(0, 1)
        size = b_stacked.shape[2]
        y[:, start : start + size].index_add_(0, batch.row_N, update.index_select(0, batch.place_N), alpha=scale)
        start += size


direct_register_custom_op("unlearngate_add_lora", _add_lora, ["y"], fake_impl=lambda *_: None, dispatch_key="CPU")


def group_rows(slots_T: Tensor) -> Padded | list[Group]:
    """(T,) slots, -1 where there is no adapter, to the rows of each slot; neighbours as a slice."""
    groups: list[Group] = []
    for slot in slots_T.unique().tolist():
        if slot < 0:
            continue
        rows = (slots_T == slot).nonzero().flatten()
        first, last = int(rows[0]), int(rows[-1])
        groups.append((slot, slice(first, last + 1) if last - first + 1 == len(rows) else rows))
    if len(groups) > SEPARATELY and (padded := _pad(slots_T)).fills_enough():
        return padded
    return groups


def _pad(slots_T: Tensor) -> Padded:
    row_N = (slots_T >= 0).nonzero().flatten()
    slot_N = slots_T[row_N]
    counts = slot_N.bincount()
    order = slot_N.argsort(stable=True)
    firsts = counts.cumsum(0) - counts
    place_N = torch.empty_like(slot_N)
    place_N[order] = torch.arange(len(slot_N)) - firsts[slot_N[order]]
    first, last, most = int(slot_N.min()), int(slot_N.max()), int(counts.max())
    place_N += (slot_N - first) * most
    row_P = row_N[0].expand((last - first + 1) * most).clone()
    row_P[place_N] = row_N
    return Padded(first, last, most, row_N, place_N, row_P)
