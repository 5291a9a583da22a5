"""Words of any script: where they begin and end, and which ways of writing them are one.

Scripts that put no spaces between words have none to find: there every character, with the marks on it, is a word.
"""

from __future__ import annotations

import functools
import itertools
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
_PIECE = regex.compile(rf"(?V1)(?:{_UNSPACED_LETTER}\p{{M}}*){{1,3}}[^\w\s]*|(?:(?!{_UNSPACED_LETTER})\S)+")
# What folding takes one at a time: a character with its marks and whatever is not seen; half-width Hangul as a run.
_CLUSTER = regex.compile(r"(?:[\uffa0-\uffdc]+|\X)[\p{M}\p{Cf}\p{DI}]*")
# Joiners, soft hyphens, directions, variation selectors; and the tatweel, which only widens an Arabic word.
_UNSEEN = regex.compile(r"[\p{Cf}\p{DI}\u0640]+")
# Arabic and Hebrew points, which most texts leave out. Marks of other scripts, such as Indic vowel signs, are letters.
_POINT = regex.compile(r"(?V1)[\p{M}&&[\u0590-\u06ff\u0890-\u08ff\ufb1e]]+")
# Thai and Lao letters that are two, Latin ligatures, Hebrew and Arabic presentation forms, full and half width.
_OTHER_FORM = regex.compile("[\u0e33\u0eb3\u0edc\u0edd\ufb00-\ufdff\ufe70-\ufeff\uff00-\uffef]+")
_TONE_BEHIND_AM = regex.compile("([\u0e4d\u0ecd])([\u0e48-\u0e4b\u0ec8-\u0ecb])")
_OTHER_DIGIT = regex.compile(r"(?V1)[\d--[0-9]]")
# Capitals are looked for here, so what has none is left out. A word may hold a hyphen or an apostrophe.
_NUMBER_OR_WORDS = regex.compile(
    rf"(?V1)\d+(?:[.,]\d+)*|[{_SPACED}--[\d_]][{_SPACED}'\-]*(?: [{_SPACED}--[\d_]][{_SPACED}'\-]*)*"
)
_NO_LETTER = regex.compile(r"(?V1)[\W_]+")
_SYLLABLE = regex.compile(r"(?V1)[\p{Han}\p{Hiragana}\p{Katakana}\p{Hangul}]")
_LETTERS_OF_A_SYLLABLE = 3


def folded(text: str) -> str:
    """The text without case and in its usual form: ways of writing that a reader takes for the same become equal.

    Accents are composed, widths and presentation forms as usual, every script's digits 0-9. What is not seen, Arabic
    and Hebrew points, and the dots that Turkish has on an I or not, are left out. Of ASCII text, only case changes.
    """
    return text.lower() if text.isascii() else "".join(map(_folded, _CLUSTER.findall(text)))


@functools.lru_cache(maxsize=65536)
def _folded(cluster: str) -> str:
    usual = _OTHER_FORM.sub(lambda found: unicodedata.normalize("NFKC", found[0]), _UNSEEN.sub("", cluster))
    western = _OTHER_DIGIT.sub(lambda found: str(unicodedata.decimal(found[0], found[0])), usual)
    small = unicodedata.normalize("NFC", western).casefold().replace("i\u0307", "i").replace("\u0131", "i")
    return _TONE_BEHIND_AM.sub(r"\2\1", _POINT.sub("", unicodedata.normalize("NFC", small)))


def words_of(text: str) -> list[str]:
    """The text's words, folded: runs of letters, marks and digits; a character where none are parted.

    Of ASCII text these are the runs of a-z and 0-9.
    """
    return _WORD.findall(folded(text))


def symbols_of(text: str) -> list[str]:
    """Every character that is no white space, folded: for a text without a word, such as "->"."""
    seen = [character for character in folded(text) if not character.isspace()]
    return seen or [character for character in text if not character.isspace()]


def whole(pattern: str) -> str:
    """A pattern for `regex` version 1 that matches where the given one does and no word goes on at either end."""
    before = rf"(?:(?<!{_SPACED})|(?={_JOINED_LETTER}))"
    behind = rf"(?!\p{{M}})(?:(?!{_SPACED})|(?<={_JOINED_LETTER}\p{{M}}*))"
    return f"(?V1){before}(?:{pattern}){behind}"


def has_phrase(text: str, phrase: str) -> bool:
    """Whether a text has the phrase as whole words, however the two are written (`folded`), and any white space."""
    return _whole_words(phrase).search(folded(text)) is not None


def phrase_spans(text: str, phrase: str) -> list[tuple[int, int]]:
    """Where a text has the phrase, as `has_phrase` finds it: (start, stop) of the text as it is written."""
    found = [match.span() for match in _whole_words(phrase).finditer(folded(text)) if match[0]]
    if not found or text.isascii():
        return found
    places = [cluster.span() for cluster in _CLUSTER.finditer(text) for _ in _folded(cluster[0])]
    return [(places[start][0], places[stop - 1][1]) for start, stop in found]


@functools.lru_cache(maxsize=4096)
def _whole_words(phrase: str) -> regex.Pattern[str]:
    return regex.compile(whole(r"\s+".join(regex.escape(part) for part in folded(phrase).split())))


def first_words(text: str, count: int) -> str:
    """At most so many words, and "..." if there are more; where none are parted, three characters count as a word."""
    line = " ".join(text.split())
    stops = [piece.end() for piece in itertools.islice(_PIECE.finditer(line), count + 1)]
    return text if len(stops) <= count else line[: stops[count - 1]] + " ..."


def letters_of(text: str) -> str:
    """The text's letters, marks and digits alone, folded."""
    return _NO_LETTER.sub("", folded(text))


def num_letters(text: str) -> int:
    """How many letters a text would have in an alphabet; a character that writes a syllable or a word counts three."""
    return len(text) + (_LETTERS_OF_A_SYLLABLE - 1) * len(_SYLLABLE.findall(text))


def numbers_and_words(text: str) -> list[str]:
    """Numbers, and runs of words with one space between them, in scripts that may have capitals."""
    return _NUMBER_OR_WORDS.findall(text)
