"""The loss of an assistant computed together with the head, a few answer tokens at a time.

A vocab is large and an answer is a small part of its conversation. So the head is applied to the hidden states of
labelled tokens alone, and no logits are kept: the gradient with regard to the hidden states is made while they are
there. The head itself is frozen.

Shape legend: N labelled tokens, H hidden size, V vocab.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

_LOGITS_AT_ONCE = 2**22  # 16 MiB of fp32, which an allocator gives out again instead of returning it to the system


def cross_entropy(hidden_NH: Tensor, head_VH: Tensor, labels_N: Tensor, smoothing_N: Tensor) -> Tensor:
    """-sum_v q_v ln p_v at every token: (N,) fp32 nats; p = softmax(head hidden).

    q gives the label 1 - s and spreads s evenly over the vocab. So s = 1 gives KL(uniform || p) + ln V, whatever the
    label is.

    Args:
        hidden_NH: what the head is applied to; gradients flow into it.
        head_VH: the head's weight, frozen.
        labels_N: int64 in [0, V).
        smoothing_N: fp32 s in [0, 1].
    """
    found: Tensor = _CrossEntropy.apply(hidden_NH, head_VH, labels_N, smoothing_N)  # type: ignore[no-untyped-call]
    return found


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, head_VH: Tensor, labels_N: Tensor, smoothing_N: Tensor) -> Tensor:
        vocab_size = head_VH.shape[0]
        mean_H = head_VH.float().mean(dim=0)
        certain_N1, spread_N1 = (1 - smoothing_N)[:, None], smoothing_N[:, None]
        # sum_v q_v a_v = h . sum_v q_v W_v
        expected_NH = certain_N1 * head_VH[labels_N].float() + spread_N1 * mean_H
        loss_N = -(hidden_NH.float() * expected_NH).sum(dim=-1)
        gradient_NH = -expected_NH
        size = max(1, _LOGITS_AT_ONCE // vocab_size)
        for start in range(0, len(labels_N), size):
            part = slice(start, start + size)
            p_NV = (hidden_NH[part].to(head_VH.dtype) @ head_VH.T).float()
            largest_N1 = p_NV.amax(dim=-1, keepdim=True)
            p_NV.sub_(largest_N1).exp_()
            total_N1 = p_NV.sum(dim=-1, keepdim=True)
            loss_N[part] += (largest_N1 + total_N1.log())[:, 0]
            gradient_NH[part] += (p_NV.div_(total_N1).to(head_VH.dtype) @ head_VH).float()
        ctx.save_for_backward(gradient_NH)
        ctx.dtype = hidden_NH.dtype
        return loss_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NH,) = ctx.saved_tensors
        return (gradient_NH * gradients[0][:, None]).to(ctx.dtype), None, None, None
