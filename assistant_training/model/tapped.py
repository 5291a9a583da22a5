"""Assistants that tap the target at a layer: the layers before it run once, frozen; those after it are trained."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from rich.progress import Progress
from torch import Tensor

_ROWS = 16  # conversations that `keep` computes at a time


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
        self._shared: tuple[int, ...] = ()  # what most conversations begin with

    @property
    def tap_layer(self) -> int:
        """The target's layer that the assistant begins with."""
        return len(self._prefix[0].layers)

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
        """Compute the hidden states that training will need, in large batches of similar length.

        What most of them begin with, such as a template's system prompt, is computed once.
        """
        self._keeps = True
        known = {tuple(tokens) for tokens in conversations} - self._hidden.keys()
        todo = sorted(known, key=lambda tokens: (len(tokens), tokens))
        self._shared = beginning_of_most(todo)
        bar = progress.add_task("the layers before the tap", total=len(todo))
        for beginning, rows in self._by_beginning(todo):
            for start in range(0, len(rows), _ROWS):
                self._keep_rows(rows[start : start + _ROWS], beginning)
                progress.advance(bar, len(rows[start : start + _ROWS]))

    def _by_beginning(self, rows: Sequence[tuple[int, ...]]) -> Iterator[tuple[tuple[int, ...], list[tuple[int, ...]]]]:
        """What most go on from with the rows that do, and no beginning with the others."""
        shared = self._shared
        goes_on = [len(row) > len(shared) and row[: len(shared)] == shared for row in rows]
        for beginning, chosen in ((shared, goes_on), ((), [not goes for goes in goes_on])):
            if any(chosen):
                yield beginning, list(itertools.compress(rows, chosen))

    @torch.inference_mode(False)
    def _keep_rows(self, rows: Sequence[tuple[int, ...]], beginning: tuple[int, ...]) -> None:
        """Of conversations that all go on from this beginning."""
        device, count, cache = next(self.parameters()).device, len(beginning), None
        before_1TH = None
        if beginning:
            ids_1T = torch.tensor([beginning], device=device)
            before_1TH, cache = self._run(ids_1T, torch.ones_like(ids_1T), use_cache=True)
            cache.batch_repeat_interleave(len(rows))
        tensors = [torch.tensor(row[count:], device=device) for row in rows]
        input_ids = torch.nn.utils.rnn.pad_sequence(tensors, batch_first=True)
        lengths = torch.tensor([len(row) for row in rows], device=device)
        mask_BT = (torch.arange(count + input_ids.shape[1], device=device) < lengths[:, None]).long()
        hidden_BTH, _ = self._run(input_ids, mask_BT, cache=cache, use_cache=cache is not None)
        for row, hidden_TH in zip(rows, hidden_BTH, strict=True):
            own_TH = hidden_TH[: len(row) - count]
            self._hidden[row] = own_TH.clone() if before_1TH is None else torch.cat([before_1TH[0], own_TH])

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
        new = sorted({key for key in keys if key not in self._hidden})
        for beginning, rows in self._by_beginning(new):
            self._keep_rows(rows, beginning)  # a check's may be trained on later
        return torch.nn.utils.rnn.pad_sequence([self._hidden[key] for key in keys], batch_first=True)


def beginning_of_most(rows: Sequence[tuple[int, ...]]) -> tuple[int, ...]:
    """The longest beginning that at least half of the rows go on from."""
    beginning: tuple[int, ...] = ()
    of_rows = rows
    while True:
        at = len(beginning)
        going_on = [row for row in of_rows if len(row) > at + 1]
        tokens = Counter(row[at] for row in going_on).most_common(1)
        if not tokens or 2 * tokens[0][1] < len(rows):
            return beginning
        beginning = (*beginning, tokens[0][0])
        of_rows = [row for row in going_on if row[at] == beginning[at]]
