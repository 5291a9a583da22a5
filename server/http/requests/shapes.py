"""What vLLM's request models leave unchecked, or refuse in words that hide the reason.

vLLM reads the parts of a message's content lazily, long after the body was validated, and takes fewer spellings of them
than it reads. Some of its validators run before the types are checked, and take them for granted. Its messages to the
engine hold integers of 64 bits only, and its chat templates get a request's switches as Python arguments.
"""

from __future__ import annotations

import re
import reprlib
from collections.abc import Iterable
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from unlearngate.errors import InvalidRequestError
from unlearngate.server.http.requests.bounds import definitions
from unlearngate.server.http.requests.problems import sentence_of

# A content part's type, and the field with its text. Targets read text only.
_TEXTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
# Of the functions that render a chat template. A switch of such a name would take the place of what they are given.
RESERVED_SWITCHES = {
    "self",
    "messages",
    "conversation",
    "conversations",
    "tokenizer",
    "model_config",
    "tools",
    "documents",
    "chat_template",
    "tokenize",
    "padding",
    "truncation",
    "max_length",
    "return_tensors",
    "return_dict",
    "return_assistant_tokens_mask",
    "tokenizer_kwargs",
}
_FIELDS_OF_THEIR_OWN = {"messages", "tools", "documents"}
# What a structured output is defined by, and the type of a response format that does the same.
_KINDS = {
    "json": "json_schema",
    "regex": "",
    "choice": "",
    "grammar": "",
    "json_object": "json_object",
    "structural_tag": "structural_tag",
}
# To the engine, but for definitions among them.
_NOT_SENT = ("messages", "prompt", "input", "tools", "text", "forget_sets")
_INTEGERS = range(-(2**63), 2**64)
_PART = '{"type": "text", "text": "..."}'
_CALL = '{"id": "...", "type": "function", "function": {"name": "...", "arguments": "{}"}}'


def check_shapes(body: Any) -> None:
    """Check messages, definitions of the answer and the chat template's switches, where a body has them.

    The parts of the messages' contents are replaced by what all of vLLM reads as text.

    Raises: InvalidRequestError that names the place and what belongs there.
    """
    if isinstance(body, dict):
        _check_messages(body.get("messages"))
        _check_definitions(body.get("response_format"), body.get("structured_outputs"))
        _check_switches(body.get("chat_template_kwargs"))


def check_integers(fields: Iterable[str], body: Any) -> None:
    """Check that the engine can be told the integers of a valid body.

    Args:
        fields: those that the request has; others are ignored.
        body: what was validated.

    Raises: InvalidRequestError that names the place.
    """
    if not isinstance(body, dict):
        return
    todo = [*definitions(body), *((field, body.get(field)) for field in fields if field not in _NOT_SENT)]
    while todo:
        place, value = todo.pop()
        if isinstance(value, dict):
            todo += ((f"{place}.{name}", item) for name, item in value.items() if _may_be_too_large(item))
        elif isinstance(value, list):
            todo += ((f"{place}[{i}]", item) for i, item in enumerate(value) if _may_be_too_large(item))
        elif isinstance(value, int) and value not in _INTEGERS:
            raise wrong(place, "must fit 64 bits: at least -2**63 and below 2**64", value)


def _may_be_too_large(value: Any) -> bool:
    return isinstance(value, dict | list) or (isinstance(value, int) and value not in _INTEGERS)


def types_only(model: type[BaseModel]) -> type[BaseModel]:
    """A model of the same fields without the validators of the whole, which says what is wrong with the types alone."""
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in model.model_fields.items()}
    return create_model(f"TypesOf{model.__name__}", **fields)


def refuse_types(types: type[BaseModel], body: Any, otherwise: InvalidRequestError) -> InvalidRequestError:
    """The refusal of a body that made a validator fail.

    Args:
        types: of `types_only`.
        body: what was validated.
        otherwise: the refusal if no type is wrong.
    """
    try:
        types.model_validate(body)
    except ValidationError as error:
        message, param = sentence_of(error.errors(), body)
        return InvalidRequestError(message, param=param)
    except RecursionError:
        return InvalidRequestError("the body is nested too deeply")
    except InvalidRequestError as error:
        return error
    return otherwise


