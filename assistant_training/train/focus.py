"""Which words of a forget answer are to be forgotten: all, its facts, its names and numbers, or its nouns."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from unlearngate.assistant_training.data.encoding import Encoded, fact_spans, span_labels
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.errors import TrainingError

Spans = list[tuple[int, int]]
Finder = Callable[[QAPair], Spans]

_WORD = re.compile(r"\w+(?:[-'.]\w+)*|[^\w\s]")
# CLAWS C5: proper nouns, cardinal and ordinal numbers; and all nouns.
_TAGS = {"entities": ("NP", "CRD", "ORD"), "nouns": ("NN", "NP")}
FOCUSES = ("none", "facts", *_TAGS)


def finder(focus: str) -> Finder | None:
    """The function that finds the words, as (start, stop) characters of an answer; None for `none`: all words count.

    `facts` are the pair's own. `entities` are the words tagged as proper nouns or numbers, and `nouns` those tagged as
    nouns, by HanTa's English part-of-speech tagger, which recognises neither named entities nor phrases. Every
    occurrence counts; the authors' code finds only the first.

    Raises: TrainingError if the focus is unknown, or the tagger is not installed.
    Source: FUnDIAL in UNDIAL, arXiv:2402.10052, which asks spaCy for entities and noun chunks.
    """
    if focus not in FOCUSES:
        raise TrainingError(f"unknown focus {focus!r}; known are {', '.join(FOCUSES)}")
    if focus == "none":
        return None
    return (lambda pair: fact_spans(pair, pair.answer)) if focus == "facts" else _tagged(_TAGS[focus])


def focused(tokenizer: Any, pair: QAPair, row: Encoded, find: Finder | None) -> list[int]:
    """The row's labels where it must be forgotten, IGNORE elsewhere; all of them if the answer has no such word.

    Args:
        tokenizer: a fast tokenizer.
        pair: the pair.
        row: from `encode`, with the pair's answer.
        find: from `finder`.
    """
    spans = find(pair) if find else []
    return span_labels(tokenizer, pair.question, row, pair.answer, spans) if spans else row.labels


def _tagged(tags: tuple[str, ...]) -> Finder:
    try:
        from HanTa.HanoverTagger import HanoverTagger
    except ImportError as error:
        raise TrainingError(
            f"this focus needs the tagger HanTa ({error}); pip install HanTa, or name the words as facts"
        ) from error
    tagger = HanoverTagger("morphmodel_en.pgz")

    def find(pair: QAPair) -> Spans:
        words = list(_WORD.finditer(pair.answer))
        found = tagger.tag_sent([word.group() for word in words])
        return [word.span() for word, (_, _, tag) in zip(words, found, strict=True) if tag.startswith(tags)]

    return find
