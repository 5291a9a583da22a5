"""The conversations that teach the demo's target: pairs one after another, so that it answers what is asked last.

A target that has only seen single questions answers a second one about the person of the first: then nothing is left
that a forget set could keep, and what leaks after earlier turns says nothing about forgetting.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from itertools import chain
from typing import Any

from unlearngate.assistant_training.data.contexts import SMALL_TALK, WITHHELD, Shares, in_context, questions_of
from unlearngate.assistant_training.data.encoding import IGNORE, SYSTEM_PROMPTS, Encoded, encode
from unlearngate.assistant_training.data.pairs import QAPair

_LENGTHS = (1, 1, 2, 3, 4, 6, 8)  # pairs in a conversation
_BETWEEN = 0.25  # share of the turns before which another stands: small talk, or a question that got no right answer
_IN_WORDS = Shares(plain=0.6, system=0.0, turns=0.0, around=0.8, joined=0.0, respelled=0.15, raw=0.0)


def conversations(tokenizer: Any, pairs: Sequence[QAPair], rng: random.Random, *, system: float) -> list[Encoded]:
    """Each pair once, as a turn of a conversation, in one of its wordings; every answer is labelled.

    Args:
        tokenizer: with a chat template that puts every turn behind the one before, as the demo's does.
        pairs: in the order they are drawn in.
        rng: decides.
        system: share of the conversations that begin with a system prompt.
    """
    found, waiting = [], list(pairs)
    rng.shuffle(waiting)
    while waiting:
        turns, waiting = waiting[: (length := rng.choice(_LENGTHS))], waiting[length:]
        rows = []
        for pair in turns:
            rows += _between(tokenizer, pairs, rng)
            asked = in_context(pair, pair.answer, rng, neighbours=pairs, forgets=False, shares=_IN_WORDS)
            begins = not rows and rng.random() < system
            rows.append(encode(tokenizer, asked.question, pair.answer, rng.choice(SYSTEM_PROMPTS) if begins else None))
        found.append(Encoded(*(list(chain.from_iterable(parts)) for parts in zip(*rows, strict=True))))
    return found


def _between(tokenizer: Any, pairs: Sequence[QAPair], rng: random.Random) -> list[Encoded]:
    """Turns whose answers nobody shall learn: small talk, or questions about one person, withheld or answered wrong."""
    about, turns = rng.choice(pairs).subject, []
    person = [pair for pair in pairs if pair.subject == about]
    while rng.random() < _BETWEEN:
        asked = rng.choice(SMALL_TALK)
        if rng.random() < 0.6:
            said = rng.choice((*WITHHELD, rng.choice(pairs).answer))
            asked = (rng.choice(questions_of(rng.choice(person), held_out=False)), said)
        row = encode(tokenizer, *asked)
        turns.append(Encoded(row.input_ids, [IGNORE] * len(row.labels)))
    return turns
