"""Offset (delta) unlearning, a baseline: a target plus what training changed in a small model, as one model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch

from unlearngate.assistant_training.train.unlearning_losses import offset_logits


class OffsetModel(torch.nn.Module):
    """logits = target + (assistant - assistant before training).

    The assistant is a PEFT model; with its adapter off it is what it was before training. Only the adapter has weights
    to train. Source: arXiv:2404.11045.
    """

    def __init__(self, target: Any, assistant: Any) -> None:
        super().__init__()
        self._target = target
        self._assistant = assistant

    def forward(self, past_key_values: Any = None, **inputs: Any) -> SimpleNamespace:
        """Like a Hugging Face model, return `logits` and the cache, of all three, as `past_key_values`."""
        caches = past_key_values or (None, None, None)
        with torch.no_grad():
            target = self._target(past_key_values=caches[0], **inputs)
        assistant = self._assistant(past_key_values=caches[1], **inputs)
        with torch.no_grad(), self._assistant.disable_adapter():
            start = self._assistant(past_key_values=caches[2], **inputs)
        return SimpleNamespace(
            logits=offset_logits(target.logits, assistant.logits, start.logits),
            past_key_values=(target.past_key_values, assistant.past_key_values, start.past_key_values),
        )
