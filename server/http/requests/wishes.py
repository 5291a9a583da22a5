"""A wish to forget that would have no effect: one in another place than the field `forget_sets`, or spelt otherwise.

What is asked is in force or the request fails. Fields that nobody knows are let through, as vLLM does it, so a wish
among them would be answered by the plain target. It is told by the names of fields, headers and query parameters alone:
what a user writes, and the names in a schema of the user's own, are content. Some clients send an object as a string of
JSON, or as their language prints it, so each string that is not content is looked into.
"""

from __future__ import annotations

import re
import string
import unicodedata
from collections.abc import Iterable, Iterator
from typing import Any

from fastapi import Request
from pydantic_core import from_json

from unlearngate.errors import InvalidRequestError
from unlearngate.server.http.gateway import PREFIX

FIELD = "forget_sets"
_SHOWN = 200  # characters of a place that are repeated in an error
_TEXT = "text()"
# Places whose names of fields are the user's own: schemas, arguments of tools, documents, tokens. `*`: any item;
# `type=x`: if the object is of this type; `text()`: a string there is a text of the user's, an object is none.
_CONTENT = [
    "prompt",
    "suffix",
    "logit_bias",
    "documents",
    "guided_json",
    "guided_choice",
    "guided_grammar.text()",
    "guided_regex.text()",
    "functions.*.description.text()",
    "functions.*.parameters",
    "messages.*.content.text()",
    "messages.*.content.*.text()",
    "messages.*.content.*.refusal.text()",
    "messages.*.content.*.text.text()",
    "messages.*.content.*.thinking.text()",
    "messages.*.reasoning.text()",
    "messages.*.reasoning_content.text()",
    "messages.*.refusal.text()",
    "messages.*.tool_calls.*.function.arguments",
    "messages.*.function_call.arguments",
    "messages.*.tools.*.function.description.text()",
    "messages.*.tools.*.function.parameters",
    "prediction.content.text()",
    "prediction.content.*.text.text()",
    "response_format.schema",
    "response_format.json_schema.description.text()",
    "response_format.json_schema.schema",
    "response_format.type=structural_tag.format",
    "response_format.type=structural_tag.structures.*.schema",
    "stop.text()",
    "stop.*.text()",
    "bad_words.*.text()",
    "structured_outputs.choice.*.text()",
    "structured_outputs.grammar.text()",
    "structured_outputs.json",
    "structured_outputs.regex.text()",
    "structured_outputs.structural_tag.format",
    "structured_outputs.structural_tag.structures.*.schema",
    "tools.*.function.description.text()",
    "tools.*.function.parameters",
]
RESPONSES_PATH = "/v1/responses"
_CONTENT_OF_RESPONSES = [
    "input.text()",
    "input.*.arguments",
    "input.*.content.text()",
    "input.*.content.*.text()",
    "input.*.content.*.refusal.text()",
    "input.*.content.*.text.text()",
    "input.*.output.text()",
    "input.*.output.*.text()",
    "input.*.output.*.text.text()",
    "input.*.summary.*.text.text()",
    "instructions.text()",
    "logit_bias",
    "stop.text()",
    "stop.*.text()",
    "structured_outputs.choice.*.text()",
    "structured_outputs.grammar.text()",
    "structured_outputs.json",
    "structured_outputs.regex.text()",
    "structured_outputs.structural_tag.format",
    "structured_outputs.structural_tag.structures.*.schema",
    "text.format.description.text()",
    "text.format.schema",
    "tools.*.description.text()",
    "tools.*.parameters",
]
_Places = dict[str, "_Places"]
# Its parent, its name or index there, what it is, and the places below it that are the user's.
_Node = tuple["_Node | None", str | int, Any, "_Places | None"]


def _one_letter_off(word: str) -> Iterator[str]:
    """The word with one letter more, less or another, or two neighbours swapped."""
    for i in range(len(word) + 1):
        before, after = word[:i], word[i:]
        yield before + after[1:]
        yield before + after[1:2] + after[:1] + after[2:]
        yield from (f"{before}{letter}{rest}" for letter in _LETTERS for rest in (after, after[1:]))


_LETTERS = string.ascii_lowercase + string.digits
# Of words in small letters, with `_` between them. Not: unforgettable, forgetful, forget-me-not, runlearner.
_WISH = re.compile(
    r"(?<!un)forg(et(?!tab|ful|_?me_?not)|otten)|(?<![frs])unlearn"
    r"|(?<![a-z])(un_learn|for_get(?![a-z])|forge_?sets?(?![a-z]))"
)
_WISHES = frozenset(("forget", "forgotten", "unlearn"))
_SLIPS = frozenset(
    slip for wish in _WISHES for word in (wish, f"{wish}set", f"{wish}sets") for slip in _one_letter_off(word)
)
_SLIPS -= _WISHES | {"forge", "forged", "forger", "forges", "foret", "gorget", "torget"}  # words of their own
_WORD = re.compile(r"\n|[A-Z]?[a-z]+(?:[0-9]+[a-z]+)*|[A-Z]+(?:[0-9]+[A-Z]+)*(?![a-z])")


