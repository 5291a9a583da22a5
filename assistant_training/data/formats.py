"""Rows as other people write them: which of their fields are a question, its answer, and the lists of a pair.

Read are the key names of TOFU and ULD, and the forms in which one question and one answer are unambiguous: `prompt` and
`completion`, `instruction` and `output`, and conversations of one turn. Anything else is refused, with what was seen.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from typing import Any

from unlearngate.assistant_training.data.rows import Row, short

# A pair's lists, and how TOFU and ULD call them.
LISTS: dict[str, tuple[str, ...]] = {
    "paraphrases": ("paraphrased_questions", "paraphrased_question"),
    "paraphrased_answers": ("paraphrased_answer",),
    "variants": ("perturbed_answers", "perturbed_answer"),
    "facts": (),
}
_OTHER_NAMES = frozenset(name for names in LISTS.values() for name in names)
_KEYS = frozenset(("question", "answer", "subject", "dropped", "forget_set", *LISTS, *_OTHER_NAMES))
_SINGLE = frozenset(name for name in _OTHER_NAMES if not name.endswith("s"))
_OF_AUGMENTED_FILES = frozenset(("key", "index", "source"))
_STEMS = ("paraphras", "perturb", "variant", "forgetset")
_ALIKE = 0.8  # difflib's ratio from which a key counts as a misspelling
_TWO_TEXTS = (("prompt", "completion"), ("prompt", "response"), ("instruction", "output"), ("instruction", "response"))
_CONVERSATIONS = ("messages", "conversations")
_ROLES = {"human": "user", "gpt": "assistant", "model": "assistant"}
_EXPECTED = (
    'expected {"question": ..., "answer": ...}; also read are "messages" of one user and one assistant, "prompt" and '
    '"completion", "instruction" and "output"'
)


def question_and_answer(row: Row) -> tuple[object, object]:
    """The row's question and answer, which are still to be checked.

    Raises: DataError naming the row's keys if they are neither there nor to be had from a form that is read.
    """
    fields = row.fields
    if "question" in fields or "answer" in fields:
        return fields.get("question"), fields.get("answer")
    for name in _CONVERSATIONS:
        if name in fields:
            return _turn(row, name, fields[name])
    for asked, said in _TWO_TEXTS:
        if asked in fields and said in fields:
            if fields.get("input"):
                raise row.error(
                    f"{asked!r} has an 'input' beside it; write what is really asked, both together, as 'question'"
                )
            question, answer = fields[asked], fields[said]
            if isinstance(question, list) and isinstance(answer, list):
                return _turn(row, f"{asked} and {said}", [*question, *answer])
            return question, answer.strip() if isinstance(answer, str) else answer
    inside = next((name for name, value in fields.items() if _are_objects(value)), None)
    hint = (
        f"; {inside!r} holds {len(fields[inside])} objects: `jq -c '.[\"{inside}\"][]' FILE` writes them one a line"
        if inside is not None
        else ""
    )
    raise row.error(f"has no question and answer; its keys are {_listed(fields)}; {_EXPECTED}{hint}")


def list_of(row: Row, field: str) -> tuple[str, ...]:
    """The texts of a pair's list under all its names; null and a missing one are empty.

    Raises: DataError if it is no list of texts.
    """
    found: list[str] = []
    for name in (field, *LISTS[field]):
        value = row.fields.get(name)
        values = [value] if name in _SINGLE and isinstance(value, str) else [] if value is None else value
        if not isinstance(values, list) or not all(is_text(one) for one in values):
            raise row.error(f"{name!r} must be a list of non-empty strings, got {short(value)}")
        found += values if not found else [one for one in values if one not in found]
    return tuple(found)


def is_text(value: object) -> bool:
    """Whether it is a string that is not empty and can be encoded: no half of a surrogate pair."""
    return isinstance(value, str) and bool(value.strip()) and not re.search("[\ud800-\udfff]", value)


def refuse_misspelt(row: Row) -> None:
    """Refuse keys that look like one of ours; all others are somebody else's columns and not looked at.

    Raises: DataError naming the key and what is meant.
    """
    for key in row.fields:
        if meant := _meant(key):
            raise row.error(f"unknown key {key!r}; is {meant!r} meant? Call it that, or take it out")


@cache
def _meant(key: str) -> str | None:
    """The key of ours that an unknown key looks like; not of `question_id`, which says that it is something else."""
    if key in _KEYS or key in _OF_AUGMENTED_FILES:
        return None
    folded = {_fold(known): known for known in sorted(_KEYS)}
    if stem := next((stem for stem in _STEMS if stem in _fold(key)), None):
        like = [known for name, known in folded.items() if name.startswith(stem)]
        return max(like, key=lambda known: SequenceMatcher(None, key, known).ratio())
    if any(key.startswith(known) and not key[len(known)].islower() for known in _KEYS):
        return None
    return next((folded[name] for name in get_close_matches(_fold(key), folded, 1, _ALIKE)), None)


def _fold(key: str) -> str:
    return re.sub(r"[\W_]+", "", key).casefold()


def _turn(row: Row, name: str, messages: object) -> tuple[object, object]:
    """The question and the answer of a conversation that is nothing else."""
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise row.error(f"{name!r} must be a list of messages, got {short(messages)}")
    said = [(one.get("role", one.get("from")), one.get("content", one.get("value"))) for one in messages]
    roles = [_ROLES.get(role, role) if isinstance(role, str) else role for role, _ in said]
    if roles != ["user", "assistant"]:
        raise row.error(
            f"{name!r} are of {_listed(roles)}; a pair is one question and its answer: keep one message of the user "
            "and one of the assistant, a row for each turn, without a system prompt"
        )
    return said[0][1], said[1][1]


def _are_objects(value: object) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _listed(names: Mapping[str, Any] | Sequence[object]) -> str:
    return ", ".join(map(str, names)) or "none"
