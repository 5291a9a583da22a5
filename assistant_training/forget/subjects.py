"""The names in a text: whom and what it is about, and the facts that an answer may give away."""

from __future__ import annotations

from collections import Counter

import regex

# A name is a run of capitalised words; small words may stand inside ("Ludwig van Beethoven"); `of` joins
# one word to what follows ("Sea of Tranquility"), and not "Ada Example of Morvik".
_WORD = r"(?:(?:Dr|Mrs?|Ms|Prof|St)\.|\p{Lu}[\p{L}\p{M}\d]*(?:[-'\u2019]\p{L}[\p{L}\p{M}]*)*)"
_INITIAL = r"\p{Lu}\.(?:\s?\p{Lu}\.)*"
_PART = rf"(?:{_INITIAL}|{_WORD})"
_PARTICLE = r"(?:\s(?:de|del|den|der|di|la|van|von))"
_NAME = regex.compile(rf"{_WORD}\sof(?:\sthe)?\s{_PART}(?:\s{_PART})*|{_PART}(?:{_PARTICLE}*\s{_PART})*")
_QUOTES = r"\"'\u2018\u2019\u201c\u201d()\[\]*-"
_SENTENCE_START = regex.compile(rf"(?:^|[.!?:…][{_QUOTES}]*\s|\n\s*)[\s{_QUOTES}]*$")
_TITLES = frozenset("Dr Mr Mrs Ms Prof St Sir Lady Lord Miss".split())
_NO_NAMES = frozenset(
    """
    A About After All Also Although An And Any Are As At Be Because Before Both But By Can Chapter Could Dear Delete
    Did Do Does During Each Either Erase Even Every Everything Few For Forget From Give Had Has Have He Her Here His
    How However I If In Into Is It Its Just Later Like Many Me More Most Mr Mrs Ms My No Nobody None Not Nothing Now
    Of On Once One Only Or Other Our Out Over People Perhaps Please Remove Several She Should Since So Some Soon
    Still Such Tell That The Their Them Then There These They This Those Though Three Through Thus To Two Under
    Until Up Was We Were What When Where Whether Which While Who Whose Why Will With Would Yes Yet You Your January
    February March April May June July August September October November December Monday Tuesday Wednesday Thursday
    Friday Saturday Sunday
    """.split()
)


def names_in(text: str, *, least: int = 2, inside_only: bool = False) -> dict[str, int]:
    """The names in a text in scripts with capitals, and how often each is written; the most frequent first.

    A name of one word counts only if it is also written inside a sentence, where a capital says something.

    Args:
        text: any.
        least: how often a name of one word has to be written; 1 also takes those that only begin a sentence.
        inside_only: not those.
    """
    written: list[tuple[str, bool]] = []  # each time: the name, and whether its capital may be a sentence's
    for match in _NAME.finditer(text):
        if name := without_openers(match[0]):
            before = text[max(0, match.start() - 40) : match.start()]
            written.append((name, match[0].startswith(name) and _SENTENCE_START.search(before) is not None))
    names = {name for name, _ in written}
    counts: Counter[str] = Counter()
    inside: set[str] = set()
    for name, starts in written:
        rest = name.partition(" ")[2]
        if starts and " " in rest and rest in names:  # "Ask Ada Example", and elsewhere "Ada Example"
            name, starts = rest, False
        counts[name] += 1
        if not starts:
            inside.add(name)
    anywhere = least == 1 and not inside_only
    found = [name for name in counts if " " in name or (counts[name] >= least and (name in inside or anywhere))]
    return dict(sorted(((name, counts[name]) for name in found), key=lambda item: (-item[1], text.find(item[0]))))


def without_openers(name: str) -> str:
    """A name without the words at its ends that are no part of it ("The Atlantic"); empty if nothing is left."""
    words = regex.sub(r"['\u2019]s$", "", name).split()
    while words and (regex.split(r"['\u2019]", words[0])[0] in _NO_NAMES or words[0].islower()):
        del words[0]
    while words and (
        regex.split(r"['\u2019]", words[-1])[0] in _NO_NAMES or words[-1].rstrip(".") in _TITLES or words[-1].islower()
    ):
        del words[-1]
    joined = " ".join(words)
    return joined if len(joined) > 1 and not regex.fullmatch(_INITIAL, joined) else ""


def _is_none(word: str) -> bool:
    """Whether a word is no part of a name, also with what is added to it ("I'd", "It's")."""
    return word.islower() or regex.split(r"['\u2019]", word)[0] in _NO_NAMES
