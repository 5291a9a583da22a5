"""Assistants that tap the target at a layer: the layers before it run once, frozen; those after it are trained."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

_ROWS = 64  # conversations that `keep` computes at a time


class TappedAssistant(torch.nn.Module):
    """An assistant of the target's layers j to j + m, on the hidden states that its first j layers compute.

    In training every conversation's hidden states are computed once and kept, so that a repeated conversation costs
    only the m layers. They need T x H numbers for each conversation, on the model's device.

    Args:
        prefix: the target's first j layers without a final norm, as a Hugging Face base model, frozen.
        peft_model: the next m layers, final norm and head, with LoRA.
    """

    def __init__(self, prefix: Any, peft_model: Any) -> None:
        super().__init__()
        self.peft_model = peft_model
        self._prefix = [prefix]  # in a list: not a submodule, so neither trained nor saved
        self._hidden: dict[tuple[int, ...], Tensor] = {}
        self._keeps = False

    def forward(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        past_key_values: Any = None,
        **more: Any,
    ) -> SimpleNamespace:
        """Like a Hugging Face model, return `logits` and the cache, of both parts, as `past_key_values`."""
        caches = past_key_values or (None, None)
        hidden_BTH, prefix_cache = self._run(input_ids, attention_mask, position_ids, caches[0], **more)
        output = self.peft_model(
            inputs_embeds=hidden_BTH,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=caches[1],
            **more,
        )
        return SimpleNamespace(logits=output.logits, past_key_values=(prefix_cache, output.past_key_values))

    def hidden(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """(B, T) right-padded conversations -> (B, T, H): hidden states before the tap, kept in a training run."""
        keeps = self.training or self._keeps  # also those of its checks, which come again
        return self._kept(input_ids, attention_mask) if keeps else self._run(input_ids, attention_mask)[0]

    def keep(self, conversations: Iterable[list[int]], progress: Progress) -> None:
        """Compute the hidden states that training will need, in large batches of similar length."""
        self._keeps = True
        known = {tuple(tokens) for tokens in conversations} - self._hidden.keys()
        todo = sorted(known, key=lambda tokens: (len(tokens), tokens))
        device = next(self.parameters()).device
        bar = progress.add_task("the layers before the tap", total=len(todo))
        for start in range(0, len(todo), _ROWS):
            rows = [torch.tensor(tokens, device=device) for tokens in todo[start : start + _ROWS]]
            input_ids = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
            ones = torch.nn.utils.rnn.pad_sequence([torch.ones_like(row) for row in rows], batch_first=True)
            self._kept(input_ids, ones)
            progress.advance(bar, len(rows))

    @torch.no_grad()
    def _run(
        self,
        input_ids: Tensor,
        attention_mask: Tensor,
        position_ids: Tensor | None = None,
        cache: Any = None,
        use_cache: bool = False,
        **_: Any,
    ) -> tuple[Tensor, Any]:
        output = self._prefix[0](
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=cache,
            use_cache=use_cache,
        )
        return output.last_hidden_state, output.past_key_values

    def _kept(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Hidden states (B, T, H) of right-padded conversations; missing ones are computed in one batch."""
        lengths = attention_mask.sum(dim=1).tolist()
        keys = [tuple(row[:length]) for row, length in zip(input_ids.tolist(), lengths, strict=True)]
        new = [index for index, key in enumerate(keys) if key not in self._hidden]
        if new:
            with torch.inference_mode(False):  # a check's may be trained on later
                hidden_BTH, _ = self._run(input_ids[new].clone(), attention_mask[new].clone())
                for index, hidden_TH in zip(new, hidden_BTH, strict=True):
                    self._hidden[keys[index]] = hidden_TH[: lengths[index]].clone()
        rows = [self._hidden[key] for key in keys]
        return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
