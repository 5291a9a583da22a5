"""What each HTTP request had of the engine: prompt tokens, completion tokens, and tokens at which a gate was open.

One HTTP request is several sequences where it has several prompts or asks for `n` choices. Each leases its own slot of
the tally when the engine takes it; the tokens are counted as the engine's client hands them to vLLM's handlers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from unlearngate.server.engine.branches import MAX_BRANCHES
from unlearngate.server.engine.plan import Plan
from unlearngate.server.engine.tally import Tally


class Tokens(NamedTuple):
    """A request's tokens. `open_by_branch` is None if for one of them it is not known whether its gates were open."""

    prompt: int | None
    completion: int
    open_by_branch: list[int] | None


@dataclass(slots=True)
class _Sequence:
    lease: int
    num_tokens: int = 0


@dataclass(slots=True)
class Usage:
    """One HTTP request's; prompts by the id that vLLM's handler gave them, sequences by that and the choice's index."""

    ticket: int
    failed: bool = False
    prompts: dict[str, int] = field(default_factory=dict)
    sequences: dict[tuple[str, int], _Sequence] = field(default_factory=dict)

    def add_output(self, prompt_id: str, prompt_tokens: int) -> None:
        """The engine answered a prompt of so many tokens."""
        self.prompts[prompt_id] = prompt_tokens

    def add_tokens(self, prompt_id: str, index: int, num_tokens: int, *, cumulative: bool) -> None:
        """A choice has got so many more tokens, or has so many by now."""
        sequence = self.sequences[prompt_id, index]
        sequence.num_tokens = num_tokens if cumulative else sequence.num_tokens + num_tokens


class Meter:
    """All requests that the engine is working on."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._tickets = itertools.count(1)
        self._running: dict[int, Usage] = {}

    def open(self) -> Usage:
        """A new request; its ticket goes into its signed plan."""
        usage = Usage(next(self._tickets))
        self._running[usage.ticket] = usage
        return usage

    def usage(self, ticket: int) -> Usage:
        """A request that was opened and not closed.

        Raises: KeyError for any other: the engine is asked for something that this server does not answer.
        """
        return self._running[ticket]

    def begin_sequence(self, plan: Plan, prompt_id: str) -> Plan:
        """The engine is about to take the next choice of a prompt: its plan, with a lease if it has a gate."""
        sequences = self.usage(plan.ticket).sequences
        index = next(i for i in itertools.count() if (prompt_id, i) not in sequences)
        lease = self.tally.lease() if plan.terms else 0
        sequences[prompt_id, index] = _Sequence(lease)
        return replace(plan, lease=lease)

    def close(self, usage: Usage) -> Tokens:
        """The request has ended: its tokens. Its slots are free again."""
        del self._running[usage.ticket]
        sequences = usage.sequences.values()
        counts = [[0] * MAX_BRANCHES, *(self.tally.open_tokens(s.lease, s.num_tokens) for s in sequences)]
        for sequence in sequences:
            self.tally.release(sequence.lease)
        known = [count for count in counts if count is not None]
        return Tokens(
            prompt=sum(usage.prompts.values()) if usage.prompts else None,
            completion=sum(s.num_tokens for s in sequences),
            open_by_branch=[sum(of_branch) for of_branch in zip(*known, strict=True)] if None not in counts else None,
        )
