"""Facts that cannot be forgotten as such: words that the retain data uses too, and those that no answer says."""

from __future__ import annotations

from collections.abc import Sequence

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.rows import short
from unlearngate.assistant_training.data.words import folded, has_phrase

_TEXTS = 2  # so many questions and answers with a fact make it an everyday word
_NAMED = 5


def everyday_facts(forget: Sequence[QAPair], retain: Sequence[QAPair]) -> dict[str, int]:
    """The facts of the forget pairs that occur in at least two questions and answers of the retain pairs.

    They are found as training finds them in answers (`has_phrase`).

    Returns: fact, folded -> in how many of these texts, the most frequent first.
    """
    texts = [_usual(text) for pair in retain for text in (pair.question, pair.answer)]
    everything = "\n".join(texts)
    counts: dict[str, int] = {}
    for fact in sorted({_usual(fact) for pair in forget for fact in pair.facts}):
        if fact in everything:  # most are not, and this is fast
            counts[fact] = sum(has_phrase(text, fact) for text in texts if fact in text)
    found = {fact: count for fact, count in counts.items() if count >= _TEXTS}
    return dict(sorted(found.items(), key=lambda item: -item[1]))


def warning_of_everyday_facts(forget: Sequence[QAPair], retain: Sequence[QAPair]) -> str | None:
    """What to tell whoever has given these files, or None: at most five of the facts, and what to do."""
    found = everyday_facts(forget, retain)
    if not found:
        return None
    named = ", ".join(f"{fact!r} (in {count} of its texts)" for fact, count in list(found.items())[:_NAMED])
    return (
        f'warning: {len(found)} of the "facts" to forget are words that the retain file uses too: {named}'
        f"{', ...' if len(found) > _NAMED else ''}. They would be taken from everybody, and count as told where they "
        "are said. Take them out of the lists of facts, or write out what makes them one, such as a whole name or date"
    )


def warning_of_unsaid_facts(forget: Sequence[QAPair]) -> str | None:
    """What to tell whoever has given this file of facts that are in none of their pair's answers, or None."""
    unsaid = [
        (fact, pair)
        for pair in forget
        for fact in pair.facts
        if not any(has_phrase(answer, fact) for answer in (pair.answer, *pair.paraphrased_answers))
    ]
    if not unsaid:
        return None
    named = ", ".join(f"{fact!r} (of {short(pair.answer)})" for fact, pair in unsaid[:_NAMED])
    return (
        f'warning: {len(unsaid)} of the "facts" to forget are in none of the answers of their pairs: {named}'
        f"{', ...' if len(unsaid) > _NAMED else ''}. They count for nothing, and an answer that holds no "
        "other fact counts whole. Write each as its answer does, in whole words"
    )


def _usual(text: str) -> str:
    return " ".join(folded(text).split())
