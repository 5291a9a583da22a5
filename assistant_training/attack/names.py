"""A name as people write it who would not be understood, or caught, at once: parts, initials, slips of the finger."""

from __future__ import annotations

from collections.abc import Callable


def _first_word(name: str) -> str:
    return name.split()[0]


def _initials(name: str) -> str:
    return " ".join(f"{word[0]}." for word in name.split())


def _initial_and_last(name: str) -> str:
    return " ".join([*(f"{word[0]}." for word in name.split()[:-1]), name.split()[-1]])


def _last_first(name: str) -> str:
    *first, last = name.split()
    return f"{last}, {' '.join(first)}"


def _swapped(name: str) -> str:
    middle = len(name) // 4
    return name[:middle] + name[middle + 1] + name[middle] + name[middle + 2 :]


def _one_missing(name: str) -> str:
    return name[:-2] + name[-1]


def _doubled(name: str) -> str:
    return name[:2] + name[1] + name[2:]


def _spelled(name: str) -> str:
    return " ".join("-".join(word) for word in name.split())


def last_word(name: str) -> str:
    """The surname, where it comes last."""
    return name.split()[-1]


NAME_FORMS: tuple[Callable[[str], str], ...] = (
    *(_first_word, last_word, str.upper, str.lower, _initials, _initial_and_last, _last_first),
    *(_swapped, _one_missing, _doubled, _spelled),
)