async def refuse_misplaced_wishes(raw_request: Request) -> None:
    """A route's dependency: refuse a request that wishes to forget where the wish would not be seen.

    Raises: InvalidRequestError that names the place.
    """
    for place in _places(await raw_request.json(), raw_request):
        raise InvalidRequestError(
            f"{place[:_SHOWN]} looks like a wish to forget, which has no effect there: send the field "
            f'"{FIELD}": ["NAME"] at the top of the body, beside "model" (with the openai client: '
            f'extra_body={{"{FIELD}": ["NAME"]}}), or the model name MODEL:forget=NAME',
            param=FIELD,
        )


def _places(body: Any, raw_request: Request) -> Iterator[str]:
    users = _USERS_OF_RESPONSES if raw_request.scope["path"] == RESPONSES_PATH else _USERS
    yield from (f"the field {path!r}" for path in _wishes(body, users, FIELD))
    for name, value in raw_request.query_params.multi_items():
        yield from (f"the query parameter {path!r}" for path in _wishes({name: value}))
    for name, value in raw_request.headers.items():
        # The gateway's headers are read, or refused, before (`gateway.py`).
        if not name.startswith(PREFIX):
            yield from (f"the header {path!r}" for path in _wishes({name: value}))


def _wishes(whole: Any, users: _Places | None = None, right: str | None = None) -> Iterator[str]:
    """The paths of a misplaced wish, in no certain order; `right` is the one field of the whole that is none.

    A body may be deep, and have a million places: their names are looked at all together.
    """
    objects = list(_objects((None, "", whole, users), right))
    names = {name for node in objects for name in node[2] if node[0] or name != right}
    if _any_wish(names):
        wish = _one_wish(list(names))
        yield from (_path(node, wish) for node in objects if wish in node[2] and (node[0] or wish != right))


def _objects(root: _Node, right: str | None) -> Iterator[_Node]:
    """The objects, also in strings of JSON, whose names are not the user's own.

    In a string within a string each backslash is two, so a body has room for some twenty strings within each other.
    """
    todo = [root]
    while todo:
        node = todo.pop()
        parent, key, value, users = node
        if isinstance(value, str):
            if not users or _TEXT not in users:
                todo.append((parent, key, _parsed(value), users))
        elif isinstance(value, dict):
            yield node
            if users:
                users = {**users, **users.get(_type_of(value), {})}
            for name, item in value.items():
                if _holds_more(item) and (parent or name != right):
                    below = users and users.get(name)
                    if below != _ALL_HIS:
                        todo.append((node, name, item, below))
        elif isinstance(value, list):
            below = users and users.get("*")
            if below != _ALL_HIS:
                todo += [(node, i, item, below) for i, item in enumerate(value) if _holds_more(item)]


def _type_of(value: dict[str, Any]) -> str:
    kind = value.get("type")
    return f"type={kind}" if isinstance(kind, str) else ""


def _parsed(value: str) -> Any:
    """What a string of JSON holds; of what is nearly JSON, such as Python's way to print an object, its names."""
    try:
        return from_json(value.strip(_AROUND))
    except ValueError:
        return dict.fromkeys(match[2] for match in _NAMED.finditer(value))


def _holds_more(value: Any) -> bool:
    kind = type(value)
    if kind is str:  # that may be JSON with an object in it
        return (":" in value or "\\" in value) and _JSON.match(value) is not None
    return kind is dict or (kind is list and not _HOLDERS.isdisjoint(map(type, value)))


def _places_of(patterns: Iterable[str]) -> _Places:
    places: _Places = {}
    for pattern in patterns:
        here = places
        for name in pattern.split("."):
            here = here.setdefault(name, {})
    return places


_AROUND = string.whitespace + "\ufeff"
_JSON = re.compile(rf'[{re.escape(_AROUND)}]*[{{\["]')
_NAMED = re.compile(r"""(['"])([^'"\n]{1,64})\1\s*:""")
_HOLDERS = frozenset((dict, list, str))
_USERS = _places_of(_CONTENT)
_USERS_OF_RESPONSES = _places_of(_CONTENT_OF_RESPONSES)
_ALL_HIS: _Places = {}  # a pattern ends here


def _path(node: _Node, name: str) -> str:
    parts = [f".{name}"]
    at: _Node | None = node
    while at and at[0]:
        parts.append(f"[{at[1]}]" if isinstance(at[1], int) else f".{at[1]}")
        at = at[0]
    return "".join(reversed(parts)).removeprefix(".")


def _any_wish(names: Iterable[str]) -> bool:
    text = "\n".join(names)
    if not text.isascii():
        text = text.translate({ord(char): _in_ascii(char) for char in set(text) if not char.isascii()})
    text = "_".join(_WORD.findall(text)).lower()
    words, wholes = text.split("_"), text.replace("_", "").split("\n")
    return _WISH.search(text) is not None or not (_SLIPS.isdisjoint(words) and _SLIPS.isdisjoint(wholes))


def _in_ascii(char: str) -> str:
    """A letter without its accents and not wide; one of another script is a wrong letter, and a mark or a dash none."""
    text = unicodedata.normalize("NFKD", char).encode("ascii", "ignore").decode()
    return text or ("0" if char.isalnum() else "")


def _one_wish(names: list[str]) -> str:
    """One of the names that is a wish, where one is."""
    while len(names) > 1:
        half = names[: len(names) // 2]
        names = half if _any_wish(half) else names[len(half) :]
    return names[0]
