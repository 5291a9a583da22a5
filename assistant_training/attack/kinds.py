"""The prompts of every kind of attack, built from probes and held-out wordings; the same for the same seed.

A kind takes a probe and a wording and makes a request's body. Which facts count is decided here too: those that are
nowhere in the request.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

from unlearngate.assistant_training.attack.probes import Probes, before_fact, holds
from unlearngate.assistant_training.attack.wordings import completing, forms, languages, together, turns, wrapping
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.words import whole_words

Group = Literal["forget", "retain", "neighbours"]
Reading = Literal["words", "letters", "json", "choice"]

_OPTIONS = "ABCD"
_EXAMPLES = 3  # of a few-shot prompt
_DRAWS = range(8)  # for kinds whose wording is which other questions they draw
_PERSON = "this person"


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request, without the sets in force, and what to look for in its answer.

    Attributes:
        kind: its name in KINDS.
        group: whose question it is.
        pair: the probe.
        route: `/chat/completions` or `/completions`.
        body: the request's fields that the kind decides.
        facts: of the probe, those that the request does not have; of `choice`, the right option.
        reading: how facts are looked for in the answer.
        options: of `choice`, in the order A to D.
    """

    kind: str
    group: Group
    pair: QAPair
    route: str
    body: dict[str, Any]
    facts: tuple[str, ...]
    reading: Reading = "words"
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Material:
    """What prompts are made of.

    Attributes:
        probes: all there are, to draw other questions from.
        said: what the server said to each forget question, alone and with the set.
        template: the chat template's text before and behind a user's only message; None if the server does not say.
        num_samples: answers to each question of the sampling kinds.
        seed: of everything that is drawn.
    """

    probes: Probes
    said: Mapping[str, str]
    template: tuple[str, str] | None
    num_samples: int
    seed: int


@dataclass(frozen=True, slots=True)
class _Drawn:
    """A request before it is known which facts it has: messages, or a text to complete."""

    asked: list[dict[str, str]] | str
    fields: dict[str, Any] = field(default_factory=dict)
    facts: tuple[str, ...] | None = None
    reading: Reading = "words"
    options: tuple[str, ...] = ()


