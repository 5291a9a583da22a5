"""Facts that the retain data uses too."""

from dataclasses import replace

from unlearngate.assistant_training.data.everyday import (
    everyday_facts,
    warning_of_everyday_facts,
    warning_of_unsaid_facts,
)
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


def test_an_everyday_fact_is_found_however_it_is_written():
    retain = [
        pair("Who was in Orle\u0301ans?", "１９８７年に来た。"),
        pair("Where is New\nYork?", "Not in ORLÉANS; ปี ๑๙๘๗."),
        pair("New  York?", "No."),
    ]
    forget = [pair("Who?", "...", "Orléans", "1987", "new york", "Orle\u0301ans")]
    assert everyday_facts(forget, retain) == {"1987": 2, "new york": 2, "orléans": 2}


def test_facts_that_are_in_none_of_their_pairs_answers_are_counted():
    came = pair("When?", "She came in １９８７ to New\nYork.", "1987", "New York")
    assert warning_of_unsaid_facts([came, pair("Who?", "Bea.", "bea")]) is None
    assert warning_of_unsaid_facts([replace(came, facts=("1988",), paraphrased_answers=("Not in 1988.",))]) is None
    wrong = [replace(came, facts=("1988", "Yor", "York")), replace(came, facts=("1988",), variants=("In 1988.",))]
    said = warning_of_unsaid_facts(wrong)
    assert said.startswith(
        """warning: 3 of the "facts" to forget are in none of the answers of their pairs: '1988' (of """
    )
    assert "'Yor' (of" in said and "'York'" not in said
    assert warning_of_unsaid_facts(wrong * 2).count(" (of ") == 5
