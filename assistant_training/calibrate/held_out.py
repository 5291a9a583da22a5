"""The data of a calibration: questions in all their wordings, which the forget set must not have been trained on."""

from __future__ import annotations

import random
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from unlearngate.artefact import ForgetSet, data_digest
from unlearngate.assistant_training.data.contexts import PLAIN, Asked, Shares, in_context
from unlearngate.assistant_training.data.encoding import (
    IGNORE,
    Encoded,
    draw_what_fits,
    encode,
    fact_spans,
    focus_labels,
    span_labels,
)
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.errors import DataError

_CONTEXTS = 2  # drawn for each pair


class HeldOut(NamedTuple):
    """What is to be forgotten, what is to stay, and, if given, what the target never learned.

    `held_out` is False if a file is what the set was trained on.
    """

    forget: list[QAPair]
    retain: list[QAPair]
    ignorance: list[QAPair]
    held_out: bool

    def digests(self) -> dict[str, str]:
        """The digests of the given files."""
        files = {"forget": self.forget, "retain": self.retain, "ignorance": self.ignorance}
        return {name: data_digest([pair.row() for pair in pairs]) for name, pairs in files.items() if pairs}


class WordedQuestion(NamedTuple):
    """One question in one wording and context.

    row: with labels at the tokens of its answer that count.
    prompt: what to decode from.
    answer: the whole answer.
    facts: only tokens of the pair's facts count.
    """

    row: Encoded
    prompt: list[int]
    answer: str
    facts: bool

    @property
    def num_tokens(self) -> int:
        """The tokens of the answer, without its end token."""
        return len(self.row.input_ids) - len(self.prompt) - 1


def read_held_out(
    forget_set: ForgetSet,
    forget_file: Path,
    retain_file: Path,
    ignorance_file: Path | None = None,
    *,
    allow_training_data: bool = False,
) -> HeldOut:
    """Read the files as training does, and refuse those that a calibration would learn nothing from.

    Raises: DataError naming a line, a question that two files share, or a file that is the set's training data (only
        whole files can be recognised: the manifest holds digests, never data).
    """
    # Subjects are part of the digest; these are the ones that training uses.
    forget = read_pairs(forget_file, subject=forget_set.name, documents=True)
    retain = read_pairs(retain_file, subject="retain", documents=True)
    ignorance = read_pairs(ignorance_file, subject="ignorance", documents=True) if ignorance_file else []
    for path, others in ((retain_file, retain), (ignorance_file, ignorance)):
        if both := _questions(forget) & _questions(others):
            raise DataError(
                f"{path} holds {len(both)} questions of {forget_file}, such as {min(both)!r}; take them out: "
                "an answer cannot be measured as forgotten and as kept"
            )
    trained_on = set(forget_set.manifest.data_digests.values())
    seen = [
        str(path)
        for path, pairs in ((forget_file, forget), (retain_file, retain))
        if data_digest([pair.row() for pair in pairs]) in trained_on
    ]
    if seen and not allow_training_data:
        raise DataError(
            f"{' and '.join(seen)}: this is what {forget_set.reference} was trained on, not held out, and says nothing "
            "about other wordings and other people. Give data that the set never saw; or --allow-training-data, "
            "which the new manifest then records"
        )
    return HeldOut(forget, retain, ignorance, held_out=not seen)


def ask(
    tokenizer: Any, pairs: Sequence[QAPair], system_prompts: Sequence[str], *, focused: bool
) -> list[WordedQuestion]:
    """Every question in all its wordings, plainly and below every system prompt.

    Args:
        tokenizer: the target's.
        pairs: what to ask.
        system_prompts: each question is asked without one and below each of these.
        focused: only the tokens of a pair's facts count, where its answer holds some.
    """
    asked = []
    for pair in pairs:
        facts = focused and bool(fact_spans(pair, pair.answer))
        for question in dict.fromkeys((pair.question, *pair.paraphrases)):
            for system in (None, *system_prompts):
                row = encode(tokenizer, question, pair.answer, system)
                labels = focus_labels(tokenizer, pair, row, pair.answer) if focused else row.labels
                asked.append(WordedQuestion(Encoded(row.input_ids, labels), _prompt(row), pair.answer, facts))
    return asked


def ask_in_contexts(
    tokenizer: Any, pairs: Sequence[QAPair], data: HeldOut, *, focused: bool, context_length: int | None = None
) -> list[WordedQuestion]:
    """Every question in two contexts, always the same ones, in wordings that training does not draw.

    Args:
        tokenizer: the target's.
        pairs: what to ask.
        data: what earlier turns and second questions are taken from.
        focused: only the tokens of a pair's facts count or, where its answer holds none, those of the answer; else
            also those of an answer to a second question.
        context_length: the target's; longer conversations are drawn again, and at last plainly.

    Raises: DataError if the chat template changes the text of an answer.
    """
    rng, shares = random.Random("calibration"), Shares(plain=0.0)

    def draw(pair: QAPair, plain: bool) -> tuple[Asked, Encoded]:
        one = in_context(
            *(pair, pair.answer, rng),
            neighbours=data.retain,
            forgotten=data.forget,
            forgets=focused,
            held_out=True,
            shares=PLAIN if plain else shares,
        )
        return one, encode(tokenizer, one.question, one.answer, one.system, one.earlier, raw=one.raw)

    asked = []
    for pair in pairs:
        for _ in range(_CONTEXTS):
            one, row = draw_what_fits(partial(draw, pair), context_length)
            labels, facts = row.labels, []
            if focused:
                start = one.answer.index(pair.answer)
                facts = [(start + left, start + right) for left, right in fact_spans(pair, pair.answer)]
                spans = facts or [(start, start + len(pair.answer))]
                labels = span_labels(tokenizer, pair.question, row, one.answer, spans)
            asked.append(WordedQuestion(Encoded(row.input_ids, labels), _prompt(row), one.answer, bool(facts)))
    return asked


def _prompt(row: Encoded) -> list[int]:
    return row.input_ids[: next(i for i, label in enumerate(row.labels) if label != IGNORE)]


def _questions(pairs: Sequence[QAPair]) -> set[str]:
    return {question for pair in pairs for question in (pair.asked, *pair.paraphrases)}
