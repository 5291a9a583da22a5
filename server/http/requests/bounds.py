"""How much work one request may ask for, looked at before any of it is done: one client must not hold up the others.

A definition is what an answer must match: a JSON schema, a regular expression, a grammar, a list of choices, the
parameters of a tool that must be called. Compiling one takes longer the more alternatives it has, and the larger it is
when its bounded repeats are written out.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from fastapi import Request

from unlearngate.errors import InvalidRequestError

_REPEATED = ("minLength", "maxLength", "minItems", "maxItems", "minProperties", "maxProperties")
_TEXTS = ("pattern", "regex", "grammar", "json", "structural_tag")
_BIASES = ("logit_bias", "bad_words", "stop_token_ids")
# The engine gets a copy of them for every sequence. Definitions have bounds of their own.
_COPIED = ("stop", "logit_bias", "bad_words", "stop_token_ids", "allowed_token_ids", "logprob_token_ids", "vllm_xargs")
# What a chat template writes into the prompt, and what it also writes beside these.
_CONVERSATIONS = ("messages", "input")
_BESIDE_MESSAGES = ("instructions", "tools", "documents", "chat_template_kwargs")
_COUNTED = 10**9  # nested repeats make numbers that nobody could print
_REPEAT = re.compile(r"\{(\d+)(?:,(\d*))?\}")


@dataclass(frozen=True, slots=True)
class Bounds:
    """Of one request. Each is an option of `unlearngate serve`, which errors name.

    Attributes:
        sequences: prompts times `n`.
        prompt_chars: of each text prompt, or of a whole conversation.
        request_chars: of all that a request has tokenised. One tokenizer works for all requests, one after the other.
        messages: messages or items of `input`, the entries of their lists (parts, tool calls) and tools, together.
        definition_kb: KiB of a definition, as JSON.
        definition_items: properties of an object, alternatives, rules: entries of one list or object that are no
            plain values; lines of a grammar.
        repeats: characters or items, when the bounded repeats of a definition are written out.
        biases: entries of `logit_bias`, `bad_words` and `stop_token_ids`.
        parameters_kb: KiB of what is copied for every sequence, as JSON, times the sequences.
    """

    sequences: int
    prompt_chars: int
    request_chars: int
    messages: int
    definition_kb: int
    definition_items: int
    repeats: int
    biases: int
    parameters_kb: int

    def check(self, body: Any) -> None:
        """Check a request's body, valid or not.

        Raises: InvalidRequestError that names the field, the bound and its option.
        """
        if not isinstance(body, dict):
            return
        for field in _CONVERSATIONS:
            what = "messages, parts of them, tool calls and tools"
            self._most(field, what, _num_messages(body, field), "messages")
        for place, definition in definitions(body):
            self._check_definition(place, definition)
        prompts = _prompts(body)
        n = body.get("n")
        num_sequences = len(prompts) * (n if isinstance(n, int) else 1)
        self._most("n", "sequences (prompts times n)", num_sequences, "sequences")
        for place, chars in prompts:
            self._most(place, "characters", chars, "prompt_chars")
        tokenised = sum(chars for _, chars in prompts) + _num_chars(body.get("bad_words"))
        field = prompts[-1][0].partition("[")[0]
        self._most(field, "characters, with all else that is tokenised", tokenised, "request_chars")
        for field in _BIASES:
            entries = body.get(field)
            if isinstance(entries, dict | list):
                self._most(field, "entries", len(entries), "biases")
        copied = {field: _size(field, body[field]) for field in _COPIED if body.get(field)}
        if copied:
            field = max(copied, key=lambda name: copied[name])
            what = "KiB for all sequences (prompts times n), with the other parameters that each sequence gets"
            self._most(field, what, -(-sum(copied.values()) * num_sequences // 1024), "parameters_kb")

    def _check_definition(self, place: str, definition: Any) -> None:
        self._most(place, "KiB", -(-_size(place, definition) // 1024), "definition_kb")
        todo = [definition]
        while todo:
            value = _read(todo.pop())
            if isinstance(value, str):
                self._most(place, "lines", value.count("\n") + 1, "definition_items")
                self._most(place, "characters with repeats written out", written_out(value), "repeats")
            elif isinstance(value, dict | list):
                items = list(value.values() if isinstance(value, dict) else value)
                larger = [item for item in items if isinstance(item, dict | list)]
                self._most(place, "properties or alternatives in one place", len(larger), "definition_items")
                todo += larger
                if isinstance(value, dict):
                    todo += [text for key, text in value.items() if key in _TEXTS and isinstance(text, str)]
                    for key in _REPEATED:
                        if isinstance(most := value.get(key), int):
                            self._most(place, key, most, "repeats")

    def _most(self, place: str, what: str, asked: int, bound: str) -> None:
        most = getattr(self, bound)
        if asked > most:
            raise InvalidRequestError(
                f"{place} has {asked:,} {what}, this server takes at most {most:,} (--max-{bound.replace('_', '-')})",
                param=place.partition(".")[0].partition("[")[0],
            )


async def refuse_beyond_bounds(raw_request: Request) -> None:
    """A route's dependency; the bounds are the application's `state.bounds`.

    Raises: InvalidRequestError.
    """
    raw_request.app.state.bounds.check(await raw_request.json())


def written_out(pattern: str) -> int:
    """How many single characters a regular expression or grammar has when its bounded repeats are written out.

    `(ab{3}){0,10}` has 40. What follows a brace without numbers, is quoted, escaped or in brackets is a character.
    """
    groups: list[list[int]] = [[]]  # of each open group: the sizes of its parts
    at = 0
    while at < len(pattern):
        char = pattern[at]
        if char == "(":
            groups.append([])
        elif char == ")" and len(groups) > 1:
            inner = sum(groups.pop())
            groups[-1].append(inner)
        elif char in '["':
            close, at = "]" if char == "[" else '"', at + 1
            while at < len(pattern) and pattern[at] != close:
                at += 1 + (pattern[at] == "\\")
            groups[-1].append(1)
        elif (repeat := _REPEAT.match(pattern, at)) and groups[-1]:
            times = max(int(number[:9]) for number in repeat.groups() if number)
            groups[-1][-1] = min(_COUNTED, groups[-1][-1] * times)
            at = repeat.end() - 1
        else:
            at += char == "\\"
            groups[-1].append(1)
        at += 1
    return sum(map(sum, groups))


def _size(place: str, value: Any) -> int:
    try:
        return len(value if isinstance(value, str) else json.dumps(value))
    except RecursionError:
        raise InvalidRequestError(f"{place} is nested too deeply") from None


def _read(definition: Any) -> Any:
    """A definition that is JSON in a string, read; any other as it is."""
    if isinstance(definition, str) and definition.lstrip()[:1] in ("{", "["):
        with suppress(ValueError, RecursionError):
            return json.loads(definition)
    return definition


def definitions(body: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Where a body may have definitions, and those that it has."""
    for field in ("response_format", "structured_outputs"):
        if isinstance(body.get(field), dict):
            yield field, body[field]
    text = body.get("text")
    if isinstance(text, dict) and isinstance(text.get("format"), dict):
        yield "text.format", text["format"]
    for field in ("guided_json", "guided_regex", "guided_choice", "guided_grammar"):
        if body.get(field):
            yield field, body[field]
    choice, tools = body.get("tool_choice"), body.get("tools")
    for i, tool in enumerate(tools if isinstance(tools, list) else ()):
        wrapped = isinstance(tool, dict) and isinstance(tool.get("function"), dict)  # in chat, not in /v1/responses
        function = tool["function"] if wrapped else tool
        if isinstance(function, dict) and (function.get("strict") or choice == "required" or isinstance(choice, dict)):
            yield f"tools[{i}].{'function.' if wrapped else ''}parameters", function.get("parameters")


