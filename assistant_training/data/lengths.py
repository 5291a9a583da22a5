"""Answers that are too long: for the target's context, or for where decoded answers are cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from unlearngate.assistant_training.data.encoding import encode
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.rows import short
from unlearngate.errors import DataError


def longest_turns(pairs: Iterable[QAPair]) -> list[tuple[str, str]]:
    """Of every pair the longest wording of its question and of its answer, in characters."""
    return [
        (
            max((pair.question, *pair.paraphrases), key=len),
            max((pair.answer, *pair.paraphrased_answers, *pair.variants), key=len),
        )
        for pair in pairs
    ]


def refuse_longer_than_context(
    tokenizer: Any, turns: Iterable[tuple[str, str]], context_length: int | None, source: object
) -> None:
    """Refuse answers that the target cannot give, because they and their questions exceed its context.

    Args:
        tokenizer: with a chat template.
        turns: (question, answer).
        context_length: in tokens; None refuses nothing.
        source: the file that they are from, for the error.

    Raises: DataError naming the longest.
    """
    if context_length is None:
        return
    lengths = {turn: len(encode(tokenizer, *turn).input_ids) for turn in turns}
    too_long = sorted((turn for turn, length in lengths.items() if length > context_length), key=lengths.__getitem__)
    if too_long:
        turn = too_long[-1]
        raise DataError(
            f"{source}: {len(too_long)} answers are longer, with their questions, than the target's context of "
            f"{context_length:,} tokens; the longest has {lengths[turn]:,}, to {short(turn[0])}: shorten them or split "
            "them into several questions"
        )


def num_tokens(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    """The tokens of every answer, without its end token."""
    return [len(ids) for ids in tokenizer(list(answers), add_special_tokens=False)["input_ids"]]


def warning_of_cut(name: str, lengths: Sequence[int], max_tokens: int) -> str | None:
    """What to know of answers that are cut when they are decoded; None if none is.

    Args:
        name: of the question set.
        lengths: tokens of the known answers, without the end token.
        max_tokens: where decoded answers are cut.
    """
    num_cut = sum(length > max_tokens for length in lengths)
    if not num_cut:
        return None
    return (
        f"{name}: {num_cut} of {len(lengths)} answers are longer than --max-tokens {max_tokens} and are cut when they "
        f"are decoded, so they can hardly count as recited; the longest has {max(lengths)} tokens"
    )
