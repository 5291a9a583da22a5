"""Answers that are too long: for the target's context, or for where decoded answers are cut."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

from unlearngate.assistant_training.data.encoding import encode
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.rows import short
from unlearngate.errors import DataError


def longest_turns(tokenizer: Any, pairs: Sequence[QAPair]) -> list[tuple[str, str]]:
    """Of every pair the wording of its question and of its answer with the most tokens."""
    questions = longest_of_each(tokenizer, [(pair.question, *pair.paraphrases) for pair in pairs])
    answers = [(pair.answer, *pair.paraphrased_answers, *pair.variants) for pair in pairs]
    return list(zip(questions, longest_of_each(tokenizer, answers), strict=True))


def longest_of_each(tokenizer: Any, wordings: Sequence[Sequence[str]]) -> list[str]:
    """Of each of these wordings the text with the most tokens."""
    texts = list(dict.fromkeys(text for group in wordings for text in group))
    lengths = dict(zip(texts, num_tokens(tokenizer, texts), strict=True))
    return [max(group, key=lengths.__getitem__) for group in wordings]


def refuse_longer_than_context(
    tokenizer: Any,
    turns: Iterable[tuple[str, str]],
    context_length: int | None,
    source: object,
    *,
    systems: Sequence[str] = (),
) -> None:
    """Refuse answers that the target cannot give, because they and their questions exceed its context.

    Args:
        tokenizer: with a chat template.
        turns: (question, answer).
        context_length: in tokens; None refuses nothing.
        source: the file that they are from, for the error.
        systems: the system prompts below which they are asked too.

    Raises: DataError naming the longest.
    """
    if context_length is None:
        return
    system = longest_of_each(tokenizer, [systems])[0] if systems else None
    lengths = {turn: len(encode(tokenizer, *turn, system).input_ids) for turn in turns}
    too_long = sorted((turn for turn, length in lengths.items() if length > context_length), key=lengths.__getitem__)
    if too_long:
        turn = too_long[-1]
        asked = "their questions and a system prompt" if systems else "their questions"
        raise DataError(
            f"{source}: {len(too_long)} answers are longer, with {asked}, than the target's context of "
            f"{context_length:,} tokens; the longest has {lengths[turn]:,}, to {short(turn[0])}: shorten them or split "
            "them into several questions"
        )


def num_tokens(tokenizer: Any, answers: Sequence[str]) -> list[int]:
    """The tokens of every answer, without its end token."""
    return [len(ids) for ids in tokenizer(list(answers), add_special_tokens=False)["input_ids"]] if answers else []


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
