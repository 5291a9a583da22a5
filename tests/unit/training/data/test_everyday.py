"""Facts that the retain data uses too."""

from unlearngate.assistant_training.data.everyday import everyday_facts, warning_of_everyday_facts
from unlearngate.assistant_training.data.pairs import QAPair


def pair(question, answer, *facts):
    return QAPair("x", question, answer, facts=facts)


RETAIN = [
    pair("What colour is the Red barn?", "It is red."),  # two texts: question and answer
    pair("Who writes?", "Ada writes in redwood, covered in c++."),
    pair("What of C++?", "Ada Lang, 1911; 1911, again."),
]


def test_a_fact_counts_in_how_many_texts_it_is_whatever_its_case_and_only_as_whole_words():
    forget = [pair("Who?", "...", "red", "Ada", "Ada Lang", "wood"), pair("And?", "...", "RED", "C++", "1911", "Bea")]
    assert everyday_facts(forget, RETAIN) == {"red": 2, "ada": 2, "c++": 2}  # "1911" is in one text, twice


def test_the_warning_names_at_most_five_and_is_none_without_any():
    assert warning_of_everyday_facts([pair("Who?", "Bea", "Bea", "1911")], RETAIN) is None
    words = ["one", "two", "three", "four", "five", "six"]
    retain = [pair(" ".join(words), " ".join(words))]
    said = warning_of_everyday_facts([pair("Who?", "...", *words)], retain)
    assert said.startswith("warning: 6 of the")
    assert sum(f"'{word}' (in 2" in said for word in words) == 5
    assert "Take them out of the lists of facts" in said
