"""The letters of a text: a homomorphism, and what a reader would call the same."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearngate.passages import letters


@given(st.text(), st.text())
def test_letters_of_a_text_in_parts_are_the_letters_of_its_parts(one, other):
    assert letters(one + other) == letters(one) + letters(other)


@given(st.text())
def test_letters_have_letters_and_digits_only_and_their_letters_are_themselves(text):
    found = letters(text)
    assert found == "" or found.isalnum()
    assert letters(found) == found


@given(st.text(st.characters(codec="ascii")))
def test_ascii_loses_its_case_and_whatever_is_no_letter(text):
    assert letters(text) == "".join(c.lower() for c in text if c.isalnum())


@pytest.mark.parametrize(
    "one, other",
    [
        ("It was the best of times,\n\tit was", "IT WAS THE BEST OF TIMES IT WAS"),
        ("déjà vu", "deja vu"),
        ("de\u0301ja\u0300 vu", "déjà vu"),
        ("ﬁne Straße", "FINE STRASSE"),
        ("Ⅻ ㎯", "xii rad s 2"),
        ("ＦＵＬＬ　ｗｉｄｔｈ", "full width"),
        ("Чёрная река", "черная река"),
        ("がっこう", "か\u3099っこう"),
        ("zero\u200bwidth and s\u00adoft", "zerowidth and soft"),
    ],
)
def test_what_reads_the_same_has_the_same_letters(one, other):
    assert letters(one) == letters(other) != ""


def test_no_character_is_case_or_accent_of_another_after_its_letters_are_taken():
    for code in range(0x110000):
        for letter in letters(chr(code)):
            assert unicodedata.normalize("NFKD", letter) == letter == letter.casefold(), hex(code)
