"""The tokens of a sequence so far, with its prompt's, as each of vLLM's runners keeps them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any


@dataclass(slots=True)
class ListedTokens:
    """V1's: the prompt's tokens, and vLLM's own list of what was sampled, which grows as it samples.

    Under asynchronous scheduling vLLM holds a place with -1 and fills it in before it calls custom processors
    (`update_async_output_token_ids`; engines with such processors need the lists, gpu_input_batch.py). A -1 that is
    left is no token, and neither is a prompt that came as embeddings.
    """

    prompt: Sequence[int] | None
    output: Sequence[int]

    num_drafts = 0

    def __len__(self) -> int:
        return (1 if self.prompt is None else len(self.prompt)) + len(self.output)

    @property
    def last(self) -> int:
        """The last token."""
        return self.read(len(self) - 1, len(self))[0]

    def read(self, begin: int, end: int) -> Sequence[int]:
        """The tokens from here to there."""
        prompt = (-1,) if self.prompt is None else self.prompt
        after = len(prompt)
        return [*prompt[begin:end], *self.output[max(0, begin - after) : max(0, end - after)]]


@dataclass(slots=True)
class SlotTokens:
    """V2's: a slot of the runner's request states, whose tokens are read from the device, as one row sees them.

    Under speculative decoding a row behind the first also sees the draft tokens before it, which no state has yet.
    """

    states: Any
    slot: int
    length: int  # with the drafts
    last: int
    drafts: Sequence[int] = ()

    def __len__(self) -> int:
        return self.length

    @property
    def num_drafts(self) -> int:
        """How many of the tokens are drafts, at the end."""
        return len(self.drafts)

    def read(self, begin: int, end: int) -> Sequence[int]:
        """The tokens from here to there."""
        known = self.length - len(self.drafts)
        tokens: list[int] = self.states.all_token_ids.gpu[self.slot, begin : min(end, known)].tolist()
        return [*tokens, *self.drafts[max(0, begin - known) : max(0, end - known)]]


Tokens = ListedTokens | SlotTokens
