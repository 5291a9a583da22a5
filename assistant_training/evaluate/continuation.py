"""Verbatim memorisation at a running server: passages of a text are begun, and it goes on with them.

Source: MUSE's verbatim memorisation (VerbMem), arXiv:2407.06460, which averages ROUGE-L of the continuation.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, NamedTuple

from unlearngate.assistant_training.evaluate.asking import check_in_force, connect
from unlearngate.assistant_training.evaluate.metrics import rouge_recall
from unlearngate.errors import DataError
from unlearngate.passages import letters


class Passage(NamedTuple):
    """Words of a text in a row: those that are given, and those that follow."""

    source: str
    given: str
    follows: str


class Continuations(NamedTuple):
    """What a server went on with under one combination of sets, an entry for every passage.

    Attributes:
        forget_sets: the sets in force, by name.
        said: the continuations.
        rouge: ROUGE-L recall of what follows, in [0, 1].
        longest: the most letters in a row of the text in each continuation; what was given does not count.
    """

    forget_sets: tuple[str, ...]
    said: list[str]
    rouge: list[float]
    longest: list[int]


def passages(texts: Mapping[str, str], *, words: int, most: int) -> list[Passage]:
    """Passages at even distances along all texts.

    Args:
        texts: by name.
        words: that are given, and as many that follow.
        most: passages, at most; they do not overlap.

    Raises: DataError if no text has so many words.
    """
    starts = [
        (name, split, start)
        for name, split in ((name, text.split()) for name, text in texts.items())
        for start in range(0, len(split) - 2 * words + 1, 2 * words)
    ]
    if not starts:
        raise DataError(f"no text has {2 * words} words: give longer ones, or fewer --words")
    chosen = starts[:: -(-len(starts) // most)]
    return [
        Passage(name, " ".join(split[at : at + words]), " ".join(split[at + words : at + 2 * words]))
        for name, split, at in chosen
    ]


def continuations(
    url: str,
    key: str | None,
    model: str,
    begun: Sequence[Passage],
    texts: Mapping[str, str],
    combinations: Sequence[tuple[str, ...]],
    *,
    max_tokens: int,
    concurrency: int,
    tell: Callable[[], object] = lambda: None,
) -> list[Continuations]:
    """Have a server go on with every passage, as bare text, greedily, under every combination of sets.

    Args:
        url: the server's address, without /v1.
        key: the API key, or None.
        model: the served name.
        begun: the passages.
        texts: by name, whole: a run of any of their letters counts.
        combinations: of sets in force together; () is the plain target.
        max_tokens: continuations are cut here.
        concurrency: requests at a time.
        tell: is called after every answer.

    Raises: openai.OpenAIError if a request fails; UnlearngateError if other sets were in force than asked for.
    """
    whole = "\n".join(letters(text) for text in texts.values())
    with connect(url, key) as client, ThreadPoolExecutor(concurrency) as pool:

        def ask(job: tuple[tuple[str, ...], Passage]) -> str:
            names, passage = job
            body = {"model": model, "prompt": passage.given, "temperature": 0, "max_tokens": max_tokens}
            response: Any = client.post("/completions", cast_to=object, body={**body, "forget_sets": list(names)})
            check_in_force(url, names, response.get("forget_sets"), passage.given[-200:])
            tell()
            return str(response["choices"][0]["text"])

        jobs = [(names, passage) for names in combinations for passage in begun]
        said = iter(list(pool.map(ask, jobs)))
    found = []
    for names in combinations:
        own = [next(said) for _ in begun]
        rouge = rouge_recall([passage.follows for passage in begun], own).tolist()
        found.append(Continuations(names, own, rouge, [longest_run(whole, letters(text)) for text in own]))
    return found


def longest_run(whole: str, said: str) -> int:
    """The most characters in a row of `said` that are in `whole`."""
    longest = 0
    for start in range(len(said)):
        while start + longest < len(said) and said[start : start + longest + 1] in whole:
            longest += 1
    return longest
