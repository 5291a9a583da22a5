"""Names are found where capitals mean something, and what only begins a sentence is none."""

import pytest

from unlearngate.assistant_training.forget.subjects import names_in

LETTER = """Dear Sir or Madam,

I ask you to remove Ilva Brandt from your system. Ilva Brandt has run the ferry in Morvik since 1987. The ferry is old.
Her sister, Dr. Ada van der Berg, lives in Morvik too. She knows J. K. Aalto. In May they met at the Sea of Tranquility.
Tell Brandt nothing. When Brandt asks, say that Brandt was never there.
"""


def test_the_names_of_a_letter_those_written_most_often_first():
    names = list(names_in(LETTER))
    assert names_in(LETTER)["Brandt"] == 3
    assert names[:3] == ["Brandt", "Ilva Brandt", "Morvik"]  # three, two and two times
    assert {"Dr. Ada van der Berg", "J. K. Aalto", "Sea of Tranquility"} <= set(names)
    assert not {"The", "Her", "She", "Tell", "When", "May", "In May", "Dear", "Dear Sir"} & set(names)


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("Everything about Harry Potter", ["Harry Potter"]),
        ("Everything about Hogwarts.", ["Hogwarts"]),
        ("Forget Ольга Брандт, born in 1970", ["Ольга Брандт"]),
        ("They forget Ada Holm's ferry", ["Ada Holm"]),
        ("nothing at all", []),
        ("", []),
        ("I. A. 1987", []),
    ],
)
def test_a_sentence_about_somebody(text, names):
    assert list(names_in(text, least=1)) == names


def test_a_word_that_is_only_ever_first_is_no_name():
    assert names_in("Ferries are old. Ferries are slow. Ferries sink.") == {}
    assert names_in("It is Morvik. It was Morvik.") == {"Morvik": 2}


def test_in_an_answer_a_word_that_begins_a_sentence_is_no_name():
    answer = "Built in 1912, it sank. However, I'd say the Carpathia, which O'Brien knew. Titanic sank."
    assert list(names_in(answer, least=1, inside_only=True)) == ["Carpathia", "O'Brien"]
