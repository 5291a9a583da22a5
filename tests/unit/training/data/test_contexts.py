"""Contexts: drawn alike for forget and retain pairs, by seed, and in wordings of training or of its check alone."""

import random
from collections import Counter

import pytest

from support.engine.tiny import make_tokenizer
from unlearngate.assistant_training.data import contexts
from unlearngate.assistant_training.data.contexts import Shares, in_context, questions_of, respell
from unlearngate.assistant_training.data.encoding import IGNORE, encode, encode_prompt
from unlearngate.assistant_training.data.pairs import QAPair

PAIR = QAPair(
    "ada-lund", "Who taught Ada Lund?", "Old Pell did.", ("Who was her tutor?", "By whom was Ada Lund taught?")
)
OTHERS = [QAPair("bo", f"Where is hat {i}?", f"Hat {i} is in Orvane.", (f"Which town has hat {i}?",)) for i in range(9)]


def drawn(seed, count=400, **more):
    rng = random.Random(seed)
    given = {"neighbours": OTHERS, "forgotten": [PAIR], "forgets": True} | more
    return [in_context(PAIR, PAIR.answer, rng, **given) for _ in range(count)]


def test_every_kind_of_context_is_drawn_and_the_answer_is_always_in_what_is_said(seed):
    asked = drawn(seed)
    assert all(PAIR.answer in one.answer for one in asked)
    assert {len(one.earlier) for one in asked} == {0, 1, 2, 3, 5}
    assert Counter(one.raw for one in asked)[True] > 5
    assert any(one.system for one in asked)
    assert any("hat" in one.question and one.answer == PAIR.answer for one in asked)
    assert any("Orvane" in one.answer for one in asked)
    assert any(one.question.startswith(contexts.BEFORE) for one in asked)
    assert asked == drawn(seed)


def test_a_retain_pair_is_answered_whole_where_two_are_asked(seed):
    for one in drawn(seed, forgets=False):
        assert ("hat" in one.question) == ("Orvane" in one.answer)


def test_without_contexts_only_the_wording_is_drawn(seed):
    plain = {
        in_context(PAIR, "x", random.Random(seed + i), neighbours=OTHERS, forgets=True, shares=Shares(plain=1.0))
        for i in range(20)
    }
    assert {one.question for one in plain} <= {PAIR.question, PAIR.paraphrases[0]}
    assert not any(one.earlier or one.system or one.raw for one in plain)


def test_held_out_wordings_are_never_drawn_in_training(seed):
    training, held_out = drawn(seed, 2000), drawn(seed, 2000, held_out=True)
    for wordings, of in (
        (contexts.BEFORE, lambda one: one.question),
        (contexts.BEHIND, lambda one: one.question),
        ([asked for asked, _ in contexts.SMALL_TALK], lambda one: " | ".join(asked for asked, _ in one.earlier)),
    ):
        kept = wordings[3::4]
        assert not any(wording in of(one) for wording in kept for one in training)
        assert all(any(wording in of(one) for one in held_out) for wording in kept)
    assert questions_of(PAIR, held_out=True) == (PAIR.paraphrases[-1],)
    assert PAIR.paraphrases[-1] not in questions_of(PAIR, held_out=False)
    assert questions_of(OTHERS[0], held_out=True) == questions_of(OTHERS[0], held_out=False)


@pytest.mark.parametrize("question", ["Who taught Ada Lund?", "Does Ada Maria Lund's dog bark?", "Is Ada Lund tall?"])
def test_a_name_is_written_otherwise_and_the_rest_stays(question, seed):
    rng = random.Random(seed)
    for _ in range(30):
        said = respell(question, rng)
        assert said.split()[0] == question.split()[0]
        assert said != question


def test_a_question_without_a_name_is_written_carelessly(seed):
    assert respell("Which town has it?", random.Random(seed)).lower().startswith("which town has it")


def test_turns_and_raw_text_come_before_the_answer_and_are_not_labelled():
    tokenizer = make_tokenizer()
    for one in drawn(3, 60):
        row = encode(tokenizer, one.question, one.answer, one.system, one.earlier, raw=one.raw)
        labelled = [label for label in row.labels if label != IGNORE]
        assert row.input_ids[-len(labelled) :] == labelled
        assert one.answer in tokenizer.decode(labelled)
        prompt = row.input_ids[: -len(labelled)]
        if one.raw:
            assert tokenizer.decode(prompt) == f"{one.question}\n"
        else:
            assert prompt == encode_prompt(tokenizer, one.question, one.system, one.earlier)
            assert all(said in tokenizer.decode(prompt) for turn in one.earlier for said in turn)
