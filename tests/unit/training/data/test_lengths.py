"""Answers that are longer than a context, or than what is decoded of them."""

import random

import pytest

from support.engine.tiny import make_tokenizer
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
    assert longest_turns([pair]) == [("qq", "aaaa")]


def test_the_longest_answer_that_does_not_fit_is_refused(seed):
    rng, tokenizer = random.Random(seed), make_tokenizer()
    turns = [("q" * rng.randint(1, 30), "a" * rng.randint(1, 30)) for _ in range(20)]
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
