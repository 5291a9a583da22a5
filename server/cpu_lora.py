"""LoRA on a CPU by adapter: two matmuls for each of the batch's, where vLLM copies an adapter's weights for each row.

vLLM's own operations also take the last slot's adapter for rows that have none (index -1): plain rows of a mixed batch
then answer with a set of kind `undial` that another request asked for (vLLM pull request 48421, not in 0.32).
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

Group = tuple[int, slice | Tensor]  # a slot and the rows whose adapter is there


class GroupedLora(PunicaWrapperCPU):
    """Applies LoRA to linear maps; every adapted module of an engine has the same object of this class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._groups: list[Group] = []

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Learn which row has which slot in the batches to come."""
        super().update_metadata(*args, **kwargs)
        self._groups = group_rows(self.token_lora_indices)

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
        for slot, rows in self._groups:
            x_group = x[rows].float()
            y_group = y[rows]  # a view if the rows are neighbours
            start = 0
            for a, b, size in zip(lora_a_stacked, lora_b_stacked, output_slices, strict=True):
                low = (x_group @ a[slot, 0].float().T).to(y.dtype)
                y_group[:, start : start + size].addmm_(low, b[slot, 0].to(y.dtype).T, alpha=scale)
                start += size
            if isinstance(rows, Tensor):
                y[rows] = y_group


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
