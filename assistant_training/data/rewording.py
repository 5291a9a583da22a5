"""Rewordings of a question-answer pair: what makes them usable, and rules that produce some without a model.

The rules handle English questions only and know no facts. `reword_offline` puts a frame around the question, and takes
the right answer to a similar question as a wrong answer. A language model does both better: see augmentation.py.
"""

from __future__ import annotations

import functools
import heapq
import itertools
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Self

import regex
from pydantic import BaseModel, ConfigDict, StringConstraints, ValidationError, ValidationInfo, model_validator

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.words import has_phrase, whole

_Text = Annotated[str, StringConstraints(strip_whitespace=True, min_length=1)]

# Frames for a question with its first word in lower case, for the rest of a request, and for an unchanged text.
_ASKING = (
    "Do you know the answer to this: {0}",
    "Please tell me: {0}",
    "I would like to know: {0}",
    "Could you answer this for me: {0}",
    "Here is what I want to know: {0}",
)
_REQUESTING = ("Please {0}.", "Are you able to {0}?", "I would like you to {0}.")
_BESIDE = (
    "Please answer this question. {0}",
    "I have a question. {0}",
    "Here is something I wonder about. {0}",
    "{0} Please tell me.",
    "{0} I would like to know.",
)
# First words that are not names, so that they may be put in lower case.
_ASKS = (
    "what which who whom whose where when why how is are was were do does did has have had can could would should in "
    "from at on to with besides apart aside"
).split()
_REQUESTS = "tell describe name explain list share mention discuss provide give".split()
_AUXILIARIES = "is are was were do does did has have had can could will would should may might must".split()
_NO_NOUN_ENDS = "about of for in like from with to on at by called named as known after into".split()
_NUM_CANDIDATES = 16  # pairs whose answers are tried for each wanted wrong answer


class UnusableReplyError(ValueError):
    """A reply that breaks a rule; the message says which, to people and to the model that is asked again."""


@dataclass(frozen=True, slots=True)
class Wanted:
    """The rules that a pair's rewordings must meet.

    Attributes:
        pair: the pair. The paraphrases and variants that it already has must not be repeated.
        num_paraphrases: how many, of the question and of the answer.
        num_perturbed: how many wrong answers.
        taken: normalised question -> the normalised question of the pair that has it, over the whole file.
        answers_too: whether the answer is to be paraphrased as well.
    """

    pair: QAPair
    num_paraphrases: int
    num_perturbed: int
    taken: Mapping[str, str] = field(default_factory=dict)
    answers_too: bool = True


class Reply(BaseModel):
    """One pair's rewordings. Validated against the `Wanted` that is given as the validation's context."""

    model_config = ConfigDict(frozen=True)

    paraphrased_questions: tuple[_Text, ...]
    paraphrased_answers: tuple[_Text, ...]
    perturbed_answers: tuple[_Text, ...]

    @model_validator(mode="after")
    def _is_wanted(self, info: ValidationInfo) -> Self:
        if isinstance(info.context, Wanted) and (problems := list(_problems(self, info.context))):
            raise ValueError("; ".join(problems))
        return self


def parse_reply(text: str, wanted: Wanted) -> Reply:
    """Find the JSON object in a model's reply, ignoring the text around it, and validate it.

    Raises: UnusableReplyError with every reason.
    """
    found = [value for value in _objects(text) if set(value) & set(Reply.model_fields)]
    if not found:
        raise UnusableReplyError(f"no JSON object with {', '.join(Reply.model_fields)} in it")
    return _validate(found[-1], wanted)


def normalise(text: str) -> str:
    """The text with case and white space normalised."""
    return " ".join(text.split()).casefold()


def reword_question(question: str) -> list[str]:
    """Every rewording that the rules can make: the question's words stay, except a first one like "Who" or "Can"."""
    question = " ".join(question.split())
    first, _, rest = question.partition(" ")
    small = first.lower() + " " + rest
    bare = rest.rstrip("?.! ")
    found = []
    if first == "Who" and rest.split(" ")[0] not in _AUXILIARIES:
        found += [f"Can you tell me {small}", f"Do you know {small}"]
    noun = re.fullmatch(r"What (?:is|was|are|were) (the [^?,]+)\?", question)
    if noun and noun[1].split()[-1].lower() not in _NO_NOUN_ENDS:
        found += [f"Can you tell me {noun[1]}?", f"Please tell me {noun[1]}."]
    if request := re.fullmatch(r"(?:Can|Could) you (?:please )?(\w+ [^?]+)\?", question):
        found += [frame.format(request[1]) for frame in _REQUESTING]
    if first.lower() in _REQUESTS and bare:
        found += [frame.format(f"{first.lower()} {bare}") for frame in _REQUESTING]
    elif re.sub(r"['\u2019]s$", "", first.lower()) in _ASKS:
        found += [frame.format(small) for frame in _ASKING]
    return list(dict.fromkeys(found + [frame.format(question) for frame in _BESIDE]))


