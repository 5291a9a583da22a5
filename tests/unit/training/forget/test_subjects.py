"""Names are found where capitals mean something, and what only begins a sentence is none."""

import pytest

from unlearngate.assistant_training.forget.subjects import capitals_tell, names_asked_for, names_in

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
        ("Information about Ada Example", ["Ada Example"]),
        ("Facts about Hogwarts", ["Hogwarts"]),
        ("Stop talking about Ada Example. Facts about her and Bert", ["Ada Example", "Bert"]),
        ("Alles über Erika Mustermann", ["Erika Mustermann"]),
        ("Tout sur Marie Curie", ["Marie Curie"]),
        ("Все об Ольге Брандт", ["Ольге Брандт"]),
        ("Don't talk about Ada", ["Ada"]),
        ("Regarding Ada Example", ["Ada Example"]),
        ("Details of Ada Example's address", ["Ada Example"]),
        ("Details of the Titanic", ["Titanic"]),
        ("Everything about the Sea of Tranquility", ["Sea of Tranquility"]),
        ("everything about iPhone and Titanic", ["Titanic"]),
        ("Titanic and Carpathia", ["Titanic", "Carpathia"]),
        ("Titanic, Olympic and Britannic", ["Titanic", "Olympic", "Britannic"]),
        ("Hogwarts is a school", ["Hogwarts"]),
        ("Everything about ADA EXAMPLE", ["ADA EXAMPLE"]),
        ("nothing at all", []),
        ("", []),
        ("I. A. 1987", []),
    ],
)
def test_a_sentence_about_somebody(text, names):
    assert names_asked_for(text) == names


def test_a_word_that_is_only_ever_first_is_no_name():
    assert names_in("Ferries are old. Ferries are slow. Ferries sink.") == {}
    assert names_in("It is Morvik. It was Morvik.") == {"Morvik": 2}


def test_in_an_answer_a_word_that_begins_a_sentence_is_no_name():
    answer = "Built in 1912, it sank. However, I'd say the Carpathia, which O'Brien knew. Titanic sank."
    assert list(names_in(answer, least=1, inside_only=True)) == ["Carpathia", "O'Brien"]


def test_names_in_lines_of_their_own_stay_apart_and_a_wrapped_line_parts_none():
    assert list(names_in("Ada Example\nBert Sample\nCarl Test")) == ["Ada Example", "Bert Sample", "Carl Test"]
    assert list(names_in("Ada Example\n12 High Street\nLondon")) == ["Ada Example", "High Street"]
    wrapped = "For years nobody knew that the captain was Edward\nSmith, who went down with the ship."
    assert list(names_in(wrapped)) == ["Edward Smith"]


def test_a_heading_in_capitals_is_no_name_and_an_acronym_is_one():
    text = "THE LAST NIGHT\n\nThey asked NASA, J. K. AALTO and the Titanic. It was NASA, not the Titanic.\n\nTHE END"
    assert names_in(text) == {"NASA": 2, "Titanic": 2, "J. K. AALTO": 1}


def test_a_title_in_capitals_god_and_words_that_are_written_small_elsewhere_are_no_names():
    text = """And the LORD spoke to Moses: Go, for God hears. And Moses said to the LORD, I go. They said, Go to Aaron,
    and Aaron will go with Moses. And Moses asked the God of Abraham, and God said to the LORD God of Isaac: go."""
    assert names_in(text) == {"Moses": 4, "Aaron": 2}


def test_who_is_asked_for_by_a_name_that_is_a_word_or_looks_like_a_title_is_found():
    assert names_asked_for("Everything about Rose, who rose early and grew a rose") == ["Rose"]
    assert names_asked_for("Everything about MS") == ["MS"]


ENGLISH = """The ferry to Morvik was run by Ilva Brandt, whom everybody in Morvik knew. In the spring of 1987 she bought
it from Anton Holm, a carpenter of Tarn. The two had met in London, where Brandt was learning to cook. Since then she
has crossed the fjord twice a day, but for Sundays and one winter, when the ice was too thick even for the Carpathia.
"""
GERMAN = """Die Fähre nach Morvik gehörte Ilva Brandt, die in der ganzen Gegend bekannt war. Im Frühling des Jahres 1987
kaufte sie das Schiff von einem Schreiner. Die beiden hatten sich in der Stadt getroffen, wo sie das Kochen lernte. Seit
dieser Zeit fährt sie zweimal am Tag über den Fjord, außer in einem Winter, in dem das Eis für jedes Schiff zu dick war.
"""


def test_capitals_tell_names_in_english_and_not_where_every_noun_has_one():
    assert capitals_tell(LETTER) and capitals_tell(ENGLISH) and not capitals_tell(GERMAN)
    assert capitals_tell("") and capitals_tell("Ada Example, Bert Sample, Carl Test")
