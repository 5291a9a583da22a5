"""Attention of a decoding batch without copies of its keys and values.

Hugging Face's `sdpa` repeats the keys and values of each group for every head of the group, if the batch has padding:
on a CPU that takes a quarter of a decoding step. One token's queries of a group are as well the queries of several
tokens, to which one head's keys are shown.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor
from torch.nn import functional
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.masking_utils import sdpa_mask

GROUPED = "sdpa_by_group"  # as attn_implementation


def _attend(
    module: Any, query: Tensor, key: Tensor, value: Tensor, attention_mask: Tensor | None, **options: Any
) -> tuple[Tensor, None]:
    """As Hugging Face's `sdpa`, which it is for more than one token.

    query (B, heads, T, D); key, value (B, groups, S, D); attention_mask (B, 1, T, S) or None -> (B, T, heads, D).
    """
    num_rows, num_heads, num_tokens, head_dim = query.shape
    if num_tokens > 1 or options.get("dropout") or options.get("position_bias") is not None:
        found: tuple[Tensor, None] = sdpa_attention_forward(module, query, key, value, attention_mask, **options)
        return found
    by_group = query.reshape(num_rows, key.shape[1], -1, head_dim)
    said = functional.scaled_dot_product_attention(
        by_group, key, value, attn_mask=attention_mask, scale=options.get("scaling")
    )
    return said.reshape(num_rows, 1, num_heads, -1), None


AttentionInterface.register(GROUPED, _attend)
AttentionMaskInterface.register(GROUPED, sdpa_mask)
