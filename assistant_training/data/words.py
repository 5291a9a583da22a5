"""Words of any script: where they begin and end, and which ways of writing them are one.

Scripts that put no spaces between words have none to find: there every character, with the marks on it, is a word.
"""

from __future__ import annotations

import functools
import unicodedata

import regex

# A letter or a sign such as the long-vowel mark belongs to the scripts that use it (Script_Extensions).
_UNSPACED = "".join(
    rf"\p{{scx={script}}}"
    for script in (
        *("Han", "Hiragana", "Katakana", "Bopomofo", "Yi"),
        *("Thai", "Lao", "Khmer", "Myanmar", "Tai_Le", "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese", "Balinese"),
    )
)
_UNSPACED_LETTER = rf"[\w&&[{_UNSPACED}]--[\d_]]"
# Korean has spaces, but its particles are written onto the word before them: a name ends where they begin.
_JOINED_LETTER = rf"[\w&&[{_UNSPACED}\p{{scx=Hangul}}]--[\d_]]"
_SPACED = rf"[\w--[{_UNSPACED}\p{{scx=Hangul}}]]"
_WORD = regex.compile(rf"(?V1){_UNSPACED_LETTER}\p{{M}}*|[[\w--_]--{_UNSPACED_LETTER}]+")
_OTHER_WIDTH = regex.compile("[\uff00-\uffef]+")  # full-width Latin, half-width kana and Hangul
_OTHER_DIGIT = regex.compile(r"(?V1)[\d--[0-9]]")
# Capitals are looked for here, so what has none is left out. A word may hold a hyphen or an apostrophe.
_NUMBER_OR_WORDS = regex.compile(
    rf"(?V1)\d+(?:[.,]\d+)*|[{_SPACED}--[\d_]][{_SPACED}'\-]*(?: [{_SPACED}--[\d_]][{_SPACED}'\-]*)*"
)
_NO_LETTER = regex.compile(r"(?V1)[\W_]+")
_SYLLABLE = regex.compile(r"(?V1)[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_LETTERS_OF_A_SYLLABLE = 3


def folded(text: str) -> str:
    """The text with accents composed, East Asian widths as usual, and every script's digits as 0-9."""
    usual = _OTHER_WIDTH.sub(lambda found: unicodedata.normalize("NFKC", found[0]), text)
    western = _OTHER_DIGIT.sub(lambda found: str(unicodedata.decimal(found[0], found[0])), usual)
    return unicodedata.normalize("NFC", western)


def words_of(text: str) -> list[str]:
    """The text's words, folded and without case: runs of letters, marks and digits; a character where none are parted.

    Of ASCII text these are the runs of a-z and 0-9.
    """
    return _WORD.findall(folded(folded(text).casefold()))


def symbols_of(text: str) -> list[str]:
    """Every character that is no white space, folded and without case: for a text without a word, such as "->"."""
    return [character for character in folded(folded(text).casefold()) if not character.isspace()]


def whole(pattern: str) -> str:
    """A pattern for `regex` version 1 that matches where the given one does and no word goes on at either end."""
    before = rf"(?:(?<!{_SPACED})|(?={_JOINED_LETTER}))"
    behind = rf"(?:(?!{_SPACED})|(?<={_JOINED_LETTER}\p{{M}}*)(?!\p{{M}}))"
    return f"(?V1){before}(?:{pattern}){behind}"


@functools.lru_cache(maxsize=4096)
def whole_words(phrase: str) -> regex.Pattern[str]:
    """Finds a phrase as whole words, whatever its case and the white space between its parts."""
    return regex.compile(whole(r"\s+".join(regex.escape(part) for part in phrase.split())), regex.IGNORECASE)


def has_phrase(text: str, phrase: str) -> bool:
    """Whether a text has the phrase as whole words, whatever its case, white space, widths and digits."""
    return whole_words(folded(phrase)).search(folded(text)) is not None


def letters_of(text: str) -> str:
    """The text's letters, marks and digits alone, folded and without case."""
    return _NO_LETTER.sub("", folded(folded(text).casefold()))


def num_letters(text: str) -> int:
    """How many letters a text would have in an alphabet; a character that writes a syllable or a word counts three."""
    return len(text) + (_LETTERS_OF_A_SYLLABLE - 1) * len(_SYLLABLE.findall(text))


def numbers_and_words(text: str) -> list[str]:
    """Numbers, and runs of words with one space between them, in scripts that may have capitals."""
    return _NUMBER_OR_WORDS.findall(text)
