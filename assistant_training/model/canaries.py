"""A set's canaries, verified before they are written: questions whose answers it changes, and questions that it leaves.

A server asks them of its engine before the set is in force (`Canary`).
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any

from unlearngate.assistant_training.data.encoding import encode_prompt, fact_spans
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.model.decoding import greedy
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.errors import TrainingError
from unlearngate.manifest import CANARY_TOKENS, Canary

_NUM_TRIED = 16  # forget questions
NUM_EACH = 4  # of a set: questions that change, and questions that stay


def choose_canaries(
    target: Any,
    tokenizer: Any,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    *,
    seed: int,
    in_force: Sequence[LoadedSet] = (),
    student: Any = None,
    needed: bool = True,
) -> list[Canary]:
    """Draw questions of each file, and keep at most 4 of each that the set treats as it should.

    Forget questions are tried whose answers come to a fact first: a set that lowers changes nothing before it, and a
    canary is only so many tokens of an answer.

    Args:
        target: the target.
        tokenizer: its tokenizer.
        forget: the set must change an answer of these.
        retain: and leave these.
        seed: draws the questions.
        in_force: the set, if it is of kind `uld`.
        student: the target with the set on it, if it is of kind `undial`.
        needed: whether a set that changes none of the answers is refused; if not, it gets no canaries.

    Raises: TrainingError if it changes none of the forget answers and `needed`.
    """
    rng = random.Random(f"canaries {seed}")
    # A server asks each as a user's turn, a document's opening too.
    drawn = [Canary(question=str(question), changes=True) for question in _earliest(forget, rng)]
    drawn += [Canary(question=str(question), changes=False) for question in _draw(retain, rng, NUM_EACH)]
    held = that_hold(target, tokenizer, drawn, in_force=in_force, student=student)
    if changing := [canary for canary in held if canary.changes][:NUM_EACH]:
        return changing + [canary for canary in held if not canary.changes]
    if needed:
        raise TrainingError(
            f"the set does nothing: with it and without it the target answers {sum(c.changes for c in drawn)} of the "
            f"forget questions with the same {CANARY_TOKENS} tokens. Train it longer"
        )
    return []


def that_hold(
    target: Any,
    tokenizer: Any,
    canaries: Sequence[Canary],
    *,
    in_force: Sequence[LoadedSet] = (),
    student: Any = None,
) -> list[Canary]:
    """The canaries that do what they claim, decoded greedily with the set and without; the others are left out.

    Args:
        target: the target.
        tokenizer: its tokenizer.
        canaries: any.
        in_force: as `choose_canaries` takes it.
        student: the same.
    """
    if not canaries:
        return []
    prompts = [encode_prompt(tokenizer, canary.question) for canary in canaries]
    options = {"eos_id": tokenizer.eos_token_id, "max_tokens": CANARY_TOKENS}
    before = greedy(target, prompts, **options)
    after = greedy(target if student is None else student, prompts, **options, in_force=in_force)
    return [
        canary
        for canary, plain, with_set in zip(canaries, before, after, strict=True)
        if (plain != with_set) == canary.changes
    ]


def _earliest(pairs: Sequence[QAPair], rng: random.Random) -> list[str]:
    """The questions whose answers have a fact earliest; an answer without facts is one from its first letter."""
    first = {pair.question: min((start for start, _ in fact_spans(pair, pair.answer)), default=0) for pair in pairs}
    drawn = _draw(pairs, rng, len(first))
    return sorted(drawn, key=first.__getitem__)[:_NUM_TRIED]


def _draw(pairs: Sequence[QAPair], rng: random.Random, number: int) -> list[str]:
    questions = list(dict.fromkeys(pair.question for pair in pairs))
    return rng.sample(questions, min(number, len(questions)))
