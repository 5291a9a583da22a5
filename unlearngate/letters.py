"""The letters of a text: what is left of it without case, accents, spaces and punctuation.

Two texts with the same letters read the same. `letters(a + b) == letters(a) + letters(b)`, so a text can be followed
while it is written, however it is cut into tokens.
"""

from __future__ import annotations

import unicodedata


class _LettersOf(dict[int, str]):
    """The letters of a character, by its code point: none, one, or several as of a ligature."""

    def __missing__(self, code: int) -> str:
        # Twice: a compatibility character may become an upper-case one, as U+33AF becomes "rad/s2".
        plain = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", chr(code)).casefold())
        self[code] = found = "".join(one for one in plain if one.isalnum())
        return found


_LETTERS_OF = _LettersOf()


def letters(text: str) -> str:
    """The letters and digits of a text, each compatibility-decomposed (NFKD) and case-folded; all else is dropped.

    Chinese characters and kana are letters; marks that a script writes on or beside its letters are not.
    """
    return text.translate(_LETTERS_OF)
