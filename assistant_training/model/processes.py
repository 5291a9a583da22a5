"""The processes of one training: those `accelerate launch` or `torchrun` started, or this one alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from accelerate import PartialState
from accelerate.utils import broadcast, reduce
from torch import Tensor
from torch.nn import Parameter


class Processes:
    """Shares rows among the processes and sums their results; a single process sends nothing."""

    def __init__(self) -> None:
        self._state = PartialState(cpu=not torch.cuda.is_available())

    @property
    def is_main(self) -> bool:
        """Whether this process writes the files and shows the progress."""
        return bool(self._state.is_main_process)

    @property
    def device(self) -> str:
        """Where this process trains: a GPU of its own if there is one, else the CPU."""
        return str(self._state.device)

    def share(self, rows: Sequence[Any]) -> Sequence[Any]:
        """This process's rows: every row belongs to exactly one process."""
        return rows[self._state.process_index :: self._state.num_processes]

    def sum_gradients(self, weights: Sequence[Parameter]) -> None:
        """Give every process the sum of all gradients; a missing gradient counts as zero."""
        if self._state.num_processes == 1:
            return
        gradients = [torch.zeros_like(w) if w.grad is None else w.grad for w in weights]
        total = reduce(torch.cat([gradient.flatten() for gradient in gradients]), reduction="sum")
        for weight, part in zip(weights, total.split([weight.numel() for weight in weights]), strict=True):
            weight.grad = part.view_as(weight)

    def sum(self, figures: dict[str, float]) -> dict[str, float]:
        """The sums of all processes' figures, name by name."""
        if self._state.num_processes == 1:
            return figures
        total = reduce(
            torch.tensor(list(figures.values()), dtype=torch.float64, device=self._state.device), reduction="sum"
        )
        return dict(zip(figures, total.tolist(), strict=True))

    def equalise(self, weights: Sequence[Parameter]) -> None:
        """Give every process the main process's weights."""
        if self._state.num_processes == 1:
            return
        with torch.no_grad():
            for weight in weights:
                value: Tensor = broadcast(weight.detach())
                weight.copy_(value)

    def end(self) -> None:
        """End the communication between the processes."""
        self._state.destroy_process_group()
