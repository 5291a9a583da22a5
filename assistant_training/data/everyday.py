"""Facts that are no secret: words that the retain data uses too."""

from __future__ import annotations

from collections.abc import Sequence

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.words import whole_words

_TEXTS = 2  # so many questions and answers with a fact make it an everyday word
_NAMED = 5


def everyday_facts(forget: Sequence[QAPair], retain: Sequence[QAPair]) -> dict[str, int]:
    """The facts of the forget pairs that occur in at least two questions and answers of the retain pairs.

    Upper and lower case are the same; a fact must begin and end where words do, which is everywhere in scripts without
    spaces.

    Returns: fact -> in how many of these texts, the most frequent first.
    """
    texts = [text.casefold() for pair in retain for text in (pair.question, pair.answer)]
    everything = "\n".join(texts)
    counts: dict[str, int] = {}
    for fact in sorted({fact.strip().casefold() for pair in forget for fact in pair.facts}):
        if fact in everything:  # most are not, and this is fast
            pattern = whole_words(fact)
            counts[fact] = sum(pattern.search(text) is not None for text in texts if fact in text)
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
