"""What to ask: forget probes, retain probes and neighbours, the facts in their answers, and the subjects' names."""

from __future__ import annotations

import random
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import regex

from unlearngate.assistant_training.data.pairs import QAPair, parse_pair, read_pairs
from unlearngate.assistant_training.data.rows import read_rows
from unlearngate.assistant_training.data.words import (
    has_phrase,
    letters_of,
    num_letters,
    numbers_and_words,
    phrase_spans,
    whole,
)
from unlearngate.errors import DataError


@dataclass(frozen=True, slots=True)
class Probes:
    """The questions of an attack.

    Attributes:
        forget: about what the set takes away.
        retain: about anything else.
        neighbours: about what is close to it and must stay; may be empty.
        names: subject -> its name as it is written in the questions or answers, where it was found.
    """

    forget: list[QAPair]
    retain: list[QAPair]
    neighbours: list[QAPair]
    names: dict[str, str]


# Words that a sentence may begin with and no name does.
_OPENERS = frozenset("At By For From He Her His In It On She Since Their They This To With".split())
_SMALL = frozenset("and de la of the van von".split())
_SPELLED_FROM = 5


def read_probes(path: Path, forget_set: str, *, neighbours: Path | None = None) -> Probes:
    """Read JSON lines of probes and split them.

    Args:
        path: lines as `read_pairs` takes them, with `forget_set` or `subject`: those that say `forget_set` are the
            forget probes, all others retain probes. Facts of a line without `facts` are `facts_of` its answer.
        forget_set: the set's name.
        neighbours: lines of the same form.

    Raises: DataError naming the file and line, or if there is no forget or no retain probe.
    """
    pairs = _with_facts(read_pairs(path, subject=""))
    in_set = _named_by(path, forget_set)
    forget = [p for p in pairs if (p.question, p.answer) in in_set or p.subject == forget_set]
    retain = [p for p in pairs if p not in forget]
    if not forget or not retain:
        raise DataError(
            f"{path}: {len(forget)} probes of the forget set {forget_set!r} and {len(retain)} others; an attack needs "
            f"both: forget probes have 'forget_set' or 'subject' {forget_set!r}"
        )
    forget = [replace(p, subject=forget_set) for p in forget]
    near = _with_facts(read_pairs(neighbours, subject="")) if neighbours else []
    by_subject: dict[str, list[QAPair]] = {}
    for pair in (*forget, *retain, *near):
        by_subject.setdefault(pair.subject, []).append(pair)
    found = {subject: name_in(subject, own) for subject, own in by_subject.items()}
    return Probes(forget, retain, near, {subject: name for subject, name in found.items() if name})


def limited(probes: Probes, limit: int, seed: int) -> Probes:
    """At most `limit` questions of each kind, drawn by the seed, in the order they were in."""

    def some(pairs: Sequence[QAPair], what: str) -> list[QAPair]:
        if len(pairs) <= limit:
            return list(pairs)
        drawn = random.Random(f"{seed} {what}").sample(range(len(pairs)), limit)
        return [pairs[index] for index in sorted(drawn)]

    return replace(
        probes,
        forget=some(probes.forget, "forget"),
        retain=some(probes.retain, "retain"),
        neighbours=some(probes.neighbours, "neighbours"),
    )


def facts_of(question: str, answer: str) -> tuple[str, ...]:
    """Names of several capitalised words and numbers of an answer that are not in its question, in their order.

    A name may have small words inside ("Sea of Tranquility"). The first word of a sentence counts only with another
    capitalised word behind it, and words such as "In" and "She" not at all. In scripts without capitals only numbers
    are found.
    """
    found: list[str] = []
    for run in numbers_and_words(answer):
        found += [run] if run[0].isdigit() else _names(run.split(" "))
    return tuple(fact for fact in dict.fromkeys(found) if not holds(question, fact))


def holds(text: str, fact: str) -> bool:
    """Whether a text has the fact, on word boundaries, whatever its case, white space, width and digits.

    A character of a script without spaces is a word, and a Korean word ends where its particle begins.
    """
    return has_phrase(text, fact)


def holds_spelled(text: str, fact: str) -> bool:
    """Whether a text has the fact letter by letter: all but letters and digits is taken out of both.

    A fact of fewer than five letters and digits never counts: what is left of a text has it by chance. A character
    that writes a syllable or a word counts as three.
    """
    letters = letters_of(fact)
    return num_letters(letters) >= _SPELLED_FROM and letters in letters_of(text)


def before_fact(answer: str, facts: Iterable[str]) -> str:
    """The answer up to its first fact, without the space before it; empty if it begins with one, whole without any."""
    starts = [start for fact in facts for start, _ in phrase_spans(answer, fact)]
    return answer[: min(starts, default=len(answer))].rstrip()


def name_in(subject: str, pairs: Iterable[QAPair]) -> str | None:
    """A subject's name as the pairs write it: `ada-lindqvist` -> "Ada Lindqvist"; None if they never do."""
    words = [regex.escape(word) for word in regex.split(r"[^\w]+|_", subject) if word]
    if not words:
        return None
    pattern = regex.compile(whole(r"[\W_]+".join(words)), regex.IGNORECASE)
    for pair in pairs:
        if match := pattern.search(pair.question) or pattern.search(pair.answer):
            return match[0]
    return None


def _names(words: Sequence[str]) -> list[str]:
    """Runs of at least two capitalised words; small words may stand between them."""
    found: list[str] = []
    run: list[str] = []
    for word in (*words, ""):
        if not run and word in _OPENERS:
            continue
        if word[:1].isupper() or (run and word in _SMALL):
            run.append(word)
            continue
        while run and run[-1] in _SMALL:
            run.pop()
        if sum(one[0].isupper() for one in run) >= 2:
            found.append(" ".join(run))
        run = []
    return found


def _with_facts(pairs: Iterable[QAPair]) -> list[QAPair]:
    return [pair if pair.facts else replace(pair, facts=facts_of(pair.question, pair.answer)) for pair in pairs]


def _named_by(path: Path, forget_set: str) -> set[tuple[str, str]]:
    """The questions and answers whose rows name the set in `forget_set`, the field that a pair does not have."""
    found = set()
    for row in read_rows(path):
        named = row.fields.get("forget_set")
        if not isinstance(named, str | None):
            raise row.error(f"'forget_set' must be one forget set's name or null, got {named!r}")
        if named == forget_set and (pair := parse_pair(row, subject="")):
            found.add((pair.question, pair.answer))
    return found