def _num_messages(body: dict[str, Any], field: str) -> int:
    messages = body.get(field)
    messages = messages if isinstance(messages, list) else []
    within = (value for message in messages if isinstance(message, dict) for value in message.values())
    return sum(len(value) for value in (messages, body.get("tools"), *within) if isinstance(value, list))


def _prompts(body: dict[str, Any]) -> list[tuple[str, int]]:
    """Where the prompts of a body are, and how many characters each has; what its route does not read counts too."""
    beside = sum(_num_chars(body.get(field), names=True) for field in _BESIDE_MESSAGES)
    found = [(field, _num_chars(body[field]) + beside) for field in _CONVERSATIONS if field in body]
    prompt = body.get("prompt")
    if isinstance(prompt, list) and not all(isinstance(token, int) for token in prompt):
        return [*found, *((f"prompt[{i}]", _num_chars(one)) for i, one in enumerate(prompt))]
    return [*found, ("prompt", _num_chars(prompt))] if "prompt" in body or not found else found


def _num_chars(value: Any, *, names: bool = False) -> int:
    """How many characters the strings in a value have, and with `names` the names of its fields."""
    count, todo = 0, [value]
    while todo:
        one = todo.pop()
        if isinstance(one, str):
            count += len(one)
        elif isinstance(one, dict):
            count += sum(map(len, one)) if names else 0
            todo += one.values()
        elif isinstance(one, list):
            todo += one
    return count
