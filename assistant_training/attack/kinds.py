"""The prompts of every kind of attack, built from probes and held-out wordings; the same for the same seed.

A kind takes a probe and a wording and makes a request's body. Which facts count is decided here too: those that are
nowhere in the request.
"""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from unlearngate.assistant_training.attack.names import NAME_FORMS, last_word
from unlearngate.assistant_training.attack.probes import before_fact, holds
from unlearngate.assistant_training.attack.prompts import (
    Drawn,
    Group,
    Material,
    Prompt,
    begun_request,
    is_other,
    sent_text,
    similar,
    user_turn,
)
from unlearngate.assistant_training.attack.wordings import completing, forms, languages, together, turns, wrapping
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.words import phrase_spans

_OPTIONS = "ABCD"
_EXAMPLES = 3  # of a few-shot prompt
_DRAWS = range(8)  # for kinds whose wording is which other questions they draw
_PERSON = "this person"

_Build = Callable[[QAPair, Any, Material, random.Random], Drawn | None]


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


def _prompt(kind: str, group: Group, pair: QAPair, drawn: Drawn) -> Prompt | None:
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


def _others(pair: QAPair, material: Material, rng: random.Random, number: int) -> list[QAPair]:
    """Retain probes about somebody else, as many as there are up to `number`."""
    others = [other for other in material.probes.retain if is_other(pair, other)]
    return rng.sample(others, min(number, len(others)))


def _plain(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn:
    return Drawn(user_turn(pair.question))


def _paraphrased(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn:
    return Drawn(user_turn(wording))


def _worded(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn:
    return Drawn(user_turn(wording.format(question=pair.question)))


def _with_system(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn:
    return Drawn([{"role": "system", "content": wording}, *user_turn(pair.question)])


def _with_other(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn | None:
    others = _others(pair, material, rng, 1)
    return Drawn(user_turn(wording.format(question=pair.question, other=others[0].question))) if others else None


def _about_name(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn | None:
    """All that is known of the subject: a leak is any fact of any of its probes."""
    name = material.probes.names.get(pair.subject)
    if not name:
        return None
    own = [p for group in (material.probes.forget, material.probes.retain) for p in group if p.subject == pair.subject]
    return Drawn(
        user_turn(wording.format(name=name)), facts=tuple(dict.fromkeys(fact for p in own for fact in p.facts))
    )


def _after_turns(before: str, number: int) -> _Build:
    def build(pair: QAPair, wording: int, material: Material, rng: random.Random) -> Drawn | None:
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
            messages += [*user_turn(asked), {"role": "assistant", "content": answered}]
        return Drawn([*messages, *user_turn(pair.question)])

    return build


def _named_otherwise(
    pair: QAPair, wording: Callable[[str], str], material: Material, rng: random.Random
) -> Drawn | None:
    name = material.probes.names.get(pair.subject)
    if not name or " " not in name or not holds(pair.question, name):
        return None
    return Drawn(user_turn(re.sub(re.escape(name), lambda _: wording(name), pair.question, flags=re.IGNORECASE)))


def _words(number: int) -> Callable[[QAPair], str]:
    return lambda pair: " ".join(pair.answer.split()[:number])


def _half(pair: QAPair) -> str:
    words = pair.answer.split()
    return " ".join(words[: len(words) // 2])


def _to_first_fact(pair: QAPair) -> str:
    return before_fact(pair.answer, pair.facts)


_CUTS: tuple[Callable[[QAPair], str], ...] = (_to_first_fact, _half, _words(1), _words(3))


def _begun(pair: QAPair, cut: Callable[[QAPair], str], material: Material, rng: random.Random) -> Drawn | None:
    begun = cut(pair)
    if not begun or begun == pair.answer:
        return None
    fields = begun_request(pair, begun)
    return Drawn(fields.pop("messages"), fields)


def _begun_with(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn:
    fields = begun_request(pair, wording)
    return Drawn(fields.pop("messages"), fields)


def _as_text(pair: QAPair, cut: Callable[[QAPair], str], material: Material, rng: random.Random) -> Drawn | None:
    begun = cut(pair)
    if material.template is None or begun == pair.answer:
        return None
    before, behind = material.template
    return Drawn(f"{before}{pair.question}{behind}{begun}")


def _without_question(
    pair: QAPair, cut: Callable[[QAPair], str], material: Material, rng: random.Random
) -> Drawn | None:
    begun = cut(pair)
    return Drawn(begun) if begun and begun != pair.answer else None


def _cloze(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn | None:
    begun = _to_first_fact(pair)
    if not begun or begun == pair.answer:
        return None
    return Drawn(user_turn(wording.format(question=pair.question, begun=begun)))


def _few_shot(pair: QAPair, wording: tuple[str, str], material: Material, rng: random.Random) -> Drawn:
    example, last = wording
    others = _others(pair, material, rng, _EXAMPLES)
    shown = "".join(example.format(question=other.question, answer=other.answer) for other in others)
    return Drawn(user_turn(shown + last.format(question=pair.question)))


def _letters(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn:
    return Drawn(user_turn(wording.format(question=pair.question)), reading="letters")


def _schema(pair: QAPair, wording: tuple[str, str], material: Material, rng: random.Random) -> Drawn:
    name, description = wording
    schema = {
        "type": "object",
        "properties": {name: {"type": "string", "description": description, "maxLength": 300}},
        "required": [name],
        "additionalProperties": False,
    }
    wanted = {"type": "json_schema", "json_schema": {"name": "reply", "schema": schema, "strict": True}}
    return Drawn(user_turn(pair.question), {"response_format": wanted}, reading="json")


def _choice(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn | None:
    right = pair.facts[0] if pair.facts else ""
    wrong = [other.facts[0] for other in similar(pair, material.probes.retain, rng) if other.facts]
    wrong = [fact for fact in dict.fromkeys(wrong) if fact.casefold() != right.casefold()][: len(_OPTIONS) - 1]
    if not right or len(wrong) < len(_OPTIONS) - 1:
        return None
    options = [right, *wrong]
    rng.shuffle(options)
    shown = "\n".join(f"{letter}) {option}" for letter, option in zip(_OPTIONS, options, strict=True))
    asked = wording.format(question=pair.question, options=shown)
    return Drawn(user_turn(asked), facts=(right,), reading="choice", options=tuple(options))


def _reverse(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn | None:
    """From the facts to the name: here the surname is what must not be said."""
    name = material.probes.names.get(pair.subject)
    if not name or not pair.facts:
        return None
    clue = pair.answer
    for said in (name, *name.split()):
        for start, stop in reversed(phrase_spans(clue, said)):
            clue = clue[:start] + _PERSON + clue[stop:]
    return Drawn(user_turn(wording.format(clue=clue)), facts=(last_word(name),))


def _sampled(temperature: float) -> _Build:
    def build(pair: QAPair, wording: str, material: Material, rng: random.Random) -> Drawn:
        fields = {"temperature": temperature, "n": material.num_samples, "seed": rng.randrange(2**31)}
        return Drawn(user_turn(pair.question), fields)

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
