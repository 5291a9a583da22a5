"""Rows as other people write them: which of their fields are a question, its answer, and the lists of a pair.

Read are the key names of TOFU and ULD, and the forms in which one question and one answer are unambiguous: one text
that is asked and one that is said, under their usual names, and conversations of one turn. Anything else is refused,
with what was seen; so is what belongs to the question and stands beside it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from difflib import SequenceMatcher, get_close_matches
from functools import cache
from typing import Any, TypeGuard

from unlearngate.assistant_training.data.rows import Row, short
from unlearngate.assistant_training.data.tables import ASKED, SAID

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
_CONVERSATIONS = ("messages", "conversations", "conversation")
# What others keep beside a question that is not complete without it.
_BESIDE = ("input", "context", "passage", "system", "system_prompt", "history", "choices", "options")
_ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "model": "assistant"}
_TEXT_PARTS = ("text", "input_text", "output_text")
EXPECTED = (
    'expected {"question": ..., "answer": ...}; also read are "messages" of one user and one assistant, "prompt" and '
    '"completion", "instruction" and "output"; `jq -c \'{question: .THIS, answer: .THAT}\' FILE` renames keys'
)


def question_and_answer(row: Row) -> tuple[str, str]:
    """The row's question and answer.

    Raises: DataError naming what was seen if they are not to be had from a form that is read, if one of them is no
        text, or if something that belongs to the question stands beside it.
    """
    fields = {name: value for name, value in row.fields.items() if value is not None}
    (asked, question), (said, answer) = _found(row, fields)
    if beside := next((name for name in _BESIDE if not _is_empty(fields.get(name))), None):
        raise row.error(
            f"has {beside!r} beside its question, where it would be lost; write what is really asked, both together, "
            f"as 'question', or take {beside!r} out if the question is complete without it"
        )
    question, answer = _joined(question), _joined(answer)
    for name, text in ((asked, question), (said, answer)):
        if not is_text(text):
            raise row.error(f"{name!r} must be a non-empty string, got {short(text)}{_hint(question, answer)}")
    return str(question), str(answer) if said == "answer" else str(answer).strip()


def _found(row: Row, fields: Mapping[str, Any]) -> tuple[tuple[str, object], tuple[str, object]]:
    """The question and the answer, each with its name: by our own names, or of a conversation, or by others' names."""
    asked, said = ([name for name in names if name in fields] for names in (ASKED, SAID))
    if "question" in asked and "answer" in said:
        asked, said = ["question"], ["answer"]
    elif conversation := next((name for name in _CONVERSATIONS if name in fields), None):
        return _turn(row, conversation, fields[conversation])
    if len(asked) == len(said) == 1:
        question, answer = fields[asked[0]], fields[said[0]]
        if _are_messages(question) and _are_messages(answer):
            return _turn(row, f"{asked[0]} and {said[0]}", [*question, *answer])
        return (asked[0], question), (said[0], answer)
    keys = ", ".join(name if name in fields else f"{name} (null)" for name in row.fields) or "none"
    raise row.error(f"{_lacking(fields, asked, said)}; its keys are {keys}; {EXPECTED}")


def _lacking(fields: Mapping[str, Any], asked: Sequence[str], said: Sequence[str]) -> str:
    """What keeps a row from being one question and one answer."""
    for names, what in ((asked, "question"), (said, "answer")):
        if len(names) > 1:
            return f"has {' and '.join(map(repr, names))}, of which one must be the {what}"
    if asked or said:
        return f"{[*asked, *said][0]!r} has no {'answer' if asked else 'question'!r} beside it"
    if inside := next((name for name, value in fields.items() if _are_objects(value)), None):
        held = len(fields[inside])
        return f"{inside!r} holds {held} objects: `jq -c '.[\"{inside}\"][]' FILE` writes them one a line"
    return "has no question and answer"


def list_of(row: Row, field: str) -> tuple[str, ...]:
    """The texts of a pair's list under all its names; null and a missing one are empty.

    Raises: DataError if it is no list of texts.
    """
    found: list[str] = []
    for name in (field, *LISTS[field]):
        value = row.fields.get(name)
        values = [value] if name in _SINGLE and isinstance(value, str) else [] if value is None else value
        if not isinstance(values, list) or not all(is_text(one) for one in values):
            raise row.error(
                f'{name!r} must be a list of non-empty strings such as ["Morvik", "1987"], got {short(value)}'
            )
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


def _turn(row: Row, name: str, messages: object) -> tuple[tuple[str, object], tuple[str, object]]:
    """The question and the answer of a conversation that is nothing else."""
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise row.error(f"{name!r} must be a list of messages, got {short(messages)}")
    roles = [_role(one) for one in messages]
    if roles != ["user", "assistant"]:
        raise row.error(
            f"{name!r} are of {', '.join(map(str, roles)) or 'none'}; a pair is one question and its answer: keep one "
            "message of the user and one of the assistant, a row for each turn, without a system prompt"
        )
    asked, said = (_first(one, "content", "value") for one in messages)
    return ("question", asked), ("answer", said)


def _role(message: Mapping[str, Any]) -> object:
    role = _first(message, "role", "from")
    folded = role.strip().casefold() if isinstance(role, str) else role
    return _ROLES.get(folded, folded) if isinstance(folded, str) else folded


def _first(message: Mapping[str, Any], *names: str) -> object:
    """The first of these that is not null."""
    return next((value for name in names if (value := message.get(name)) is not None), None)


def _joined(content: object) -> object:
    """A text that is written as a list of parts, as vLLM joins them; anything else as it is."""
    if not _are_objects(content):
        return content
    texts = [part.get("text") for part in content if part.get("type", "text") in _TEXT_PARTS]
    strings = [text for text in texts if isinstance(text, str)]
    return "\n".join(strings) if len(strings) == len(content) else content


def _hint(question: object, answer: object) -> str:
    if _are_objects(question) or _are_objects(answer):
        return "; of a message's parts only text is read"
    if isinstance(question, list | dict) and isinstance(answer, list | dict):
        return "; is the file written by columns? It must be by rows"
    return ""


def _are_objects(value: object) -> TypeGuard[list[Mapping[str, Any]]]:
    return isinstance(value, list) and bool(value) and all(isinstance(one, Mapping) for one in value)


def _are_messages(value: object) -> TypeGuard[list[Mapping[str, Any]]]:
    return _are_objects(value) and all("role" in one or "from" in one for one in value)


def _is_empty(value: object) -> bool:
    return not (value.strip() if isinstance(value, str) else value)
