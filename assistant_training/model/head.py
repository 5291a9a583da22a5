"""A target's head: what makes logits of the hidden states behind the final norm. An assistant shares it."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Head(NamedTuple):
    """logit = W h, or c tanh(W h / c) where logits are capped.

    weight_VH: (V, H), frozen.
    cap: c > 0; None for no cap.
    """

    weight_VH: Tensor
    cap: float | None = None

    def logits(self, hidden_NH: Tensor) -> Tensor:
        """(N, H) in any dtype -> (N, V) fp32; the product is in the head's dtype."""
        logits_NV = (hidden_NH.to(self.weight_VH.dtype) @ self.weight_VH.T).float()
        return logits_NV if self.cap is None else self.cap * torch.tanh(logits_NV / self.cap)
