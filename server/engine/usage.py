"""What each HTTP request used of the engine: prompt tokens, completion tokens, and tokens at which a gate was open.

An HTTP request with several prompts or `n` choices is several sequences. Each leases its own slot of the tally when the
engine takes it. Its tokens are counted when the engine's client hands them to vLLM's handlers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from unlearngate.server.contract.branches import MAX_BRANCHES
from unlearngate.server.contract.plan import Plan
from unlearngate.server.contract.tally import Tally


class Tokens(NamedTuple):
    """A request's tokens. `open_by_branch` is None if the state of the gates is not known for one of them."""

    prompt: int | None
    completion: int
    open_by_branch: list[int] | None


@dataclass(slots=True)
class _Sequence:
    lease: int
    num_tokens: int = 0


@dataclass(slots=True)
class Usage:
    """One HTTP request's usage: prompts by the id from vLLM's handler, sequences by that and the choice's index."""

    ticket: int
    failed: bool = False
    prompts: dict[str, int] = field(default_factory=dict)
    sequences: dict[tuple[str, int], _Sequence] = field(default_factory=dict)

    def add_output(self, prompt_id: str, prompt_tokens: int) -> None:
        """Record that the engine answered a prompt of this length."""
        self.prompts[prompt_id] = prompt_tokens

    def add_tokens(self, prompt_id: str, index: int, num_tokens: int, *, cumulative: bool) -> None:
        """Add tokens to a choice, or set its total if `cumulative`."""
        sequence = self.sequences[prompt_id, index]
        sequence.num_tokens = num_tokens if cumulative else sequence.num_tokens + num_tokens


class Meter:
    """All requests that the engine is working on."""

    def __init__(self, tally: Tally) -> None:
        self.tally = tally
        self._tickets = itertools.count(1)
        self._running: dict[int, Usage] = {}

    def open(self) -> Usage:
        """Begin a new request; its ticket goes into its signed plan."""
        usage = Usage(next(self._tickets))
        self._running[usage.ticket] = usage
        return usage

    def usage(self, ticket: int) -> Usage:
        """The usage of a request that is still open.

        Raises: KeyError for any other: no request to this server asked the engine for it.
        """
        return self._running[ticket]

    def begin_sequence(self, plan: Plan, prompt_id: str) -> Plan:
        """The plan for a prompt's next choice, which the engine is about to take; with a lease if it has a gate."""
        sequences = self.usage(plan.ticket).sequences
        index = next(i for i in itertools.count() if (prompt_id, i) not in sequences)
        lease = self.tally.lease() if plan.terms else 0
        sequences[prompt_id, index] = _Sequence(lease)
        return replace(plan, lease=lease)

    def close(self, usage: Usage) -> Tokens:
        """End a request: free its slots, and return its tokens."""
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
