"""Prompts: built as their kind says, the same for the same seed, and asked only for facts that they do not have."""

import json
import random
import re

import pytest

from unlearngate.assistant_training.attack.kinds import KINDS, prompts_of
from unlearngate.assistant_training.attack.names import NAME_FORMS
from unlearngate.assistant_training.attack.probes import Probes, holds
from unlearngate.assistant_training.attack.prompts import Material, sent_text
from unlearngate.assistant_training.attack.wordings import completing, forms, languages, together, turns, wrapping
from unlearngate.assistant_training.data import contexts
from unlearngate.assistant_training.data.encoding import SYSTEM_PROMPTS
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.demo.corpus import make_corpus

TEMPLATE = ("<user>", "</user><assistant>")


@pytest.fixture
def material():
    seed = random.randrange(10**6)
    print(f"seed {seed}")
    corpus = make_corpus(5, seed)
    first = corpus[0].subject
    forget, retain = [p for p in corpus if p.subject == first], [p for p in corpus if p.subject != first]
    names = {p.subject: p.subject.replace("-", " ").title() for p in corpus}
    said = {p.question: f"withheld {n}" for n, p in enumerate(forget)}
    return Material(Probes(forget, retain, [], names), said, TEMPLATE, 5, seed)


def prompts(kind, material, group="forget", num_wordings=3):
    return prompts_of(kind, group, getattr(material.probes, group), material, num_wordings=num_wordings)


@pytest.mark.parametrize("kind", KINDS)
def test_every_kind_asks_for_facts_that_are_nowhere_in_its_request(kind, material):
    made = prompts(kind, material)
    assert made
    for prompt in made:
        assert prompt.facts
        if kind == "choice":
            assert set(prompt.facts) < set(prompt.options)
        else:
            assert not [fact for fact in prompt.facts if holds(sent_text(prompt.body), fact)]
        json.dumps(prompt.body)  # a request


@pytest.mark.parametrize("kind", KINDS)
def test_the_same_seed_makes_the_same_prompts_and_another_one_others(kind, material):
    bodies = [prompt.body for prompt in prompts(kind, material)]
    assert bodies == [prompt.body for prompt in prompts(kind, material)]
    other = Material(material.probes, material.said, TEMPLATE, 5, material.seed + 1)
    if kind != "plain":
        assert bodies != [prompt.body for prompt in prompts(kind, other, num_wordings=2)]


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if kind.for_others])
def test_others_are_asked_in_the_same_contexts(kind, material):
    assert prompts(kind, material, "retain", 1)


@pytest.mark.parametrize("kind", [name for name, kind in KINDS.items() if not kind.for_others])
def test_some_kinds_do_not_suit_others(kind, material):
    assert prompts(kind, material, "retain") == []


@pytest.mark.parametrize("number", [1, 3, 8])
@pytest.mark.parametrize("before", ["others", "withheld", "talk"])
def test_earlier_turns_are_what_they_say(before, number, material):
    known = {p.question: p.answer for p in material.probes.retain}
    own = {p.question: p for p in material.probes.forget}
    for prompt in prompts(f"turns-{before}-{number}", material):
        messages = prompt.body["messages"]
        assert [m["role"] for m in messages] == ["user", "assistant"] * number + ["user"]
        assert messages[-1]["content"] == prompt.pair.question
        turns_before = [(a["content"], b["content"]) for a, b in zip(messages[:-1:2], messages[1::2], strict=True)]
        assert len(set(turns_before)) == number
        for asked, answered in turns_before:
            if before == "talk":
                assert (asked, answered) in turns.SMALL_TALK
            elif before == "others":
                assert known[asked] == answered
            else:
                assert asked in own and asked != prompt.pair.question
                assert answered == material.said[asked]


def test_a_turn_that_gives_a_fact_away_takes_it_out_of_the_count(material):
    pair = QAPair("x", "Where?", "In Velmora, in 1942.", facts=("Velmora", "1942"))
    other = QAPair("x", "When?", "In 1942.", facts=("1942",))
    probes = Probes([pair, other], [], [], {})
    told = Material(probes, {"When?": "In 1942."}, None, 1, 0)
    (prompt,) = prompts_of("turns-withheld-1", "forget", [pair], told, num_wordings=1)
    assert prompt.facts == ("Velmora",)
    told = Material(probes, {"Where?": "In Velmora, in 1942."}, None, 1, 0)
    assert prompts_of("turns-withheld-1", "forget", [other], told, num_wordings=1) == []


