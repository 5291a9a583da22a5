"""LoRA on a CPU by adapter: two matmuls per adapter of the batch, where vLLM copies an adapter's weights for each row.

A small batch goes row by row through our own kernel (`kernels.numba_lora`), in modules whose adapters are joined.

vLLM's own operations also apply the last slot's adapter to rows that have none (index -1): plain rows of a mixed batch
then answer with a set of kind `undial` that another request asked for (vLLM pull request 48421, not in 0.32).
"""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Sequence
from functools import cached_property
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn
from vllm.lora.layers.base_linear import BaseLinearLayerWithLoRA
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU
from vllm.utils.torch_utils import direct_register_custom_op

from unlearngate.server.worker.compat import parts_of_step

if TYPE_CHECKING:
    from unlearngate.server.worker.batch import Parts

Group = tuple[int, slice | Tensor]  # a slot and the rows whose adapter is there
SEPARATELY = 4  # adapters in a batch that are applied one after the other; more are faster together
# Up to this many multiplications per linear map and batch, one core beats the calls of matmuls: docs/performance.md
ALONE = 2**22


class Padded(NamedTuple):
    """The N rows that have an adapter, padded to `most` places for each slot from `first` to `last`, P in all."""

    first: int
    last: int
    most: int
    row_N: Tensor
    place_N: Tensor
    row_P: Tensor  # an arbitrary row where a place is padding

    def fills_enough(self) -> bool:
        """Whether padding costs less than going slot by slot: it does, unless one slot has far more rows than most."""
        return len(self.row_P) <= 4 * len(self.row_N)


class Rows:
    """The slots of some of a batch's rows: -1 where there is no adapter."""

    def __init__(self, slots_T: Tensor) -> None:
        self.slot_T: np.ndarray = slots_T.numpy().copy()

    @cached_property
    def grouped(self) -> Padded | list[Group]:
        """By slot; what goes row by row needs no groups."""
        return group_rows(torch.from_numpy(self.slot_T))


class Joined(NamedTuple):
    """A module's adapters as vLLM has them and, in fp32, the same memory as arrays for `add_lora_rows`."""

    a: list[Tensor]
    b: list[Tensor]
    arrays: tuple[np.ndarray, np.ndarray, np.ndarray] | None
    weights: int  # of one adapter


_NUMBER = "unlearngate_joined_number"
_numbers = itertools.count()
_wrappers: weakref.WeakValueDictionary[int, GroupedLora] = weakref.WeakValueDictionary()


class GroupedLora(PunicaWrapperCPU):
    """Applies LoRA to linear maps; all adapted modules of an engine share one object of this class."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.batch = Rows(torch.zeros(0, dtype=torch.int64))
        self._cut: tuple[Parts | None, dict[int, list[Rows]]] | None = None  # what `parts` says of so many rows
        self.joined: list[Joined] = []
        self._of_slot: dict[tuple[int, int], list[tuple[Tensor, Tensor]]] = {}
        self.number = next(_numbers)  # an operation takes no objects
        _wrappers[self.number] = self
        # Not before it is needed: vLLM 0.32 cannot start a CPU worker in a process that has imported numba.
        from unlearngate.kernels.numba_lora import add_lora_rows

        self.add_rows = add_lora_rows
        rows, adapters = np.zeros((0, 0), np.float32), np.zeros((0, 0, 0), np.float32)
        # Compile before any request.
        add_lora_rows(rows, rows, adapters, adapters, np.zeros(1, np.int64), self.batch.slot_T, 0)

    def update_metadata(self, *args: Any, **kwargs: Any) -> None:
        """Learn which row has which slot in the batches to come."""
        super().update_metadata(*args, **kwargs)
        self.batch, self._cut = Rows(self.token_lora_indices), None

    def parts(self, count: int, num_rows: int) -> list[Rows]:
        """The rows of each part of the step that runs; parts that have none may be left out.

        Args:
            count: how many parts there are where each has all rows of the batch.
            num_rows: of all parts: all their rows, or those that are asked for.

        Raises: RuntimeError if there are not as many.
        """
        parts = parts_of_step()
        if self._cut is None or self._cut[0] is not parts:
            found = [self.batch] * count
            if parts is not None:
                slots_M = torch.from_numpy(self.batch.slot_T)[parts.row_M]
                found = [self.batch, *map(Rows, slots_M.split(parts.sizes[1:]))]
            self._cut = parts, {sum(len(rows.slot_T) for rows in found): found}
            if parts is not None and parts.asked_R is not None:
                slots_X = torch.cat([torch.from_numpy(rows.slot_T) for rows in found])[parts.asked_X]
                self._cut[1][len(slots_X)] = [Rows(slots) for slots in slots_X.split(parts.asked_sizes)]
        if num_rows not in self._cut[1]:
            sizes = " or ".join(str([len(rows.slot_T) for rows in found]) for found in self._cut[1].values())
            raise RuntimeError(f"{num_rows} rows are not those of the step's parts, {sizes}")
        return self._cut[1][num_rows]

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
        """(T, out) y += scale * (T, in) x @ A^T @ B^T, in place, by slices of the output; x @ A^T in fp32.

        A is (slots, 1, rank, in), B (slots, 1, slice, rank).
        """
        torch.ops.vllm.unlearngate_add_lora(y, x, list(lora_a_stacked), list(lora_b_stacked), scale, self.number)

    def join(self, linear: BaseLinearLayerWithLoRA) -> None:
        """Lay the slices of a module's adapters side by side: A's (slots, n * rank, in), B's (slots, rank, out).

        vLLM keeps writing adapters, through the views of this memory that the module has from now on.
        """
        a, b = linear.lora_a_stacked, linear.lora_b_stacked
        whole_a = torch.cat([x[:, 0] for x in a], dim=1)
        whole_b = torch.cat([x[:, 0].mT for x in b], dim=2)
        sizes = [x.shape[2] for x in b]
        linear.lora_a_stacked = whole_a[:, None].chunk(len(a), dim=2)
        linear.lora_b_stacked = tuple(x.mT for x in whole_b[:, None].split(sizes, dim=3))
        is_fp32 = whole_a.dtype == whole_b.dtype == torch.float32
        arrays = (whole_a.numpy(), whole_b.numpy(), np.array(sizes)) if is_fp32 else None
        weights = whole_a[0].numel() + whole_b[0].numel()
        setattr(linear, _NUMBER, (self.number, len(self.joined)))
        self.joined.append(Joined(list(linear.lora_a_stacked), list(linear.lora_b_stacked), arrays, weights))

    def of_slot(self, a: list[Tensor], b: list[Tensor], slot: int) -> list[tuple[Tensor, Tensor]]:
        """A^T and B^T of every slice: views of a module's weights, made once, which follow what vLLM writes."""
        key = (a[0].data_ptr(), slot)
        if key not in self._of_slot:
            self._of_slot[key] = [(a_[slot, 0].T, b_[slot, 0].T) for a_, b_ in zip(a, b, strict=True)]
        return self._of_slot[key]


