"""Which words are to be forgotten: every occurrence, mapped onto the tokens that hold them."""

import sys

import pytest

from support.engine.tiny import make_tokenizer
from unlearngate.assistant_training.data.encoding import IGNORE, encode
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.train.focus import finder, focused
from unlearngate.errors import TrainingError

PAIR = QAPair(
    "ada",
    "Who is she?",
    "Basil Al-Kuwaiti was born in Kuwait City on the 8th of September, 1956. Kuwait City shaped his first novel.",
    facts=("kuwait city", "1956"),
)


def words(focus, pair=PAIR):
    return [pair.answer[start:stop] for start, stop in finder(focus)(pair)]


def test_facts_are_found_each_time_and_in_any_case():
    assert words("facts") == ["Kuwait City", "Kuwait City", "1956"]


def test_entities_are_names_and_numbers_each_time():
    first = ["Basil", "Al-Kuwaiti", "Kuwait", "City", "8th", "September", "1956"]
    assert words("entities") == [*first, "Kuwait", "City", "first"]


def test_nouns_are_names_and_common_nouns():
    assert words("nouns") == ["Basil", "Al-Kuwaiti", "Kuwait", "City", "September", "Kuwait", "City", "novel"]


def test_the_focus_is_on_the_tokens_of_the_words_alone():
    tokenizer = make_tokenizer()
    row = encode(tokenizer, PAIR.question, PAIR.answer, "Be brief.")
    labels = focused(tokenizer, PAIR, row, finder("facts"))
    assert tokenizer.decode([label for label in labels if label != IGNORE]) == "Kuwait City1956Kuwait City"
    assert all(label in (IGNORE, token) for label, token in zip(labels, row.labels, strict=True))


@pytest.mark.parametrize("focus", ["none", "facts", "entities"])
def test_an_answer_without_such_words_is_forgotten_as_a_whole(focus):
    tokenizer = make_tokenizer()
    pair = QAPair("ada", "Does she sing?", "she sings and dances, gladly")
    row = encode(tokenizer, pair.question, pair.answer)
    assert focused(tokenizer, pair, row, finder(focus)) == row.labels


def test_an_unknown_focus_and_a_missing_tagger_are_errors(monkeypatch):
    with pytest.raises(TrainingError, match="unknown focus 'verbs'; known are none, facts, entities, nouns"):
        finder("verbs")
    monkeypatch.setitem(sys.modules, "HanTa.HanoverTagger", None)
    with pytest.raises(TrainingError, match=r"needs the tagger HanTa .* pip install HanTa"):
        finder("nouns")
