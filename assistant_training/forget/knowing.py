"""What the target knows of a request: it is asked in many wordings, and an answer with facts of the request is known.

A name of which it knows something is forgotten whole: it is trained on all names and numbers in all its answers about
it, true or not, in the request or not. Names of which it knows nothing are not trained on. Some wordings are held out.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from typing import NamedTuple

import regex

from unlearngate.assistant_training.attack.probes import facts_of
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.rewording import reword_question
from unlearngate.assistant_training.data.words import folded, has_phrase, phrase_spans
from unlearngate.assistant_training.forget.asking import Ask
from unlearngate.assistant_training.forget.request import Request
from unlearngate.assistant_training.forget.subjects import capitals_tell, names_in, without_openers
from unlearngate.assistant_training.forget.wordings import (
    HELD_OUT,
    HELD_OUT_ELSEWHERE,
    TRAINED,
    TRAINED_ELSEWHERE,
    WRITE,
)
from unlearngate.errors import TrainingError

_MOST_WRITTEN = 16  # questions of the target's own about one subject
_LONGEST = 150  # letters of one
_NUMBERING = regex.compile(r"^[\s\-*•]*(?:Q(?:uestion)?\s*\d*[.:)]\s*|\d+[.:)]\s*)*[\"“]?|[\"”*]+$")
_PARAPHRASES = 3
_SHORT = 5  # words of an answer that is a fact as a whole
_AGAIN = 2  # times that a question about a known name is answered in other words
_LEAST = 2  # so many known answers make a name one that the target knows something of
_USUAL = 2  # so many everyday answers that say a word make it an everyday word


class Knowledge(NamedTuple):
    """Pairs with the target's own answers, and the facts in them.

    Attributes:
        forget: to be trained on, with other wordings.
        held_out: questions in words that training does not use, with the facts of the request that were told.
        facts: the facts of the request that were told in any answer.
        subjects: the names asked about of which the target knows something.
        unknown: those of which it knows nothing.
        num_asked: questions that were asked.
    """

    forget: list[QAPair]
    held_out: list[QAPair]
    facts: list[str]
    subjects: list[str]
    unknown: list[str]
    num_asked: int


def find_known(
    request: Request,
    subjects: Sequence[str],
    ask: Ask,
    ask_for_more: Ask,
    ask_again: Ask,
    *,
    name: str,
    everyday: Sequence[str],
) -> Knowledge:
    """Ask about every subject and every given pair, and keep what is known.

    Args:
        request: what was asked for.
        subjects: its names.
        ask: answers questions.
        ask_for_more: answers that may be long: lists of questions.
        ask_again: answers with other words: facts come out of other sentences, too.
        name: the forget set's.
        everyday: answers about other things; what two of them say is no fact of the request.

    Raises: TrainingError if the target knows nothing of it.
    """
    written = _written(subjects, ask_for_more)
    asked: dict[str, tuple[str, bool]] = {}  # question -> subject, held out
    for subject in subjects:
        for template in TRAINED:
            asked.setdefault(template.format(subject), (subject, False))
        for template in HELD_OUT:
            asked.setdefault(template.format(subject), (subject, True))
        for index, question in enumerate(written[subject]):
            asked.setdefault(question, (subject, index % 4 == 3))
    given = {pair.question: pair for pair in request.pairs}
    questions = [*asked, *(question for question in given if question not in asked)]
    answers = dict(zip(questions, ask(questions), strict=True))
    facts_in, claims_in = _finders(request, subjects, list(answers.values()), everyday)
    found: dict[bool, list[QAPair]] = {False: [], True: []}
    known: dict[str, int] = dict.fromkeys(subjects, 0)
    told = {question: facts_in(question, answers[question]) for question in asked}
    for question, (subject, _) in asked.items():
        known[subject] += bool(told[question])
    for question, (subject, held_out) in asked.items():
        # An answer that neither names it nor tells a fact is about something else.
        is_about = told[question] or has_phrase(answers[question], subject)
        facts = told[question] if held_out else claims_in(question, answers[question]) if is_about else ()
        if facts and known[subject] >= _LEAST:
            found[held_out].append(_pair(name, question, answers[question], facts, reword=not held_out))
    again = [q for q, (subject, held_out) in asked.items() if not held_out and known[subject] >= _LEAST] * _AGAIN
    for question, answer in zip(again, ask_again(again), strict=True):
        if facts_in(question, answer) and answer != answers[question]:
            found[False].append(_pair(name, question, answer, claims_in(question, answer), reword=True))
    for held_out, pairs in _elsewhere(name, [s for s in subjects if known[s] >= _LEAST], ask, told).items():
        found[held_out] += pairs
    for question, pair in given.items():
        told[question] = tuple(fact for fact in _truth(pair) if has_phrase(answers[question], fact))
    for held_out, pairs in _of_given(name, [pair for q, pair in given.items() if told[q]], answers, told).items():
        found[held_out] += pairs
    if not found[True]:
        found = _with_one_held_out(found[False], told)
    if not found[False]:
        about = ", ".join(subjects[:5]) or "it"
        raise TrainingError(
            f"nothing to forget: asked {len(told)} questions about {about}, the target told none of the facts in "
            "the request. Where a text must not come out word for word, its `verbatim` set is what holds"
        )
    return Knowledge(
        found[False],
        found[True],
        list(dict.fromkeys(fact for facts in told.values() for fact in facts)),
        [subject for subject, count in known.items() if count >= _LEAST],
        [subject for subject, count in known.items() if count < _LEAST],
        len(told) + len(again),
    )


def _elsewhere(
    name: str, subjects: Sequence[str], ask: Ask, told: dict[str, tuple[str, ...]]
) -> dict[bool, list[QAPair]]:
    """Pairs in other languages, to train on and held out: answers that tell facts that it also tells in English.

    Other facts are not looked for: where every noun has a capital, names cannot be told from them. What is told is
    added to `told`.
    """
    facts = list(dict.fromkeys(fact for one in told.values() for fact in one))
    found: dict[bool, list[QAPair]] = {False: [], True: []}
    wordings = ((False, TRAINED_ELSEWHERE), (True, HELD_OUT_ELSEWHERE))
    asked = [(held_out, text.format(s), s) for held_out, texts in wordings for text in texts for s in subjects]
    for (held_out, question, subject), answer in zip(asked, ask([question for _, question, _ in asked]), strict=True):
        new = (fact for fact in facts if not has_phrase(fact, subject) and not has_phrase(question, fact))
        told[question] = tuple(fact for fact in new if has_phrase(answer, fact))
        if told[question]:
            found[held_out].append(_pair(name, question, answer, told[question], reword=False))
    return found


def _truth(pair: QAPair) -> tuple[str, ...]:
    """The facts of a given pair: its own; names and numbers of its answer; or the answer, if it is a few words."""
    names = (name for name in names_in(pair.answer, least=1) if not has_phrase(pair.question, name))
    found = pair.facts or facts_of(pair.question, pair.answer) or tuple(names)
    whole = pair.answer.strip().rstrip(".!?")
    return found or ((whole,) if len(whole.split()) <= _SHORT and whole else ())


def _of_given(
    name: str, pairs: Sequence[QAPair], answers: Mapping[str, str], told: Mapping[str, tuple[str, ...]]
) -> dict[bool, list[QAPair]]:
    """Given pairs that are known, to train on and held out: the last other wording of each, or every fourth pair."""
    found: dict[bool, list[QAPair]] = {False: [], True: []}
    alone = [pair.question for pair in pairs if not pair.paraphrases]
    for pair in pairs:
        own, facts = answers[pair.question], told[pair.question]
        if pair.paraphrases:
            found[True].append(QAPair(name, pair.paraphrases[-1], own, facts=facts))
        elif alone.index(pair.question) % 4 == 3:
            found[True].append(QAPair(name, pair.question, own, facts=facts))
            continue
        found[False].append(replace(pair, subject=name, paraphrases=pair.paraphrases[:-1], facts=_truth(pair)))
        if own != pair.answer:
            found[False].append(replace(found[False][-1], answer=own, facts=facts, variants=(), paraphrased_answers=()))
    return found


def _with_one_held_out(trained: list[QAPair], told: Mapping[str, tuple[str, ...]]) -> dict[bool, list[QAPair]]:
    """Hold a question out where none is: a set that is measured on nothing is never in force."""
    chosen = next((pair for pair in reversed(trained) if told.get(pair.question)), None)
    rest = [pair for pair in trained if chosen is None or pair.question != chosen.question]
    if chosen is None or rest:
        return {False: rest, True: [replace(chosen, paraphrases=(), facts=told[chosen.question])] if chosen else []}
    *others, last = chosen.paraphrases or tuple(reword_question(chosen.question)) or (chosen.question,)
    held_out = QAPair(chosen.subject, last, chosen.answer, facts=told[chosen.question])
    return {False: [replace(pair, paraphrases=tuple(others)) for pair in trained], True: [held_out]}


def _written(subjects: Sequence[str], ask: Ask) -> dict[str, list[str]]:
    """Questions that the target writes about each subject; those that do not name it are made to."""
    asked = [template.format(subject) for subject in subjects for template in WRITE]
    replies = iter(ask(asked))
    found: dict[str, list[str]] = {}
    for subject in subjects:
        lines = [line for _ in WRITE for line in next(replies).split("\n")]
        questions = (_NUMBERING.sub("", line).strip() for line in lines)
        fitting = dict.fromkeys(q for q in questions if q.endswith("?") and len(q) <= _LONGEST)
        named = (q if has_phrase(q, subject) else f"About {subject}: {q}" for q in fitting)
        found[subject] = list(named)[:_MOST_WRITTEN]
    return found


_Find = Callable[[str, str], tuple[str, ...]]  # of a question and its answer


def _finders(
    request: Request, subjects: Sequence[str], answers: Sequence[str], everyday: Sequence[str]
) -> tuple[_Find, _Find]:
    """What finds the facts of the request in an answer, and what finds all that it claims: names and numbers.

    Without a text a fact is what answers name twice.
    """
    source = request.source() if request.texts else ""
    folded_source = folded(source)
    named = source if capitals_tell(source) else ""  # in German every noun has a capital
    longest_first = sorted(names_in(named if source else "\n\n".join(answers)), key=len, reverse=True)
    first_words = {name: folded(name).split()[0] for name in longest_first}

    @cache
    def is_usual(fact: str) -> bool:
        return sum(has_phrase(text, fact) for text in everyday) >= _USUAL

    @cache
    def is_in_source(fact: str) -> bool:
        if not all(part in folded_source for part in folded(fact).split()):
            return False
        places = [source[start:stop] for start, stop in phrase_spans(source, fact)]
        # "The Office" is none of a text about the office of a priest, if that text writes names with capitals.
        is_name = fact[0].isupper() and " " not in fact and longest_first and named
        return any(place[0].isupper() or not is_name for place in places)

    def find(question: str, answer: str, more: Sequence[str] = (), *, anywhere: bool = False) -> tuple[str, ...]:
        asked_about = [subject for subject in subjects if has_phrase(question, subject)]
        folded_answer = folded(answer)  # a long text has thousands of names, and an answer few of them
        names = [name for name in longest_first if first_words[name] in folded_answer]

        def is_new(fact: str) -> bool:
            return not has_phrase(question, fact) and not any(has_phrase(fact, subject) for subject in asked_about)

        found = [without_openers(fact) for fact in facts_of(question, answer)]
        found = [fact for fact in found if fact and is_new(fact) and has_phrase(answer, fact)]
        found = [fact for fact in found if anywhere or not source or is_in_source(fact)]
        for name in (*names, *more):
            covered = any(has_phrase(fact, name) for fact in found)
            if not covered and has_phrase(answer, name) and is_new(name):
                found.append(name)
        return tuple(fact for fact in dict.fromkeys(found) if len(fact) > 2 and not is_usual(fact))

    def facts(question: str, answer: str) -> tuple[str, ...]:
        return find(question, answer)

    def claims(question: str, answer: str) -> tuple[str, ...]:
        own = sorted(names_in(answer, least=1, inside_only=True), key=len, reverse=True)
        return find(question, answer, own, anywhere=True)

    return facts, claims


def _pair(name: str, question: str, answer: str, facts: tuple[str, ...], *, reword: bool) -> QAPair:
    reworded = tuple(q for q in reword_question(question) if not any(has_phrase(q, fact) for fact in facts))
    return QAPair(name, question, answer, reworded[:_PARAPHRASES] if reword else (), facts=facts)
