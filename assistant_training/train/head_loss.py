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

from unlearngate.assistant_training.model.head import Head

_LOGITS_AT_ONCE = 2**22  # 16 MiB of fp32, which an allocator gives out again instead of returning it to the system


def cross_entropy(hidden_NH: Tensor, head: Head, labels_N: Tensor, smoothing_N: Tensor) -> Tensor:
    """-sum_v q_v ln p_v at every token: (N,) fp32 nats; p = softmax(logits), capped where the head caps them.

    q gives the label 1 - s and spreads s evenly over the vocab. So s = 1 gives KL(uniform || p) + ln V, whatever the
    label is.

    Args:
        hidden_NH: what the head is applied to; gradients flow into it.
        head: the target's.
        labels_N: int64 in [0, V).
        smoothing_N: fp32 s in [0, 1].
    """
    function = _CrossEntropy if head.cap is None else _CappedCrossEntropy
    found: Tensor = function.apply(hidden_NH, head, labels_N, smoothing_N)  # type: ignore[no-untyped-call]
    return found


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, head: Head, labels_N: Tensor, smoothing_N: Tensor) -> Tensor:
        head_VH = head.weight_VH
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
            p_VN = (head_VH @ hidden_NH[part].to(head_VH.dtype).T).float()  # a CPU is faster at it this way round
            largest_N = p_VN.amax(dim=0)
            p_VN.sub_(largest_N).exp_()
            total_N = p_VN.sum(dim=0)
            loss_N[part] += largest_N + total_N.log()
            gradient_NH[part] += (head_VH.T @ p_VN.div_(total_N).to(head_VH.dtype)).T.float()
        ctx.save_for_backward(gradient_NH)
        ctx.dtype = hidden_NH.dtype
        return loss_N

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor | None, ...]:
        (gradient_NH,) = ctx.saved_tensors
        return (gradient_NH * gradients[0][:, None]).to(ctx.dtype), None, None, None


class _CappedCrossEntropy(_CrossEntropy):
    """With z = c tanh(a / c): dz/da = 1 - (z / c)^2, and the loss's gradient in z is p - q."""

    @staticmethod
    def forward(ctx: Any, hidden_NH: Tensor, head: Head, labels_N: Tensor, smoothing_N: Tensor) -> Tensor:
        head_VH, cap = head
        assert cap is not None
        vocab_size = head_VH.shape[0]
        loss_N = torch.empty(len(labels_N), dtype=torch.float32, device=hidden_NH.device)
        gradient_NH = torch.empty(hidden_NH.shape, dtype=torch.float32, device=hidden_NH.device)
        size = max(1, _LOGITS_AT_ONCE // vocab_size)
        for start in range(0, len(labels_N), size):
            part = slice(start, start + size)
            logits_NV, label_N1 = head.logits(hidden_NH[part]), labels_N[part, None]
            smoothing_N1 = smoothing_N[part, None]
            log_total_N1 = logits_NV.logsumexp(dim=-1, keepdim=True)
            of_label_N1, mean_N1 = logits_NV.gather(1, label_N1), logits_NV.mean(dim=-1, keepdim=True)
            expected_N1 = (1 - smoothing_N1) * of_label_N1 + smoothing_N1 * mean_N1
            loss_N[part] = (log_total_N1 - expected_N1)[:, 0]
            slope_NV = (logits_NV - log_total_N1).exp_().sub_(smoothing_N1 / vocab_size)
            slope_NV.scatter_add_(1, label_N1, smoothing_N1 - 1)
            slope_NV.mul_(logits_NV.div_(cap).square_().neg_().add_(1))
            gradient_NH[part] = (slope_NV.to(head_VH.dtype) @ head_VH).float()
        ctx.save_for_backward(gradient_NH)
        ctx.dtype = hidden_NH.dtype
        return loss_N
