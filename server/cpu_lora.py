"""LoRA on a CPU by adapter: two matmuls for each of the batch's, where vLLM copies an adapter's weights for each row.

vLLM's own operations also take the last slot's adapter for rows that have none (index -1): plain rows of a mixed batch
then answer with a set of kind `undial` that another request asked for (vLLM pull request 48421, not in 0.32).
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Group = tuple[int, slice | Tensor]  # a slot and the rows whose adapter is there
_wrappers: weakref.WeakValueDictionary[int, GroupedLora] = weakref.WeakValueDictionary()


class GroupedLora(PunicaWrapperCPU):
    """Applies LoRA to linear maps; every adapted module of an engine has the same object of this class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.groups: list[Group] = []
        self._number = len(_wrappers)
        _wrappers[self._number] = self

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Learn which row has which slot in the batches to come."""
        super().update_metadata(*args, **kwargs)
        self.groups = group_rows(self.token_lora_indices)

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
        _add_lora(y, x, list(lora_a_stacked), list(lora_b_stacked), scale, self._number)


@torch.library.custom_op("unlearngate::add_lora", mutates_args={"y"})
def _add_lora(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float, wrapper: int) -> None:
    """One operation to a compiler, which must not look at a batch's groups."""
    for slot, rows in _wrappers[wrapper].groups:
        x_group = x[rows].float()
        y_group = y[rows]  # a view if the rows are neighbours
        start = 0
        for a_stacked, b_stacked in zip(a, b, strict=True):
            low = (x_group @ a_stacked[slot, 0].float().T).to(y.dtype)
            size = b_stacked.shape[2]
            y_group[:, start : start + size].addmm_(low, b_stacked[slot, 0].to(y.dtype).T, alpha=scale)
            start += size
        if isinstance(rows, Tensor):
            y[rows] = y_group


@_add_lora.register_fake
def _(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float, wrapper: int) -> None:
    pass


def group_rows(slots_T: Tensor) -> list[Group]:
    """(T,) slots, -1 where there is no adapter, to the rows of each slot; neighbours as a slice."""
    groups: list[Group] = []
    for slot in slots_T.unique().tolist():
        if slot < 0:
            continue
        rows = (slots_T == slot).nonzero().flatten()
        first, last = int(rows[0]), int(rows[-1])
        groups.append((slot, slice(first, last + 1) if last - first + 1 == len(rows) else rows))
    return groups
