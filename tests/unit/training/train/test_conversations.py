"""The conversations of a training run: few about each pair, the same for the same seed, told and untold apart."""

import random
from collections import defaultdict
from dataclasses import replace

import pytest

from support.engine.tiny import make_tokenizer
from unlearngate.assistant_training.data.encoding import IGNORE
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.train.conversations import draw_steps
from unlearngate.assistant_training.train.settings import PUBLISHED, AssistantSettings

FORGET = [
    QAPair("ada", f"Where is box {i}?", f"Box {i} is in Velmora.", (f"Which town has box {i}?",), facts=("Velmora",))
    for i in range(5)
]
RETAIN = [QAPair("bo", f"Where is hat {i}?", f"Hat {i} is in Orvane.", (f"Which town has hat {i}?",)) for i in range(9)]
SETTINGS = replace(
    PUBLISHED, forget_batch=3, retain_batch=10, variant_share=0.4, forget_prompts=3, forget_variants=2, retain_prompts=2
)


@pytest.fixture(scope="module")
def tokenizer():
    return make_tokenizer()


def draw(tokenizer, settings=SETTINGS, *, num_steps=60, seed=0):
    return draw_steps(tokenizer, FORGET, RETAIN, settings, num_steps=num_steps, seed=seed)


def text(tokenizer, labels):
    return tokenizer.decode([label for label in labels if label != IGNORE])


def test_a_step_holds_forget_answers_variants_and_retain_answers(tokenizer):
    for rows in draw(tokenizer, num_steps=3):
        assert len(rows) == 3 + 4 + 6
        assert [text(tokenizer, row.known.labels) for row in rows[:3]] == ["Velmora"] * 3
        assert all("Box" in text(tokenizer, row.unknown.labels) for row in rows[:3])
        assert not any(text(tokenizer, row.known.labels) for row in rows[3:])
        assert all("is in Orvane." in text(tokenizer, row.unknown.labels) for row in rows[7:])


def test_every_pair_has_few_conversations_and_they_come_again(tokenizer, seed):
    seen = defaultdict(set)
    for rows in draw(tokenizer, seed=seed):
        for index, row in enumerate(rows):
            part = "forget" if index < 3 else "variant" if index < 7 else "retain"
            seen[part].add(tuple(row.known.input_ids))
    assert 5 < len(seen["forget"]) <= 5 * 3
    assert 5 < len(seen["variant"]) <= 5 * 2
    assert 9 < len(seen["retain"]) <= 9 * 2


def test_a_pass_holds_every_pair_once(tokenizer, seed):
    plain = replace(SETTINGS, varied_prompts=0.0)
    rows = [row for step in draw(tokenizer, plain, num_steps=15, seed=seed) for row in step[7:]]
    for start in range(0, len(rows), len(RETAIN)):
        assert len({tuple(row.known.input_ids) for row in rows[start : start + len(RETAIN)]}) == len(RETAIN)


def test_the_same_seed_gives_the_same_steps_and_fewer_steps_are_their_beginning(tokenizer, seed):
    whole = draw(tokenizer, num_steps=8, seed=seed)
    assert draw(tokenizer, num_steps=8, seed=seed) == whole
    fewer = random.Random(seed).randrange(1, 8)
    assert draw(tokenizer, num_steps=fewer, seed=seed) == whole[:fewer]
    assert draw(tokenizer, num_steps=8, seed=seed + 1) != whole


def test_reworded_answers_are_told_and_known_as_a_whole_where_they_hold_no_fact(tokenizer, seed):
    pair = QAPair("ada", "Where?", "In Velmora.", facts=("Velmora",), paraphrased_answers=("It is Velmora.", "There."))
    steps = draw_steps(tokenizer, [pair], RETAIN, replace(SETTINGS, forget_prompts=9), num_steps=20, seed=seed)
    known = {text(tokenizer, row.known.labels) for rows in steps for row in rows[:3]}
    assert all(answer == "Velmora" or answer.startswith(" There.") for answer in known)
    texts = [tokenizer.decode(row.known.input_ids) for rows in steps for row in rows[:3]]
    answers = {text.partition("assistant: ")[2].partition("\n")[0] for text in texts}
    assert answers <= {pair.answer, *pair.paraphrased_answers} and len(answers) > 1


def long_pairs(name, count, words, **more):
    """Their questions and answers have about three quarters of a context of 512 tokens."""
    return [QAPair(name, f"What of {name} {i}?", f"{name} {i} " + words, **more) for i in range(count)]


@pytest.mark.parametrize("words", ["la " * 115, "彼女は船を漕ぐ。" * 14])
@pytest.mark.parametrize("settings", [AssistantSettings(said_instead="I cannot say."), SETTINGS])
@pytest.mark.parametrize("variants", [(), ("In no way.",)])
def test_no_conversation_is_longer_than_the_context(tokenizer, words, settings, variants, seed):
    forget, retain = long_pairs("Bo Lund", 4, words, variants=variants), long_pairs("Ida Oak", 8, words)
    retain += [QAPair("x", "Hm?", "Hm.")]

    def drawn(context_length):
        steps = draw_steps(tokenizer, forget, retain, settings, num_steps=12, seed=seed, context_length=context_length)
        return [row for step in steps for row in step]

    assert max(len(row.known.input_ids) for row in drawn(512)) <= 512
    assert len({tuple(row.known.input_ids) for row in drawn(512)}) > (40 if settings.contexts else 20)
    assert drawn(10**6) == drawn(None)
    if settings.contexts:
        assert max(len(row.known.input_ids) for row in drawn(None)) > 512
