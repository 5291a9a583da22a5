"""What each HTTP request used of the engine: prompt tokens, completion tokens, and tokens at which a gate was open.

An HTTP request with several prompts or `n` choices is several sequences. Each leases its own slot of the tally before
the engine is asked. Its tokens are counted when the engine's client hands them to vLLM's handlers.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from unlearngate.errors import BusyError
from unlearngate.server.contract.branches import MAX_BRANCHES
from unlearngate.server.contract.plan import Plan
from unlearngate.server.contract.tally import Tally
from unlearngate.server.engine.constraints import Constraints


class Tokens(NamedTuple):
    """A request's tokens. `open_by_branch` is None if the state of the gates is not known for one of them.

    said_by_branch has the number of answers that were the sentence of a branch's set; None if one is not known.
    """

    prompt: int | None
    completion: int
    open_by_branch: list[int] | None
    said_by_branch: list[int] | None


@dataclass(slots=True)
class Sequence:
    """One choice of a prompt: its slot, whether a set may say a sentence in it, and what its tokens must be."""

    lease: int
    speaks: bool
    constraints: Constraints
    num_tokens: int = 0


@dataclass(slots=True)
class Usage:
    """One HTTP request's usage: prompts by the id from vLLM's handler, sequences by that and the choice's index."""

    ticket: int
    failed: bool = False
    prompts: dict[str, int] = field(default_factory=dict)
    leases: dict[str, list[int]] = field(default_factory=dict)
    sequences: dict[tuple[str, int], Sequence] = field(default_factory=dict)

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

    def reserve(self, plan: Plan, prompt_id: str, num_choices: int) -> None:
        """Lease slots for a prompt's choices, which the engine is about to be asked for, if they have a gate.

        Without a slot gates are not counted, and a sequence could not be told to say a sentence.

        Raises: BusyError if there are too few slots for a plan with a sentence.
        """
        leases = [self.tally.lease() if plan.terms else 0 for _ in range(num_choices)]
        self.usage(plan.ticket).leases[prompt_id] = leases
        if plan.speaks and 0 in leases:
            raise BusyError(
                f"this server runs or queues at most {self.tally.num_slots} sequences with forget sets at a time that "
                "say something instead of answers; try again"
            )

    def begin_sequence(self, plan: Plan, prompt_id: str, constraints: Constraints) -> Plan:
        """The plan for a prompt's next choice, which the engine is about to take; with its lease."""
        usage = self.usage(plan.ticket)
        index = next(i for i in itertools.count() if (prompt_id, i) not in usage.sequences)
        lease = usage.leases[prompt_id][index]
        usage.sequences[prompt_id, index] = Sequence(lease, plan.speaks, constraints)
        return replace(plan, lease=lease)

    def said_by_branch(self, usage: Usage) -> list[int] | None:
        """How many answers with tokens were, so far, the sentence of each branch's set; None if one is not known."""
        answers = [s.lease for s in usage.sequences.values() if s.num_tokens and s.lease]
        said = [self.tally.sentence_of(lease) for lease in answers]
        return None if None in said else [said.count(branch + 1) for branch in range(MAX_BRANCHES)]

    def close(self, usage: Usage) -> Tokens:
        """End a request: free its slots, and return its tokens."""
        del self._running[usage.ticket]
        sequences = usage.sequences.values()
        counts = [[0] * MAX_BRANCHES, *(self.tally.open_tokens(s.lease, s.num_tokens) for s in sequences)]
        said = self.said_by_branch(usage)
        for lease in itertools.chain.from_iterable(usage.leases.values()):
            self.tally.release(lease)
        known = [count for count in counts if count is not None]
        return Tokens(
            prompt=sum(usage.prompts.values()) if usage.prompts else None,
            completion=sum(s.num_tokens for s in sequences),
            open_by_branch=[sum(of_branch) for of_branch in zip(*known, strict=True)] if None not in counts else None,
            said_by_branch=said,
        )
