"""The names in a text: whom and what it is about, and the facts that an answer may give away."""

from __future__ import annotations

from collections import Counter

import regex

# A name is a run of capitalised words; small words may stand inside ("Ludwig van Beethoven"); `of` joins
# one word to what follows ("Sea of Tranquility"), and not "Ada Example of Morvik". A line feed stands inside a name
# only where a long line is wrapped: what stands in lines of its own is a list, or an address.
_SPACE = r"(?:[^\S\n]|(?<=[^\n]{40})\n)"
_WORD = r"(?:(?:Dr|Mrs?|Ms|Prof|St)\.|\p{Lu}[\p{L}\p{M}\d]*(?:[-'\u2019]\p{L}[\p{L}\p{M}]*)*)"
_INITIAL = rf"\p{{Lu}}\.(?:{_SPACE}?\p{{Lu}}\.)*"
_PART = rf"(?:{_INITIAL}|{_WORD})"
_PARTS = rf"{_PART}(?:(?:{_SPACE}(?:de|del|den|der|di|la|van|von))*{_SPACE}{_PART})*"
_OF = rf"{_WORD}{_SPACE}of(?:{_SPACE}the)?{_SPACE}{_PART}(?:{_SPACE}{_PART})*"
_NAME = regex.compile(rf"(?<![\p{{L}}\p{{M}}\d])(?:{_OF}|{_PARTS})")
_QUOTES = r"\"'\u2018\u2019\u201c\u201d()\[\]*-"
_SENTENCE_START = regex.compile(rf"(?:^|[.!?:…][{_QUOTES}]*\s|\n\s*)[\s{_QUOTES}]*$")
# The word that opens a sentence, where the sentence goes on in small letters and not with another name.
_OPENING = regex.compile(
    rf"(?:^|(?<=[.!?…]\s))[\s{_QUOTES}]*\p{{Lu}}[\p{{L}}\p{{M}}]*(?:['\u2019]t)?"
    r"(?=\s\p{Ll})(?!\s(?:and|or|und|oder|et|ou|y|и)\s)"
)
_SENTENCE_END = regex.compile(rf"[.!?:…][{_QUOTES}]*\s|\n")
_FIRST = regex.compile(r"[^\p{L}]*[\p{L}\p{M}\d'\u2019-]+")
_SMALL = regex.compile(r"(?<![\p{L}\p{M}\d])\p{Ll}[\p{L}\p{M}'\u2019-]*")
# A capitalised word between others that are not, and no acronym.
_ALONE = regex.compile(
    r"(?<![\p{L}\p{M}\d])(?<!\p{Lu}[\p{L}\p{M}'\u2019-]*\s)\p{Lu}\p{Ll}[\p{L}\p{M}'\u2019-]*+(?!\s\p{Lu})"
)
_JUDGED = 30  # words
_ALONE_AT_MOST = 0.2
_TITLES = frozenset("Dr Mr Mrs Ms Prof St Sir Lady Lord LORD Miss".split())
_NO_NAMES = frozenset(
    """
    A About After All Also Although An And Any Are As At Be Because Before Both But By Can Chapter Concerning Could
    Dear Delete Did Do Does During Each Either Erase Even Every Everything Few For Forget From Give God Had Has Have He
    Her Here His How However I If In Into Is It Its Just Later Like Many Me More Most Mr Mrs Ms My No Nobody None
    Not Nothing Now Of On Once One Only Or Other Our Out Over People Perhaps Please Purge Regarding Remove Several
    She Should Since So Some Soon Still Such Tell That The Their Them Then There These They This Those Though Three
    Through Thus To Two Under Unlearn Until Up Was We Were What When Where Whether Which While Who Whose Why Will
    With Would Yes Yet You Your January February March April May June July August September October November
    December Monday Tuesday Wednesday Thursday Friday Saturday Sunday
    """.split()
)


def names_in(text: str, *, least: int = 2, inside_only: bool = False) -> dict[str, int]:
    """The names in a text in scripts with capitals, and how often each is written; the most frequent first.

    A name of one word counts only if it is also written inside a sentence, where a capital says something, and, unless
    `least` is 1, more often with a capital than without one. Several words in capitals throughout are a heading, and no
    name unless `least` is 1.

    Args:
        text: any.
        least: how often a name of one word has to be written; 1 also takes those that only begin a sentence.
        inside_only: not those.
    """
    written: list[tuple[str, bool]] = []  # each time: the name, and whether its capital may be a sentence's
    for match in _NAME.finditer(text):
        name = without_openers(match[0])
        if name and (least == 1 or not _is_heading(name)):
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
    small = Counter(_SMALL.findall(text) if least > 1 else ())
    found = [
        name
        for name in counts
        if " " in name
        or (counts[name] >= least and (name in inside or anywhere) and counts[name] > small[name.lower()])
    ]
    return dict(sorted(((name, counts[name]) for name in found), key=lambda item: (-item[1], text.find(item[0]))))


def names_asked_for(sentence: str) -> list[str]:
    """Whom and what a request in a sentence is about: its names, in their order.

    The word that opens it is none if another name is there: "Facts about Ada Example", "Details of Ada Example".
    """
    return list(names_in(_OPENING.sub("", sentence), least=1) or names_in(sentence, least=1))


def capitals_tell(text: str) -> bool:
    """Whether capitals tell a text's names from its other words; in German, where every noun has one, they do not.

    They do if at most a fifth of the different words inside its sentences are capitalised ones that stand alone. In
    texts of 120 words from news and Wikipedia (Universal Dependencies' PUD) it is 0 to 17 % in English and 15 to 41 %
    in German: 2 of 213 texts are taken for the other; of 250 words and more none is. Fewer than 30 say nothing.
    """
    alone: list[str] = []
    small: list[str] = []
    for sentence in _SENTENCE_END.split(text):
        if first := _FIRST.match(sentence):
            alone += _ALONE.findall(sentence, first.end())
            small += _SMALL.findall(sentence, first.end())
    different = len(set(alone)) + len(set(small))
    return len(alone) + len(small) < _JUDGED or len(set(alone)) <= _ALONE_AT_MOST * different


def without_openers(name: str) -> str:
    """A name without the words at its ends that are no part of it ("The Atlantic"); empty if nothing is left."""
    words = regex.sub(r"['\u2019]s$", "", name).split()
    while words and _is_none(words[0]):
        del words[0]
    while words and (_is_none(words[-1]) or words[-1].rstrip(".") in _TITLES):
        del words[-1]
    joined = " ".join(words)
    return joined if len(joined) > 1 and not regex.fullmatch(_INITIAL, joined) else ""


def _is_none(word: str) -> bool:
    """Whether a word is no part of a name, also with what is added to it ("I'd", "It's")."""
    return word.islower() or regex.split(r"['\u2019]", word)[0] in _NO_NAMES


def _is_heading(name: str) -> bool:
    """Whether it is several words in capitals throughout ("THE LAST NIGHT"), and not "NASA" or "J. K. AALTO"."""
    return name.isupper() and len(regex.findall(r"\p{Lu}[\p{L}\p{M}'\u2019-]+", name)) > 1