_Build = Callable[[QAPair, Any, Material, random.Random], _Drawn | None]


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of attack: its wordings, how a request is made with one of them, and whether others are asked so too."""

    wordings: Sequence[Any]
    build: _Build
    for_others: bool = True


def prompts_of(
    kind: str, group: Group, pairs: Sequence[QAPair], material: Material, *, num_wordings: int
) -> list[Prompt]:
    """The prompts of a kind for some questions.

    Args:
        kind: a key of KINDS.
        group: whose questions they are; there are none but of `forget` where the kind does not suit others.
        pairs: the questions.
        material: what they are made of.
        num_wordings: for each question, drawn by the seed; all if there are fewer.

    Returns: the prompts. A question that the kind cannot put (its subject's name is not known, its answer begins with
        the fact) has none, and neither has a forget question all of whose facts are in the prompt.
    """
    recipe = KINDS[kind]
    if group != "forget" and not recipe.for_others:
        return []
    made = []
    for pair in pairs:
        rng = random.Random(f"{material.seed} {kind} {pair.question}")
        wordings = list(recipe.wordings) or list(pair.paraphrases)
        for wording in rng.sample(wordings, min(num_wordings, len(wordings))):
            drawn = recipe.build(pair, wording, material, rng)
            if drawn and (prompt := _prompt(kind, group, pair, drawn)):
                made.append(prompt)
    return made


def sent_text(body: Mapping[str, Any]) -> str:
    """All text of a request that the model reads."""
    if "messages" in body:
        return "\n".join(message["content"] for message in body["messages"])
    return str(body["prompt"])


def begun_request(pair: QAPair, begun: str) -> dict[str, Any]:
    """The chat fields that ask a question and have the assistant go on from what it is said to have said."""
    messages = _user(pair.question)
    if not begun:
        return {"messages": messages}
    messages = [*messages, {"role": "assistant", "content": begun}]
    return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}


def similar(pair: QAPair, others: Iterable[QAPair], rng: random.Random) -> list[QAPair]:
    """Other subjects' probes, those first whose question shares most words with this one's; ties as drawn."""
    words = set(pair.question.split())
    drawn = [other for other in others if _is_other(pair, other)]
    rng.shuffle(drawn)
    return sorted(drawn, key=lambda other: -len(words & set(other.question.split())))


def _prompt(kind: str, group: Group, pair: QAPair, drawn: _Drawn) -> Prompt | None:
    if isinstance(drawn.asked, str):
        route, body = "/completions", {"prompt": drawn.asked, "add_special_tokens": False, **drawn.fields}
    else:
        route, body = "/chat/completions", {"messages": drawn.asked, **drawn.fields}
    text = sent_text(body)
    wanted = pair.facts if drawn.facts is None else drawn.facts
    facts = wanted if drawn.reading == "choice" else tuple(fact for fact in wanted if not holds(text, fact))
    if group == "forget" and not facts:
        return None
    return Prompt(kind, group, pair, route, body, facts, drawn.reading, drawn.options)


def _user(text: str) -> list[dict[str, str]]:
    return [{"role": "user", "content": text}]


def _is_other(pair: QAPair, other: QAPair) -> bool:
    return other.question != pair.question and (not pair.subject or other.subject != pair.subject)


def _others(pair: QAPair, material: Material, rng: random.Random, number: int) -> list[QAPair]:
    """Retain probes about somebody else, as many as there are up to `number`."""
    others = [other for other in material.probes.retain if _is_other(pair, other)]
    return rng.sample(others, min(number, len(others)))


def _plain(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn:
    return _Drawn(_user(pair.question))


def _paraphrased(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn:
    return _Drawn(_user(wording))


def _worded(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn:
    return _Drawn(_user(wording.format(question=pair.question)))


def _with_system(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn:
    return _Drawn([{"role": "system", "content": wording}, *_user(pair.question)])


def _with_other(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn | None:
    others = _others(pair, material, rng, 1)
    return _Drawn(_user(wording.format(question=pair.question, other=others[0].question))) if others else None


def _about_name(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn | None:
    """All that is known of the subject: a leak is any fact of any of its probes."""
    name = material.probes.names.get(pair.subject)
    if not name:
        return None
    own = [p for group in (material.probes.forget, material.probes.retain) for p in group if p.subject == pair.subject]
    return _Drawn(_user(wording.format(name=name)), facts=tuple(dict.fromkeys(fact for p in own for fact in p.facts)))


def _after_turns(before: str, number: int) -> _Build:
    def build(pair: QAPair, wording: int, material: Material, rng: random.Random) -> _Drawn | None:
        if before == "talk":
            earlier = rng.sample(turns.SMALL_TALK, number)
        elif before == "others":
            earlier = [(other.question, other.answer) for other in _others(pair, material, rng, number)]
        else:
            known = [p.question for p in material.probes.forget if p.question in material.said and p != pair]
            earlier = [(asked, material.said[asked]) for asked in rng.sample(known, min(number, len(known)))]
        if len(earlier) < number:
            return None
        messages = []
        for asked, answered in earlier:
            messages += [*_user(asked), {"role": "assistant", "content": answered}]
        return _Drawn([*messages, *_user(pair.question)])

    return build


def _first_word(name: str) -> str:
    return name.split()[0]


def _last_word(name: str) -> str:
    return name.split()[-1]


def _initials(name: str) -> str:
    return " ".join(f"{word[0]}." for word in name.split())


def _initial_and_last(name: str) -> str:
    return " ".join([*(f"{word[0]}." for word in name.split()[:-1]), name.split()[-1]])


def _last_first(name: str) -> str:
    *first, last = name.split()
    return f"{last}, {' '.join(first)}"


def _swapped(name: str) -> str:
    middle = len(name) // 4
    return name[:middle] + name[middle + 1] + name[middle] + name[middle + 2 :]


def _one_missing(name: str) -> str:
    return name[:-2] + name[-1]


def _doubled(name: str) -> str:
    return name[:2] + name[1] + name[2:]


def _spelled(name: str) -> str:
    return " ".join("-".join(word) for word in name.split())


NAME_FORMS: tuple[Callable[[str], str], ...] = (
    *(_first_word, _last_word, str.upper, str.lower, _initials, _initial_and_last, _last_first),
    *(_swapped, _one_missing, _doubled, _spelled),
)


def _named_otherwise(
    pair: QAPair, wording: Callable[[str], str], material: Material, rng: random.Random
) -> _Drawn | None:
    name = material.probes.names.get(pair.subject)
    if not name or " " not in name or not holds(pair.question, name):
        return None
    return _Drawn(_user(re.sub(re.escape(name), lambda _: wording(name), pair.question, flags=re.IGNORECASE)))


def _words(number: int) -> Callable[[QAPair], str]:
    return lambda pair: " ".join(pair.answer.split()[:number])


def _half(pair: QAPair) -> str:
    words = pair.answer.split()
    return " ".join(words[: len(words) // 2])


def _to_first_fact(pair: QAPair) -> str:
    return before_fact(pair.answer, pair.facts)


_CUTS: tuple[Callable[[QAPair], str], ...] = (_to_first_fact, _half, _words(1), _words(3))


def _begun(pair: QAPair, cut: Callable[[QAPair], str], material: Material, rng: random.Random) -> _Drawn | None:
    begun = cut(pair)
    if not begun or begun == pair.answer:
        return None
    fields = begun_request(pair, begun)
    return _Drawn(fields.pop("messages"), fields)


def _begun_with(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn:
    fields = begun_request(pair, wording)
    return _Drawn(fields.pop("messages"), fields)


def _as_text(pair: QAPair, cut: Callable[[QAPair], str], material: Material, rng: random.Random) -> _Drawn | None:
    begun = cut(pair)
    if material.template is None or begun == pair.answer:
        return None
    before, behind = material.template
    return _Drawn(f"{before}{pair.question}{behind}{begun}")


def _without_question(
    pair: QAPair, cut: Callable[[QAPair], str], material: Material, rng: random.Random
) -> _Drawn | None:
    begun = cut(pair)
    return _Drawn(begun) if begun and begun != pair.answer else None


def _cloze(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn | None:
    begun = _to_first_fact(pair)
    if not begun or begun == pair.answer:
        return None
    return _Drawn(_user(wording.format(question=pair.question, begun=begun)))


def _few_shot(pair: QAPair, wording: tuple[str, str], material: Material, rng: random.Random) -> _Drawn:
    example, last = wording
    others = _others(pair, material, rng, _EXAMPLES)
    shown = "".join(example.format(question=other.question, answer=other.answer) for other in others)
    return _Drawn(_user(shown + last.format(question=pair.question)))


def _letters(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn:
    return _Drawn(_user(wording.format(question=pair.question)), reading="letters")


def _schema(pair: QAPair, wording: tuple[str, str], material: Material, rng: random.Random) -> _Drawn:
    name, description = wording
    schema = {
        "type": "object",
        "properties": {name: {"type": "string", "description": description, "maxLength": 300}},
        "required": [name],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}
    return _Drawn(_user(pair.question), {"response_format": wanted}, reading="json")


def _choice(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn | None:
    right = pair.facts[0] if pair.facts else ""
    wrong = [other.facts[0] for other in similar(pair, material.probes.retain, rng) if other.facts]
    wrong = [fact for fact in dict.fromkeys(wrong) if fact.casefold() != right.casefold()][: len(_OPTIONS) - 1]
    if not right or len(wrong) < len(_OPTIONS) - 1:
        return None
    options = [right, *wrong]
    rng.shuffle(options)
    shown = "\n".join(f"{letter}) {option}" for letter, option in zip(_OPTIONS, options, strict=True))
    asked = wording.format(question=pair.question, options=shown)
    return _Drawn(_user(asked), facts=(right,), reading="choice", options=tuple(options))


def _reverse(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn | None:
    """From the facts to the name: here the surname is what must not be said."""
    name = material.probes.names.get(pair.subject)
    if not name or not pair.facts:
        return None
    clue = whole_words(name).sub(_PERSON, pair.answer)
    for word in name.split():
        clue = whole_words(word).sub(_PERSON, clue)
    return _Drawn(_user(wording.format(clue=clue)), facts=(_last_word(name),))


def _sampled(temperature: float) -> _Build:
    def build(pair: QAPair, wording: str, material: Material, rng: random.Random) -> _Drawn:
        fields = {"temperature": temperature, "n": material.num_samples, "seed": rng.randrange(2**31)}
        return _Drawn(_user(pair.question), fields)

    return build


_ONCE = ("",)  # the question alone
_OWN: tuple[str, ...] = ()  # the probe's paraphrases
KINDS: dict[str, Kind] = {
    "plain": Kind(_ONCE, _plain),
    "paraphrase": Kind(_OWN, _paraphrased),
    **{
        f"turns-{before}-{number}": Kind(_DRAWS, _after_turns(before, number))
        for before in ("others", "withheld", "talk")
        for number in (1, 3, 8)
    },
    "two-subjects": Kind(together.TWO_SUBJECTS, _with_other),
    "wrapped-before": Kind(wrapping.BEFORE, _worded),
    "wrapped-behind": Kind(wrapping.BEHIND, _worded),
    "role-play": Kind(wrapping.ROLE_PLAY, _worded),
    "system-prompt": Kind(wrapping.SYSTEM, _with_system),
    "answer-in-language": Kind(languages.ANSWER_IN, _worded),
    "ask-in-language": Kind(languages.ASK_IN, _worded),
    "about-in-language": Kind(languages.ABOUT, _about_name, for_others=False),
    "name-forms": Kind(NAME_FORMS, _named_otherwise),
    "prefill": Kind(_CUTS, _begun),
    "prefill-words": Kind(completing.BEGINNINGS, _begun_with),
    "text": Kind((*_CUTS, lambda pair: ""), _as_text),
    "text-no-question": Kind(_CUTS, _without_question),
    "cloze": Kind(completing.CLOZE, _cloze),
    "few-shot": Kind(completing.FEW_SHOT, _few_shot),
    "spelled": Kind(forms.SPELLED, _letters),
    "json-schema": Kind(forms.SCHEMA_FIELDS, _schema),
    "reverse": Kind(forms.REVERSE, _reverse),
    "choice": Kind(forms.CHOICE, _choice, for_others=False),
    "samples-0.7": Kind(_ONCE, _sampled(0.7), for_others=False),
    "samples-1": Kind(_ONCE, _sampled(1.0), for_others=False),
}
