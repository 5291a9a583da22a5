"""The tokens of a sequence so far, with its prompt's, as each of vLLM's runners keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch


@dataclass(slots=True)
class ListedTokens:
    """V1's: the prompt's tokens, and vLLM's own list of what was sampled, which grows as it samples.

    Under asynchronous scheduling vLLM holds a place with -1 and fills it in before it calls custom processors
    (`update_async_output_token_ids`; engines with such processors need the lists, gpu_input_batch.py). A -1 that is
    left is no token, and neither is a prompt that came as embeddings.
    """

    prompt: Sequence[int] | None
    output: Sequence[int]

    def __len__(self) -> int:
        return (1 if self.prompt is None else len(self.prompt)) + len(self.output)

    def read(self, begin: int, end: int) -> Sequence[int]:
        """The tokens from here to there."""
        prompt = (-1,) if self.prompt is None else self.prompt
        after = len(prompt)
        return [*prompt[begin:end], *self.output[max(0, begin - after) : max(0, end - after)]]


@dataclass(slots=True)
class SlotTokens:
    """V2's: a slot of the runner's request states, whose tokens are read from the device."""

    states: Any
    slot: int
    length: int

    def __len__(self) -> int:
        return self.length

    def read(self, begin: int, end: int) -> Sequence[int]:
        """The tokens from here to there."""
        tokens: list[int] = self.states.all_token_ids.gpu[self.slot, begin:end].tolist()
        return tokens


Tokens = ListedTokens | SlotTokens


def last_tokens(sequences: Sequence[Tokens]) -> list[int]:
    """The last token of each of one runner's sequences, with at most one look at the device."""
    slots = [tokens for tokens in sequences if isinstance(tokens, SlotTokens)]
    if not slots:
        return [tokens.read(len(tokens) - 1, len(tokens))[0] for tokens in sequences]
    token_ids = slots[0].states.all_token_ids.gpu
    places = torch.tensor([[tokens.slot for tokens in slots], [tokens.length - 1 for tokens in slots]])
    slot_R, place_R = places.to(token_ids.device, non_blocking=True)
    last: list[int] = token_ids[slot_R, place_R].tolist()
    return last