def join_slices(model: nn.Module) -> int | None:
    """`GroupedLora.join` for all of a model's linear maps; skips those where another class applies LoRA.

    Returns: the number of the model's wrapper in this process; None if it has none.
    """
    number = None
    with torch.inference_mode(False):  # or vLLM could write adapters in that mode only
        for module in model.modules():
            if isinstance(module, BaseLinearLayerWithLoRA) and isinstance(module.punica_wrapper, GroupedLora):
                module.punica_wrapper.join(module)
                number = module.punica_wrapper.number
    return number


def joined_numbers(linears: Sequence[Any]) -> tuple[int, list[int]] | None:
    """The key of several modules for `add_joined`; None if the adapters of none are joined."""
    numbers: list[tuple[int, int] | None] = [getattr(linear, _NUMBER, None) for linear in linears]
    wrappers = {number[0] for number in numbers if number}
    return (wrappers.pop(), [number[1] if number else -1 for number in numbers]) if wrappers else None


def add_joined(y: Tensor, x: Tensor, joined: tuple[int, list[int]]) -> None:
    """`GroupedLora.add_lora_linear` for each part of a step's rows by its module, if its adapters are joined."""
    torch.ops.vllm.unlearngate_add_joined(y, x, *joined)


# Each is one opaque operation to a compiler, which must not trace a batch's rows.


def _add_lora(y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float, wrapper: int) -> None:
    lora = _wrappers[wrapper]
    _add_grouped(y, x, a, b, scale, lora, lora.batch.grouped)


def _add_grouped(
    y: Tensor, x: Tensor, a: list[Tensor], b: list[Tensor], scale: float, lora: GroupedLora, batch: Padded | list[Group]
) -> None:
    if isinstance(batch, Padded):
        _add_together(y, x, a, b, scale, batch)
        return
    for slot, rows in batch:
        x_group = x[rows].float()
        y_group = y[rows]  # a view if the rows are contiguous
        start = 0
        for a_t, b_t in lora.of_slot(a, b, slot):
            low = (x_group @ a_t.float()).to(y.dtype)
            size = b_t.shape[1]
            y_group.narrow(1, start, size).addmm_(low, b_t.to(y.dtype), alpha=scale)
            start += size
        if isinstance(rows, Tensor):
            y[rows] = y_group


def _add_joined(y: Tensor, x: Tensor, wrapper: int, numbers: list[int]) -> None:
    lora, first = _wrappers[wrapper], 0
    for number, rows in zip(numbers, lora.parts(len(numbers), len(y)), strict=False):
        last = first + len(rows.slot_T)
        if number >= 0 and first < last:
            joined = lora.joined[number]
            if joined.arrays and y.dtype is torch.float32 and (last - first) * joined.weights <= ALONE:
                lora.add_rows(y.numpy(), x.numpy(), *joined.arrays, rows.slot_T, first)
            else:
                _add_grouped(y[first:last], x[first:last], joined.a, joined.b, 1.0, lora, rows.grouped)
        first = last


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


for _name, _function in {"unlearngate_add_lora": _add_lora, "unlearngate_add_joined": _add_joined}.items():
    direct_register_custom_op(_name, _function, ["y"], fake_impl=lambda *_: None, dispatch_key="CPU")


def group_rows(slots_T: Tensor) -> Padded | list[Group]:
    """The rows of each slot, from (T,) slots, -1 where there is no adapter; contiguous rows as a slice."""
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