def _check_messages(messages: Any) -> None:
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):
            message["content"] = [read_part(f"messages[{i}].content[{j}]", part) for j, part in enumerate(content)]
        elif not isinstance(content, str | None):
            raise wrong(f"messages[{i}].content", "must be a string or a list", content)
        if calls is not None and not isinstance(calls, list):
            raise wrong(f"messages[{i}].tool_calls", f"must be a list of objects {_CALL}", calls)
        for j, call in enumerate(calls or ()):
            _check_call(f"messages[{i}].tool_calls[{j}]", call)


def read_part(where: str, part: Any) -> dict[str, str]:
    """The part of a message's content as every role of vLLM's models and every template takes it.

    Raises: InvalidRequestError that names the place, if it is no text.
    """
    if isinstance(part, str):
        return {"type": "text", "text": part}
    if not isinstance(part, dict):
        raise wrong(where, f"must be an object {_PART}", part)
    kind = part.get("type", "text" if "text" in part else None)
    if kind is None:
        raise wrong(f"{where}.type", f"is missing: a part of a message is {_PART}")
    if not isinstance(kind, str) or kind not in _TEXTS:
        raise wrong(f"{where}.type", f"must be 'text', as in {_PART}: this server reads nothing but text", kind)
    text = part.get(_TEXTS[kind])
    if not isinstance(text, str):
        raise wrong(f"{where}.{_TEXTS[kind]}", "must be a string", text)
    return {"type": "text", "text": text}


def _check_call(where: str, call: Any) -> None:
    if not isinstance(call, dict):
        raise wrong(where, f"must be an object {_CALL}", call)
    kind, function = call.get("type"), call.get("function")
    if kind is not None and kind != "function":
        raise wrong(f"{where}.type", f"must be 'function', as in {_CALL}: this server knows no other calls", kind)
    if not isinstance(function, dict):
        raise wrong(f"{where}.function", f"must be an object, as in {_CALL}", function)
    for field in ("name", "arguments"):
        if not isinstance(function.get(field), str):
            raise wrong(f"{where}.function.{field}", f"must be a string, as in {_CALL}", function.get(field))
    for field in ("id", "type"):
        if not isinstance(call.get(field), str):
            raise wrong(f"{where}.{field}", f"must be a string, as in {_CALL}", call.get(field))


def _check_definitions(response_format: Any, structured: Any) -> None:
    asked = response_format.get("type") if isinstance(response_format, dict) else None
    schema = response_format.get("json_schema") if asked == "json_schema" else None
    if isinstance(schema, dict) and "name" in schema and schema.get("schema") is None:
        raise wrong("response_format.json_schema.schema", "is missing: it is the JSON schema of the answer")
    if not isinstance(structured, dict):
        return
    if structured.get("structural_tag") == "":
        raise wrong("structured_outputs.structural_tag", "must be a structural tag, as JSON", "")
    given = [kind for kind in _KINDS if structured.get(kind) is not None]
    if len(given) != 1:
        what = f'must have one of {", ".join(_KINDS)}, as in {{"choice": ["yes", "no"]}}; it has'
        raise wrong("structured_outputs", f"{what} {' and '.join(given) or 'none of them'}")
    if asked in _KINDS.values() and asked != _KINDS[given[0]]:
        raise wrong(
            "structured_outputs", f"({given[0]}) and response_format ({asked}) both define the answer; send one of them"
        )


def _check_switches(switches: Any) -> None:
    for name in sorted(RESERVED_SWITCHES.intersection(switches if isinstance(switches, dict) else ())):
        instead = f"send the field {name!r} of the request" if name in _FIELDS_OF_THEIR_OWN else "leave it out"
        what = f"is no switch of the chat template, but an argument of what renders it; {instead}"
        raise wrong(f"chat_template_kwargs.{name}", what)


def wrong(where: str, what: str, *given: Any) -> InvalidRequestError:
    """The refusal of a value: where it is, what belongs there, and what was given."""
    got = "".join(f", got {reprlib.repr(value)}" for value in given)
    return InvalidRequestError(f"{where} {what}{got}", param=re.split(r"[.\[]", where, maxsplit=1)[0])
