"""The one optimiser every training loop here uses: AdamW, clipped, warmed up, annealed."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from unlearngate.assistant_training.train.losses import finite

_WARM_UP = 0.1  # of all steps
_LARGEST_NORM = 1.0


class Optimizer:
    """Optimise weights for a number of steps that is known beforehand."""

    def __init__(self, weights: Iterable[Parameter], *, learning_rate: float, steps: int) -> None:
        self._weights = list(weights)
        self._adamw = torch.optim.AdamW(self._weights, lr=learning_rate, betas=(0.9, 0.98), weight_decay=0.01)
        self._schedule = torch.optim.lr_scheduler.LambdaLR(self._adamw, lambda step: anneal(step, steps))

    def step(self, loss: Tensor) -> None:
        """One step down a loss."""
        loss.backward()
        self.step_down()

    def step_down(self) -> None:
        """One step down the gradients accumulated since the last one.

        Raises: TrainingError if they are not finite; the weights are then unchanged.
        """
        norm = torch.nn.utils.clip_grad_norm_(self._weights, _LARGEST_NORM)
        finite(norm, "the norm of the gradient")
        self._adamw.step()
        self._adamw.zero_grad()
        self._schedule.step()

    @property
    def learning_rate(self) -> float:
        """The next step's learning rate."""
        return float(self._schedule.get_last_lr()[0])

    def state(self) -> dict[str, Any]:
        """The state to save: all that the next step depends on, except the weights."""
        return {"adamw": self._adamw.state_dict(), "schedule": self._schedule.state_dict()}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._adamw.load_state_dict(state["adamw"])
        self._schedule.load_state_dict(state["schedule"])


def anneal(step: int, steps: int) -> float:
    """The factor on the learning rate at a step: linear warm-up for a tenth of the steps, then cosine decay."""
    warm = max(1, round(steps * _WARM_UP))
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * min(1.0, (step - warm) / max(1, steps - warm))))
