"""Answers that are longer than a context, or than what is decoded of them."""

import random
from dataclasses import replace

import pytest

from support.engine.tiny import make_tokenizer
from unlearngate.assistant_training.data.encoding import encode
from unlearngate.assistant_training.data.lengths import (
    longest_turns,
    num_tokens,
    refuse_longer_than_context,
    warning_of_cut,
)
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.errors import DataError


def test_the_longest_wordings_count():
    pair = QAPair("s", "q", "a", ("qq",), ("aaaa",), ("a" * 9,), ("aaa",))
    assert longest_turns(make_tokenizer(), [pair, replace(pair, variants=())]) == [("qq", "aaaa"), ("qq", "aaa")]
    assert longest_turns(make_tokenizer(), []) == []


@pytest.mark.parametrize("field", ["variants", "paraphrased_answers", "paraphrases"])
def test_a_wording_is_as_long_as_its_tokens_not_as_its_characters(field):
    many, few = "a " * 110, "彼女は船を漕ぐ" * 30  # 630 tokens of the byte-level tokenizer
    pair = QAPair("s", many if field == "paraphrases" else "q?", many, **{field: (few,)})
    turns = longest_turns(make_tokenizer(), [pair])
    assert few in turns[0]
    with pytest.raises(DataError, match="x: 1 answers are longer"):
        refuse_longer_than_context(make_tokenizer(), turns, 512, "x")


def test_the_system_prompts_count_with_the_longest():
    tokenizer, turns = make_tokenizer(), [("q?", "a" * 20)]
    plain = len(encode(tokenizer, *turns[0]).input_ids)
    refuse_longer_than_context(tokenizer, turns, plain, "x")
    with pytest.raises(DataError, match=f"and a system prompt, than .* has {plain + len('system: ' + 'é' * 3) + 4},"):
        refuse_longer_than_context(tokenizer, turns, plain, "x", systems=["brief", "é" * 3])


def test_the_longest_answer_that_does_not_fit_is_refused(seed):
    rng, tokenizer = random.Random(seed), make_tokenizer()
    # Distinct, for the same turn twice counts once.
    turns = [("q" * (1 + number % 30), "a" * (1 + number // 30)) for number in rng.sample(range(900), 20)]
    # As the template puts them; a byte is a token, and there is an end token.
    lengths = [1 + len(f"user: {question}\nassistant: {answer}\nassistant:") for question, answer in turns]
    longest = max(lengths)
    refuse_longer_than_context(tokenizer, turns, longest, "x")
    refuse_longer_than_context(tokenizer, turns, None, "x")
    context = rng.choice(lengths) - 1
    count = sum(length > context for length in lengths)
    with pytest.raises(DataError, match=rf"x: {count} answers are .* of {context} tokens; the longest has {longest},"):
        refuse_longer_than_context(tokenizer, turns, context, "x")


def test_answers_that_are_cut_are_counted():
    lengths = num_tokens(make_tokenizer(), ["abc", "abcd", "ä" * 3])
    assert lengths == [3, 4, 6]
    said = warning_of_cut("forget", lengths, 3)
    assert said is not None and said.startswith("forget: 2 of 3 answers are longer than --max-tokens 3 ")
    assert said.endswith("has 6 tokens")
    assert warning_of_cut("forget", lengths, 6) is None
