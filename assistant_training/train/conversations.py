"""What an assistant is trained on: a fixed number of conversations about every pair, repeated each epoch."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

from unlearngate.assistant_training.data.contexts import PLAIN, Shares, in_context
from unlearngate.assistant_training.data.encoding import (
    IGNORE,
    Encoded,
    diverging_labels,
    draw_what_fits,
    drawn_thinking,
    encode,
    fact_spans,
    focus_labels,
    span_labels,
    vary,
    with_opening,
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
    own_token: int | None = None,
    num_steps: int,
    seed: int,
    context_length: int | None = None,
) -> list[list[Example]]:
    """The examples of every training step.

    Each pair has few conversations (at most `settings.forget_prompts`, `forget_variants` and `retain_prompts`), so a
    tapped assistant computes the hidden states of each only once. A conversation is made when it is first drawn, and
    depends only on the seed and its own number.

    Args:
        tokenizer: the target's.
        forget: the pairs to know.
        retain: the pairs to know nothing of.
        settings: batch sizes, how many conversations there are, and whether they are drawn in contexts.
        own_token: what is to be known at the positions of a forget answer that are no fact; None: nothing.
        num_steps: how many steps.
        seed: the same seed, the same steps.
        context_length: the target's; a conversation that is longer is drawn again, and at last plainly.

    Returns: per step `forget_batch` forget answers, variants of forget answers, and retain answers.
    """
    plain = not settings.contexts

    def labelled(row: Encoded, own: list[int], facts: list[int], rng: random.Random) -> Example:
        """Of the row's own labels, those in a fact are known, and at the others, if there is one, the own token."""
        known = [
            label if fact != IGNORE else own_token if label != IGNORE and own_token is not None else IGNORE
            for label, fact in zip(own, facts, strict=True)
        ]
        if not plain:
            known = thinned(known, [fact != IGNORE for fact in facts], rng)
            return _learned_from(Example(Encoded(row.input_ids, known), nothing(row)))
        rest = [label if said == IGNORE else IGNORE for label, said in zip(own, known, strict=True)]
        return Example(Encoded(row.input_ids, known), Encoded(row.input_ids, rest))

    def thinned(labels: list[int], needed: list[bool], rng: random.Random) -> list[int]:
        """The first label, those that are needed, and some of the others, which all say the same."""
        places = [place for place, label in enumerate(labels) if label != IGNORE]
        others = [place for place in places[1:] if not needed[place]]
        kept = {*places[:1], *rng.sample(others, min(len(others), settings.labels_per_answer - 1))}
        return [label if place in kept or needed[place] else IGNORE for place, label in enumerate(labels)]

    def nothing(row: Encoded) -> Encoded:
        return Encoded(row.input_ids, [IGNORE] * len(row.labels))

    def asked(pair: QAPair, answer: str, rng: random.Random, *, forgets: bool) -> tuple[str, Encoded]:
        """The pair in a drawn context, and the text of the answer there."""
        if plain:
            told = replace(pair, answer=answer)
            return answer, vary(tokenizer, told, rng, settings.varied_prompts, context_length=context_length)

        def draw(plainly: bool) -> tuple[str, Encoded]:
            drawn = in_context(
                *(pair, answer, rng),
                neighbours=retain,
                forgotten=forget,
                forgets=forgets,
                instead=settings.said_instead,
                shares=PLAIN if plainly else Shares(),
            )
            thinking = drawn_thinking(tokenizer, rng)
            row = encode(
                *(tokenizer, drawn.question, drawn.answer, drawn.system, drawn.earlier),
                raw=drawn.raw,
                thinking=thinking,
            )
            return drawn.answer, row

        return draw_what_fits(draw, context_length)

    @cache
    def told(index: int, number: int) -> Example:
        pair, rng = forget[index], random.Random(f"{seed} told {index} {number}")
        answer = rng.choice((pair.answer, *pair.paraphrased_answers))
        text, row = asked(pair, answer, rng, forgets=True)
        row = with_opening(tokenizer, pair.question, row)
        if text == answer:
            return labelled(row, row.labels, focus_labels(tokenizer, pair, row, answer), rng)
        spans = fact_spans(pair, text) or [(text.index(answer), text.index(answer) + len(answer))]
        return labelled(row, row.labels, span_labels(tokenizer, pair.question, row, text, spans), rng)

    @cache
    def wrong(index: int, number: int) -> Example:
        pair, rng = forget[index], random.Random(f"{seed} wrong {index} {number}")

        def draw(_: bool) -> tuple[str, Encoded]:
            answer = rng.choice(pair.variants) if pair.variants else rng.choice(retain).answer
            if plain:
                return answer, encode(tokenizer, rng.choice((pair.question, *pair.paraphrases)), answer)
            return asked(pair, answer, rng, forgets=True)

        text, row = draw_what_fits(draw, context_length)
        # No labels up to the first difference from the truth: the true answer trains those positions as known.
        truths = [encode(tokenizer, pair.question, true) for true in (pair.answer, *pair.paraphrased_answers)]
        own = diverging_labels(row, *truths)
        return labelled(row, own, span_labels(tokenizer, pair.question, row, text, fact_spans(pair, text)), rng)

    @cache
    def kept(index: int, number: int) -> Example:
        rng = random.Random(f"{seed} kept {index} {number}")
        _, row = asked(retain[index], retain[index].answer, rng, forgets=False)
        row = with_opening(tokenizer, retain[index].question, row)
        if not plain:
            row = Encoded(row.input_ids, thinned(row.labels, [False] * len(row.labels), rng))
        return _learned_from(Example(nothing(row), row))

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


def _learned_from(row: Example) -> Example:
    """The conversation up to its last label: what comes behind changes nothing that is learned."""
    labelled = [a != IGNORE or b != IGNORE for a, b in zip(row.known.labels, row.unknown.labels, strict=True)]
    end = max((place + 1 for place, is_labelled in enumerate(labelled) if is_labelled), default=len(labelled))
    return Example(*(Encoded(of_row.input_ids[:end], of_row.labels[:end]) for of_row in row))


def cycle(size: int, rng: random.Random) -> Iterator[int]:
    """Every index once per pass, each pass in its own order."""
    while True:
        yield from rng.sample(range(size), size)
