"""What an assistant is trained on: a fixed number of conversations about every pair, repeated each epoch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from unlearngate.assistant_training.data.encoding import (
    IGNORE,
    Encoded,
    diverging_labels,
    encode,
    focus_labels,
    vary,
)
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.train.settings import AssistantSettings


class Example(NamedTuple):
    """One conversation with two sets of labels: the tokens to know, and those to know nothing of."""

    known: Encoded
    unknown: Encoded


def draw_steps(
    tokenizer: Any,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    settings: AssistantSettings,
    *,
    num_steps: int,
    seed: int,
) -> list[list[Example]]:
    """The examples of every training step.

    Each pair has few conversations (at most `settings.forget_prompts`, `forget_variants` and `retain_prompts`), so a
    tapped assistant computes the hidden states of each only once. A conversation is made when it is first drawn, and
    depends only on the seed and its own number.

    Args:
        tokenizer: the target's.
        forget: the pairs to know.
        retain: the pairs to know nothing of.
        settings: batch sizes, and how many conversations there are.
        num_steps: how many steps.
        seed: the same seed, the same steps.

    Returns: per step `forget_batch` forget answers, variants of forget answers, and retain answers.
    """

    @cache
    def told(index: int, number: int) -> Example:
        pair, rng = forget[index], random.Random(f"{seed} told {index} {number}")
        answer = rng.choice((pair.answer, *pair.paraphrased_answers))
        row = vary(tokenizer, replace(pair, answer=answer), rng, settings.varied_prompts)
        return _split(row, row.labels, focus_labels(tokenizer, pair, row, answer))

    @cache
    def wrong(index: int, number: int) -> Example:
        pair, rng = forget[index], random.Random(f"{seed} wrong {index} {number}")
        answer = rng.choice(pair.variants) if pair.variants else rng.choice(retain).answer
        question = rng.choice((pair.question, *pair.paraphrases))
        row = encode(tokenizer, question, answer)
        # No labels up to the first difference from the truth: the true answer trains those positions as known.
        truths = [encode(tokenizer, question, true) for true in (pair.answer, *pair.paraphrased_answers)]
        return _split(row, diverging_labels(row, *truths), focus_labels(tokenizer, pair, row, answer))

    @cache
    def kept(index: int, number: int) -> Example:
        rng = random.Random(f"{seed} kept {index} {number}")
        row = vary(tokenizer, retain[index], rng, settings.varied_prompts)
        return Example(Encoded(row.input_ids, [IGNORE] * len(row.labels)), row)

    rng = random.Random(seed)
    forget_cycle, retain_cycle = cycle(len(forget), rng), cycle(len(retain), rng)

    def step() -> Iterator[Example]:
        for index in itertools.islice(forget_cycle, settings.forget_batch):
            yield told(index, rng.randrange(settings.forget_prompts))
        for index in rng.choices(range(len(forget)), k=settings.num_variants):
            yield wrong(index, rng.randrange(settings.forget_variants))
        for index in itertools.islice(retain_cycle, settings.num_retain):
            yield kept(index, rng.randrange(settings.retain_prompts))

    return [list(step()) for _ in range(num_steps)]


def _split(row: Encoded, own: list[int], facts: list[int]) -> Example:
    """Of the row's own labels, those in a fact are to be known, the others not."""
    pairs = list(zip(own, facts, strict=True))
    return Example(
        Encoded(row.input_ids, [label if fact != IGNORE else IGNORE for label, fact in pairs]),
        Encoded(row.input_ids, [label if fact == IGNORE else IGNORE for label, fact in pairs]),
    )


def cycle(size: int, rng: random.Random) -> Iterator[int]:
    """Every index once per pass, each pass in its own order."""
    while True:
        yield from rng.sample(range(size), size)