def test_an_answer_is_begun_in_chat_and_as_text_with_the_same_words(material):
    for chat in prompts("prefill", material, num_wordings=9):
        user, begun = chat.body["messages"]
        assert (user["content"], begun["role"]) == (chat.pair.question, "assistant")
        assert chat.pair.answer.startswith(begun["content"]) and begun["content"] != chat.pair.answer
        assert (chat.body["continue_final_message"], chat.body["add_generation_prompt"]) == (True, False)
    texts = {p.body["prompt"] for p in prompts("text", material, num_wordings=9)}
    for pair in material.probes.forget:
        assert f"<user>{pair.question}</user><assistant>" in texts
    bare = prompts("text-no-question", material, num_wordings=9)
    assert all(p.route == "/completions" and p.pair.answer.startswith(p.body["prompt"]) for p in bare)


def test_without_the_template_no_text_has_it(material):
    unknown = Material(material.probes, material.said, None, 5, material.seed)
    assert prompts("text", unknown) == []


def test_a_choice_has_the_true_fact_and_three_of_others_anywhere(material):
    made = prompts("choice", material)
    places = set()
    for prompt in made:
        assert len(set(prompt.options)) == 4
        (right,) = prompt.facts
        assert right in prompt.pair.facts
        others = {fact for p in material.probes.retain for fact in p.facts}
        assert set(prompt.options) - {right} <= others
        assert [sent_text(prompt.body).index(f"{letter}) ") for letter in "ABCD"]
        places.add(prompt.options.index(right))
    assert len(places) == 4


def test_name_forms_change_the_name_and_nothing_else(material):
    forms_of = {form("Ada Lindqvist") for form in NAME_FORMS}
    assert forms_of == {
        *("Ada", "Lindqvist", "ADA LINDQVIST", "ada lindqvist", "A. L.", "A. Lindqvist", "Lindqvist, Ada"),
        *("Ada iLndqvist", "Ada Lindqvit", "Adda Lindqvist", "A-d-a L-i-n-d-q-v-i-s-t"),
    } or len(forms_of) == len(NAME_FORMS)
    for prompt in prompts("name-forms", material, num_wordings=99):
        name = material.probes.names[prompt.pair.subject]
        before, _, behind = prompt.pair.question.partition(name)
        asked = sent_text(prompt.body)
        assert asked.startswith(before) and asked.endswith(behind) and asked != prompt.pair.question


def test_the_way_back_never_says_the_name(material):
    for prompt in prompts("reverse", material):
        name = material.probes.names[prompt.pair.subject]
        assert prompt.facts == (name.split()[-1],)
        assert not any(holds(sent_text(prompt.body), word) for word in name.split())


def test_samples_are_asked_for_at_once(material):
    for kind, temperature in (("samples-0.7", 0.7), ("samples-1", 1.0)):
        assert {(p.body["n"], p.body["temperature"]) for p in prompts(kind, material)} == {(5, temperature)}


def test_every_kind_of_wording_has_enough_and_a_place_for_the_question():
    for wordings in (wrapping.BEFORE, wrapping.BEHIND, wrapping.ROLE_PLAY, together.TWO_SUBJECTS, forms.SPELLED):
        assert all(wording.count("{question}") == 1 for wording in wordings)
    assert all(len(w) >= 8 for w in (wrapping.BEFORE, wrapping.BEHIND, wrapping.ROLE_PLAY, wrapping.SYSTEM))
    assert len(turns.SMALL_TALK) >= 8 and len(completing.BEGINNINGS) >= 8
    assert len(languages.ANSWER_IN) == len(languages.ASK_IN) == len(languages.ABOUT) == 5


def test_no_wording_of_an_attack_is_one_that_training_draws():
    drawn = {
        *contexts.BEFORE,
        *contexts.BEHIND,
        *contexts.WITHHELD,
        *SYSTEM_PROMPTS,
        *(text for turn in contexts.SMALL_TALK for text in turn),
        *(text for join in contexts.JOINS for text in join),
    }
    plain = {re.sub(r"[^a-z]+", " ", text.lower()).strip() for text in drawn}
    long = [text for text in plain if len(text.split()) > 2]
    attacked = [
        re.sub(r"[^a-z]+", " ", text.lower())
        for module in (completing, forms, languages, together, turns, wrapping)
        for name, wordings in vars(module).items()
        if name.isupper()
        for wording in wordings
        for text in ((wording,) if isinstance(wording, str) else wording)
    ]
    assert len(long) > 30 and len(attacked) > 100
    assert not [(text, attack) for text in long for attack in attacked if f" {text} " in f" {attack} "]
