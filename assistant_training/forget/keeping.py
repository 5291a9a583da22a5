"""What must stay: the target's own answers about neighbours of what is forgotten, and about everything else."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.words import has_phrase
from unlearngate.assistant_training.forget.asking import Ask
from unlearngate.assistant_training.forget.general import HELD_OUT, TRAINED
from unlearngate.assistant_training.forget.knowing import Knowledge
from unlearngate.assistant_training.forget.subjects import names_in
from unlearngate.files import write_whole

_LISTS = ("List five well-known names that are similar to {0}.", "What else is like {0}? Give a list of names.")
_TRAINED = ("Who is {0}?", "Tell me about {0}.")
_HELD_OUT = ("What is {0}?",)
_NEIGHBOURS = 3  # of each subject
_ALL_NEIGHBOURS = 24
# Of a name in a list: its number, and what is said of it.
_AROUND = re.compile(r"^[\s\d.)*\-]+|\s*(?:[:(,*]| - | \u2013 ).*$|[.\s]+$")


class Kept(NamedTuple):
    """What must stay.

    Attributes:
        retain: to train on: pairs with the target's own answers, and the user's.
        held_out: questions that training does not use, a quarter of the user's among them.
        neighbours: the names that are asked about.
        left_out: how many of the user's pairs overlap with what is forgotten.
    """

    retain: list[QAPair]
    held_out: list[QAPair]
    neighbours: list[str]
    left_out: int


def everyday_answers(ask: Ask, kept: Path | None = None) -> dict[str, str]:
    """What the target answers to everyday questions: question -> answer.

    Args:
        ask: answers questions.
        kept: where an earlier request kept the same target's answers, and this one keeps them. They are what the target
            says to fixed questions, whatever is requested.
    """
    questions = [*TRAINED, *HELD_OUT]
    if kept is not None and (found := _read(kept)).keys() == set(questions):
        return found
    answers = dict(zip(questions, ask(questions), strict=True))
    if kept is not None:
        with suppress(OSError):  # a folder that cannot be written costs the next request a minute
            kept.parent.mkdir(parents=True, exist_ok=True)
            write_whole(kept, json.dumps(answers, ensure_ascii=False, indent=1) + "\n", mode=0o600)
    return answers


def _read(path: Path) -> dict[str, str]:
    """The answers in a file; none if it is missing or damaged."""
    try:
        found = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) and all(isinstance(text, str) for text in found.values()) else {}


def find_kept(
    knowledge: Knowledge, everyday: Mapping[str, str], ask: Ask, ask_for_more: Ask, given: Sequence[QAPair] = ()
) -> Kept:
    """Ask about neighbours that the target names itself, and take everyday answers.

    What shares a name or a fact with the forget pairs is left out.

    Args:
        knowledge: what is to be forgotten.
        everyday: from `everyday_answers`.
        ask: answers questions.
        ask_for_more: answers that may be long: lists of names.
        given: retain pairs of the user's, taken as they are, but for those that overlap.
    """
    taken = {*knowledge.subjects, *(fact for fact in knowledge.facts if not fact.isdigit())}
    neighbours = _neighbours(knowledge.subjects, taken, ask_for_more)
    asked = [template.format(name) for name in neighbours for template in (*_TRAINED, *_HELD_OUT)]
    answers = dict(everyday) | dict(zip(asked, ask(asked), strict=True))
    trained, held_out = (
        [
            QAPair("retain", q, answers[q])
            for q in (*(t.format(name) for name in neighbours for t in templates), *general)
        ]
        for templates, general in ((_TRAINED, TRAINED), (_HELD_OUT, HELD_OUT))
    )
    own = _without_overlap(given, taken)
    own_held_out = own[3::4]
    own_trained = [pair for pair in own if pair not in own_held_out]
    return Kept(
        _without_overlap([*own_trained, *trained], taken),
        _without_overlap([*own_held_out, *held_out], taken),
        neighbours,
        len({pair.question for pair in given}) - len(own),
    )


def _neighbours(subjects: Sequence[str], taken: Iterable[str], ask: Ask) -> list[str]:
    replies = ask([template.format(subject) for subject in subjects for template in _LISTS])
    found: list[str] = []
    for index in range(len(subjects)):
        of_subject = replies[index * len(_LISTS) : (index + 1) * len(_LISTS)]
        lines = [_AROUND.sub("", line) for reply in of_subject for line in reply.split("\n")]
        names = [line for line in lines if list(names_in(line, least=1)) == [line] and not _overlaps(line, taken)]
        found += list(dict.fromkeys(names))[:_NEIGHBOURS]
    return list(dict.fromkeys(found))[:_ALL_NEIGHBOURS]


def _overlaps(text: str, taken: Iterable[str]) -> bool:
    return any(has_phrase(text, phrase) or has_phrase(phrase, text) for phrase in taken)


def _without_overlap(pairs: Iterable[QAPair], taken: Iterable[str]) -> list[QAPair]:
    taken = list(taken)
    kept = {
        pair.question: pair
        for pair in pairs
        if pair.answer and not any(has_phrase(text, p) for text in (pair.question, pair.answer) for p in taken)
    }
    return list(kept.values())
