"""Sequences that say a forget set's sentence instead of an answer.

Whether one does is decided at its first output position: if a set with a sentence is open there, the sequence says it
from then on, of several sets the first branch's. The decision is kept on the device by the sequence's lease
(contract/tally.py), so preemption, moves within a batch and asynchronous scheduling do not touch it, and no step waits
for the device.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from unlearngate.server.contract.plan import Plan

_BRANCH_BITS = 4  # of a slot's state: 0, or 1 + the branch whose sentence is said; above them the lease's tag
_BRANCHES = 1 << _BRANCH_BITS
_NONE = _BRANCHES - 1  # no open branch: larger than 1 + any


class Sentences(NamedTuple):
    """The sentences of one batch, on the device. R rows, N pairs as the processor's batch has them, P sentences."""

    slot_R: Tensor  # of the rows' leases; `num_slots` for a row without a sentence
    tag_R: Tensor
    row_N: Tensor
    value_N: Tensor  # 1 + the pair's branch if its set has a sentence, else _NONE
    place_RB: Tensor  # by row and 1 + branch: which of the sentences
    token_PL: Tensor  # filled up with their last tokens, end-of-sequence


class Saying:
    """What each leased sequence says."""

    def __init__(self, num_slots: int, eos: int, device: torch.device) -> None:
        self._num_slots = num_slots
        self._eos = eos
        self._device = device
        self._state = torch.zeros(num_slots + 1, dtype=torch.int64, device=device)  # the last is of rows without one

    def check(self, plan: Plan) -> Plan:
        """The plan, if what it says can be kept.

        Raises: ValueError if it has a sentence and no lease.
        """
        if plan.speaks and not (plan.lease and plan.lease >> 8 < self._num_slots):
            raise ValueError(
                f"a plan with a sentence needs one of the tally's {self._num_slots} slots, got {plan.lease}"
            )
        return plan

    def sentences(self, plans: Sequence[Plan]) -> Sentences | None:
        """What a batch of these rows, each checked, needs; None if no row has a sentence."""
        if not any(plan.speaks for plan in plans):
            return None
        spoken = [(row, term) for row, plan in enumerate(plans) for term in plan.terms]
        slots: list[int] = []
        texts: list[tuple[int, ...]] = [(self._eos,)]
        place_RB = torch.zeros(len(plans), _BRANCHES, dtype=torch.int64)
        for row, plan in enumerate(plans):
            slots.append(plan.lease >> 8 if plan.speaks else self._num_slots)
            for term in plan.terms:
                if term.sentence:
                    place_RB[row, term.branch + 1] = len(texts)
                    texts.append(term.sentence)
        longest = max(map(len, texts))
        tensors = (
            torch.tensor(slots),
            torch.tensor([plan.lease & 255 for plan in plans]),
            torch.tensor([row for row, _ in spoken]),
            torch.tensor([term.branch + 1 if term.sentence else _NONE for _, term in spoken]),
            place_RB,
            torch.tensor([[*text, *text[-1:] * (longest - len(text))] for text in texts]),
        )
        return Sentences(*(tensor.to(self._device) for tensor in tensors))

    def say(self, logits: Tensor, sentences: Sentences, position_R: Tensor, open_N: Tensor) -> Tensor:
        """Leave the rows of sequences that say a sentence nothing but its next token, in place.

        A row beyond the first whose sequence's decision is not there can only end.

        Args:
            logits: (R, V), composed.
            sentences: of this batch.
            position_R: (R,) int64, the output position that each row samples; below 0 if vLLM discards the row. Of
                steps at position 0 the last one counts: V1 has rows there that it discards. A step that has position 0
                decides for rows of the same sequence behind it.
            open_N: bool, the pairs whose sets are open.

        Returns: (R,) int64, 1 + the branch whose sentence is said, 0 for none.
        """
        slot_R, tag_R, row_N, value_N, place_RB, token_PL = sentences
        first_R = torch.full_like(slot_R, _NONE).scatter_reduce_(0, row_N, value_N.masked_fill(~open_N, _NONE), "amin")
        decided_R = tag_R << _BRANCH_BITS | first_R.masked_fill_(first_R == _NONE, 0)
        decides_R = position_R == 0
        self._state[slot_R.where(decides_R, self._num_slots)] = decided_R.where(decides_R, 0)
        state_R = self._state[slot_R]
        known_R = state_R >> _BRANCH_BITS == tag_R
        said_R = (state_R % _BRANCHES).masked_fill_(~known_R | (position_R < 0), 0)
        lost_R = ~known_R & (position_R > 0) & (slot_R < self._num_slots)
        column_R = position_R.clamp(0, token_PL.shape[1] - 1)
        token_R = token_PL[place_RB.gather(1, said_R[:, None])[:, 0], column_R]
        forced_R = (said_R > 0) | lost_R
        if logits.device.type != "cpu" or bool(forced_R.any()):
            logits.masked_fill_(forced_R[:, None], -torch.inf)
            shown_R1 = logits.gather(1, token_R[:, None])
            logits.scatter_(1, token_R[:, None], shown_R1.masked_fill_(forced_R[:, None], 0.0))
        return said_R
