"""A wish to forget that would have no effect: one in another place than the field `forget_sets`, or spelt otherwise.

What is asked is in force or the request fails. Fields that nobody knows are let through, as vLLM does it, so a wish
among them would be answered by the plain target. It is told by the names of fields, headers and query parameters alone:
what a user writes, and the names in a schema of the user's own, are content. Some clients send an object as a string of
JSON, so one in another field than those of text is looked into.
"""

from __future__ import annotations

import json
import re
import string
from collections.abc import Iterable, Iterator
from contextlib import suppress
from typing import Any

from fastapi import Request

from unlearngate.errors import InvalidRequestError
from unlearngate.server.http.gateway import PREFIX

FIELD = "forget_sets"
_SHOWN = 200  # characters of a place that are repeated in an error
_NO_LETTER = re.compile(r"[^\w\n]+|_+")
# Places whose names of fields are the user's own: schemas, arguments of tools, documents, tokens. `*`: any item.
_CONTENT = [
    "prompt",
    "suffix",
    "logit_bias",
    "documents",
    "guided_json",
    "functions.*.parameters",
    "messages.*.tool_calls.*.function.arguments",
    "messages.*.function_call.arguments",
    "messages.*.tools.*.function.parameters",
    "response_format.schema",
    "response_format.json_schema.schema",
    "response_format.structures.*.schema",
    "response_format.format",
    "structured_outputs.json",
    "tools.*.function.parameters",
    "tools.*.parameters",
]
_Places = dict[str, "_Places"]
# Its parent, its name or index there, the list or object, and the places below it that are the user's.
_Node = tuple["_Node | None", str | int, Any, "_Places | None"]


def _one_letter_off(word: str) -> Iterator[str]:
    """The word with one letter more, less or another, or two neighbours swapped."""
    for i in range(len(word) + 1):
        before, after = word[:i], word[i:]
        yield before + after[1:]
        yield before + after[1:2] + after[:1] + after[2:]
        yield from (f"{before}{letter}{rest}" for letter in _LETTERS for rest in (after, after[1:]))


# Of a name in small letters and nothing else. Not: unforgettable, forgetful, forget-me-not.
_WISH = re.compile(r"(?<!un)forget(?!tab|ful|menot)|forgottensets?|unlearn")
_LETTERS = string.ascii_lowercase + string.digits
_SLIPS = frozenset(slip for word in ("forgetset", "forgetsets") for slip in _one_letter_off(word))


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
    yield from (f"the field {path!r}" for path in _fields(body))
    yield from (f"the query parameter {name!r}" for name in raw_request.query_params if _any_wish([name]))
    for name in raw_request.headers:
        # The gateway's headers are read, or refused, before (`gateway.py`).
        if not name.startswith(PREFIX) and _any_wish([name]):
            yield f"the header {name!r}"


def _fields(body: Any) -> Iterator[str]:
    """The paths of misplaced wishes in a body, in no certain order. A body may be deep, and have a million places."""
    if isinstance(body, dict):
        body = {name: item if name == "messages" else _unpacked(item) for name, item in body.items()}
    todo: list[_Node] = [(None, "", body, _USERS)]
    while todo:
        node = todo.pop()
        parent, _, value, users = node
        if isinstance(value, dict):
            if _any_wish(value):
                yield from (_path(node, name) for name in value if _any_wish([name]) and (parent or name != FIELD))
            for name, item in value.items():
                if _holds_more(item) and (parent or name != FIELD):
                    below = users and users.get(name)
                    if below != _ALL_HIS:
                        todo.append((node, name, item, below))
        elif isinstance(value, list):
            below = users and users.get("*")
            todo += [(node, i, item, below) for i, item in enumerate(value) if _holds_more(item)]


def _unpacked(value: Any) -> Any:
    """What a string of JSON holds, or each of an object's own fields that is one."""
    if isinstance(value, dict):
        return {name: _parsed(item) for name, item in value.items()}
    return _parsed(value)


def _parsed(value: Any) -> Any:
    if type(value) is str and value.lstrip().startswith(("{", "[")):
        with suppress(ValueError, RecursionError):
            return json.loads(value)
    return value


def _holds_more(value: Any) -> bool:
    kind = type(value)
    return kind is dict or (kind is list and not _HOLDERS.isdisjoint(map(type, value)))


def _places_of(patterns: Iterable[str]) -> _Places:
    places: _Places = {}
    for pattern in patterns:
        here = places
        for name in pattern.split("."):
            here = here.setdefault(name, {})
    return places


_HOLDERS = frozenset((dict, list))
_USERS = _places_of(_CONTENT)
_ALL_HIS: _Places = {}  # a pattern ends here


def _path(node: _Node, name: str) -> str:
    parts = [f".{name}"]
    at: _Node | None = node
    while at and at[0]:
        parts.append(f"[{at[1]}]" if isinstance(at[1], int) else f".{at[1]}")
        at = at[0]
    return "".join(reversed(parts)).removeprefix(".")


def _any_wish(names: Iterable[str]) -> bool:
    bare = _NO_LETTER.sub("", "\n".join(names).casefold())
    return bool(_WISH.search(bare)) or not _SLIPS.isdisjoint(bare.split("\n"))
