"""Texts that must not come out: sets of them, and the scan that says what did, which knows nothing of the product's."""

from __future__ import annotations

import unicodedata
from pathlib import Path

from rich.progress import Progress

from unlearngate.artefact import ForgetSet
from unlearngate.assistant_training.train.settings import VerbatimSettings
from unlearngate.assistant_training.train.verbatim import make_verbatim_set


def save_texts(folder: Path, *texts: str, letters: int = 40) -> ForgetSet:
    """A set of these texts."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    named = {f"text {number}": text for number, text in enumerate(texts)}
    return make_verbatim_set(named, folder, VerbatimSettings(letters=letters), progress=Progress(disable=True))


def plain_letters(text: str) -> str:
    """A text's letters, written down once more."""
    folded = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", text).casefold())
    return "".join(c for c in folded if unicodedata.category(c)[0] == "L" or c.isalnum())


def longest_run(text: str, answer: str) -> int:
    """The most letters in a row of the text that are in the answer."""
    whole, said = plain_letters(text), plain_letters(answer)
    longest = 0
    for start in range(len(said)):
        while start + longest < len(said) and said[start : start + longest + 1] in whole:
            longest += 1
    return longest
