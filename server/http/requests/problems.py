"""What is wrong with a body, as one sentence: pydantic's problems, with the ways of a union that the body did not go.

Pydantic tries every way of a union and reports all that is wrong with each. Which way was meant is told by the body:
the way on which its `type` or `role` fits, or else the one on which validation came furthest.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any, NamedTuple

_Path = tuple[str | int, ...]
_LITERALS = ("literal_error", "enum")
_WORD = re.compile(r"'[^']*'|\b(?!or\b)[^\s,']+")
_KINDS = ("type", "role")  # fields that say which way of a union is meant
_NAMES = {
    "string": "a string",
    "bytes": "a string",
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "list": "a list",
    "iterable": "a list",
    "tuple": "a list",
    "set": "a list",
    "dict": "an object",
    "model": "an object",
    "mapping": "an object",
    "dataclass": "an object",
    "none": "null",
}
_LIMITS = {
    "too_long": "have at most {max_length} items",
    "too_short": "have at least {min_length} items",
    "string_too_long": "have at most {max_length} characters",
    "string_too_short": "have at least {min_length} characters",
    "greater_than": "be above {gt}",
    "greater_than_equal": "be at least {ge}",
    "less_than": "be below {lt}",
    "less_than_equal": "be at most {le}",
    "string_pattern_mismatch": "match {pattern}",
}
# What a client's author would type, where the kind of value alone does not say it.
_EXAMPLES = {
    "prompt": '"..."',
    "messages": '[{"role": "user", "content": "..."}]',
    "response_format": '{"type": "json_object"}',
    "structured_outputs": '{"choice": ["yes", "no"]}',
    "tools": '[{"type": "function", "function": {"name": "...", "parameters": {}}}]',
    "tool_choice": '"auto" or {"type": "function", "function": {"name": "..."}}',
    "stream_options": '{"include_usage": true}',
    "logit_bias": '{"TOKEN_ID": -100}',
    "input": '[{"role": "user", "content": "..."}]',
    "text": '{"format": {"type": "json_object"}}',
    "reasoning": '{"effort": "low"}',
}


class _Problem(NamedTuple):
    way: str  # of the union that it was found on, if in one
    path: _Path
    kind: str
    details: dict[str, Any]


def sentence_of(problems: Sequence[Any], body: Any) -> tuple[str, str | None]:
    """The problems as one sentence, and the field that it is about.

    Args:
        problems: of pydantic, as `ValidationError.errors()` has them.
        body: what was validated.
    """
    first = problems[0] if problems else "the body is not what this route expects"
    if not isinstance(first, dict):
        return str(first), None
    if first["type"] == "json_invalid":
        return f"the body is not valid JSON: {first.get('ctx', {}).get('error', first['msg'])}", None
    fitting = _fitting([_problem(details, body) for details in problems])
    path, kind, details = fitting[0].path, fitting[0].kind, fitting[0].details
    where, field = _shown(path) or "the body", str(path[0]) if path else None
    if kind == "missing":
        return f"{where} is missing", field
    if kind == "extra_forbidden":
        return f"{where} is no field of this request; leave it out", field
    expected = _expected(fitting)
    if not expected:
        return f"{where}: {details['msg'].removeprefix('Value error, ')}", field
    example = f", for example {_EXAMPLES[field]}" if len(path) == 1 and field in _EXAMPLES else ""
    given: Any = details.get("input")
    shown = f"{len(given)} items" if kind in ("too_long", "too_short") else reprlib.repr(given)
    return f"{where} must {expected}{example}, got {shown}", field


def _problem(details: dict[str, Any], body: Any) -> _Problem:
    """Tell the steps into the body from the names of a union's ways, which pydantic puts among them."""
    if details["loc"][:1] in [("query",), ("path",), ("header",)]:
        return _Problem("", tuple(details["loc"][1:]), details["type"], details)
    path: list[str | int] = []
    ways: list[str] = []
    at = body
    location = [part for part in details["loc"] if part != "body"]
    for i, part in enumerate(location):
        if isinstance(part, int) and isinstance(at, list) and part < len(at):
            at = at[part]
        elif isinstance(part, str) and isinstance(at, dict) and part in at:
            at = at[part]
        elif details["type"] != "missing" or i < len(location) - 1:
            ways.append(f"{len(path)}:{part}")
            continue
        path.append(part)
    return _Problem("/".join(ways[:1]), tuple(path), details["type"], details)


def _fitting(problems: Sequence[_Problem]) -> list[_Problem]:
    """The problems at the place of the body that is wrong, of the ways that were meant."""
    ways = list(_ways(problems))
    meant = [way for way in ways if not any(_is_another_kind(p) for p in way)] or ways
    meant = [way for way in meant if not _is_another_type(way)] or meant
    furthest = max(meant, key=lambda way: _reached(way[0]))
    same = [p for way in meant for p in way if p.path == furthest[0].path]
    of_a_type = [p for p in same if p.kind != "missing"]
    return of_a_type or same


def _ways(problems: Sequence[_Problem]) -> Iterator[list[_Problem]]:
    """The problems by the way that they were found on. Ways of one name begin with the field that tells them apart."""
    for _, group in groupby(problems, key=lambda p: p.way):
        way: list[_Problem] = []
        for problem in group:
            if way and _is_another_kind(problem) and way[0].way.endswith("]"):
                yield way
                way = []
            way.append(problem)
        yield way


def _is_another_kind(problem: _Problem) -> bool:
    return problem.kind == "literal_error" and len(problem.path) > 1 and problem.path[-1] in _KINDS


def _is_another_type(way: Sequence[_Problem]) -> bool:
    """Whether all that the way says is that the whole value is of another type."""
    depth = int(way[0].way.partition(":")[0] or -1)
    return len(way[0].path) == depth and way[0].kind.rpartition("_")[2] in ("type", "parsing")


def _reached(problem: _Problem) -> tuple[int, bool, list[int]]:
    return len(problem.path), problem.kind != "missing", [part for part in problem.path if isinstance(part, int)]


def _expected(problems: Sequence[_Problem]) -> str:
    limits = [_LIMITS[p.kind].format(**p.details["ctx"]) for p in problems if p.kind in _LIMITS]
    literals = [w for p in problems if p.kind in _LITERALS for w in _WORD.findall(p.details["ctx"]["expected"])]
    types = [_type_of(p) for p in problems]
    kinds = list(dict.fromkeys([*literals, *filter(None, types)]))
    if limits or not kinds:
        return limits[0] if limits else ""
    return "be " + " or ".join(filter(None, [", ".join(kinds[:-1]), kinds[-1]]))


def _type_of(problem: _Problem) -> str | None:
    listed = re.fullmatch(r"\d+:list\[(\w+)\]", problem.way)
    if problem.kind == "list_type" and listed and listed[1] == "str":
        return "a list of strings"
    name = problem.kind.partition("_")[0]
    return _NAMES.get(name) if problem.kind.rpartition("_")[2] in ("type", "parsing", "float", "size") else None


def _shown(path: _Path) -> str:
    return "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in path).removeprefix(".")