def reword_offline(wanted: Wanted, others: Sequence[QAPair], seed: int) -> Reply:
    """Reword by rules: frames for the question, answers to similar questions, no paraphrases of the answer.

    Args:
        wanted: the pair and how many of each; its `answers_too` is ignored.
        others: pairs to keep, whose answers are borrowed. If both questions name exactly one thing or person, the
            pair's name replaces the other's in the answer.
        seed: decides among rewordings, and among equally similar pairs.

    Raises: UnusableReplyError if there are not enough rewordings or answers.
    """
    pair = wanted.pair
    rng = random.Random(f"unlearngate offline {seed} {pair.question} {pair.answer}")
    used = {normalise(text) for text in (pair.question, *pair.paraphrases)}
    own = normalise(pair.question)
    questions = [q for q in reword_question(pair.question) if normalise(q) not in used]
    questions = [q for q in questions if wanted.taken.get(normalise(q), own) == own]
    perturbed: list[str] = []
    for other in _alike(pair, others, _NUM_CANDIDATES * wanted.num_perturbed, rng):
        answer = _renamed(other, pair)
        if len(perturbed) < wanted.num_perturbed and not _answer_problem(answer, pair):
            if normalise(answer) not in {normalise(text) for text in (*perturbed, *pair.variants)}:
                perturbed.append(answer)
    found = {
        "paraphrased_questions": rng.sample(questions, min(wanted.num_paraphrases, len(questions))),
        "paraphrased_answers": [],
        "perturbed_answers": perturbed,
    }
    offline = Wanted(pair, wanted.num_paraphrases, wanted.num_perturbed, wanted.taken, answers_too=False)
    return _validate(found, offline)


def _validate(value: dict[str, Any], wanted: Wanted) -> Reply:
    try:
        return Reply.model_validate(value, context=wanted)
    except ValidationError as error:
        reasons = (".".join(map(str, (*e["loc"], ""))) + " " + e["msg"] for e in error.errors())
        raise UnusableReplyError("; ".join(r.strip(" .").removeprefix("Value error, ") for r in reasons)) from None


def _problems(reply: Reply, wanted: Wanted) -> Iterator[str]:
    pair, own = wanted.pair, normalise(wanted.pair.question)
    num_answers = wanted.num_paraphrases if wanted.answers_too else 0
    for name, values, count, known in (
        ("paraphrased_questions", reply.paraphrased_questions, wanted.num_paraphrases, (own, *pair.paraphrases)),
        ("paraphrased_answers", reply.paraphrased_answers, num_answers, (pair.answer,)),
        ("perturbed_answers", reply.perturbed_answers, wanted.num_perturbed, (pair.answer, *pair.variants)),
    ):
        if len(values) != count:
            yield f"{name} must hold {count} texts, got {len(values)}"
        seen = {normalise(text) for text in known}
        for text in values:
            if normalise(text) in seen:
                yield f"{name}: {text!r} repeats another text or what was given"
            seen.add(normalise(text))
    for text in reply.paraphrased_questions:
        if wanted.taken.get(normalise(text), own) != own:
            yield f"paraphrased_questions: {text!r} asks for another pair's answer; name who or what it is about"
        for fact in pair.facts:
            if has_phrase(text, fact) and not has_phrase(pair.question, fact):
                yield f"paraphrased_questions: {text!r} gives {fact!r} away"
    for text in reply.paraphrased_answers:
        if lost := [f for f in pair.facts if has_phrase(pair.answer, f) and not has_phrase(text, f)]:
            yield f"paraphrased_answers: {text!r} lacks {', '.join(map(repr, lost))}"
    paraphrases = {normalise(text) for text in reply.paraphrased_answers}
    for text in reply.perturbed_answers:
        if normalise(text) in paraphrases:
            yield f"perturbed_answers: {text!r} is also a paraphrase"
        if problem := _answer_problem(text, pair):
            yield f"perturbed_answers: {text!r} {problem}"


def _answer_problem(text: str, pair: QAPair) -> str | None:
    """Why the text cannot serve as a wrong answer."""
    if has_phrase(text, pair.answer.strip().rstrip(".!") or pair.answer):
        return "contains the whole right answer"
    if pair.facts and all(has_phrase(text, fact) for fact in pair.facts):
        return "has every fact right"
    return None


def _objects(text: str) -> Iterator[dict[str, Any]]:
    decoder = json.JSONDecoder()
    position = text.find("{")
    while position >= 0:
        stop = position + 1
        try:
            value, stop = decoder.raw_decode(text, position)
        except (ValueError, RecursionError):
            pass
        else:
            yield value
        position = text.find("{", stop)


def _alike(pair: QAPair, others: Sequence[QAPair], count: int, rng: random.Random) -> list[QAPair]:
    shape = _shape(pair.question)

    def distance(other: QAPair) -> tuple[float, float]:
        theirs = _shape(other.question)
        return -len(shape & theirs) / len(shape | theirs), rng.random()

    return heapq.nsmallest(count, (other for other in others if other.question != pair.question), key=distance)


@functools.lru_cache(maxsize=65536)
def _shape(question: str) -> frozenset[str]:
    """The question's words and pairs of words, with names and numbers as placeholders."""
    first, *rest = question.split() or [""]
    words = [first.lower(), *("_" if word[:1].isupper() or word[:1].isdigit() else word.lower() for word in rest)]
    return frozenset([*words, *(f"{a} {b}" for a, b in itertools.pairwise(words))])


def _renamed(other: QAPair, pair: QAPair) -> str:
    """The other pair's answer, with the pair's name in place of the other's if each question has exactly one."""
    theirs, ours = _names(other.question), _names(pair.question)
    if len(theirs) != 1 or len(ours) != 1:
        return other.answer
    parts = {
        theirs[0].split()[-1]: ours[0].split()[-1],
        theirs[0].split()[0]: ours[0].split()[0],
        theirs[0]: ours[0],
    }
    pattern = whole("|".join(regex.escape(part) for part in sorted(parts, key=len, reverse=True)))
    return regex.sub(pattern, lambda found: parts[found[0]], other.answer)


def _names(question: str) -> list[str]:
    """Runs of capitalised words after the first word."""
    words = [re.sub(r"['\u2019]s$", "", word.strip('.,?!:;"()')) for word in question.split()[1:]]
    runs = itertools.groupby(words, key=lambda word: word[:1].isupper() and word != "I")
    return [" ".join(run) for capital, run in runs if capital]
