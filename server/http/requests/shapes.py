"""What vLLM's request models leave unchecked: the parts of messages, and types that make its own validators fail.

vLLM reads the parts of a message's content lazily, long after the body was validated. Some of its validators run before
the types are checked, and take them for granted.
"""

from __future__ import annotations

import reprlib
from typing import Any

from pydantic import BaseModel, ValidationError, create_model

from unlearngate.errors import InvalidRequestError
from unlearngate.server.http.requests.problems import sentence_of

# A content part's type, and the field with its text. Targets read text only.
_TEXTS = {
    "text": "text",
    "input_text": "text",
    "output_text": "text",
    "refusal": "refusal",
    "thinking": "thinking",
}
_PART = '{"type": "text", "text": "..."}'
_CALL = '{"id": "...", "type": "function", "function": {"name": "...", "arguments": "{}"}}'


def check_messages(body: Any) -> None:
    """Check the parts of the messages' contents and their tool calls, where a body has them.

    Raises: InvalidRequestError that names the place and what belongs there.
    """
    messages = body.get("messages") if isinstance(body, dict) else None
    for i, message in enumerate(messages if isinstance(messages, list) else ()):
        if not isinstance(message, dict):
            continue
        content, calls = message.get("content"), message.get("tool_calls")
        if isinstance(content, list):
            for j, part in enumerate(content):
                _check_part(f"messages[{i}].content[{j}]", part)
        if calls is not None and not isinstance(calls, list):
            raise _wrong(f"messages[{i}].tool_calls", f"must be a list of objects {_CALL}", calls)
        for j, call in enumerate(calls or ()):
            _check_call(f"messages[{i}].tool_calls[{j}]", call)


def types_only(model: type[BaseModel]) -> type[BaseModel]:
    """A model of the same fields without the validators of the whole, which says what is wrong with the types alone."""
    fields: dict[str, Any] = {name: (field.annotation, field) for name, field in model.model_fields.items()}
    return create_model(f"TypesOf{model.__name__}", **fields)


def refuse_types(types: type[BaseModel], body: Any, failure: Exception) -> InvalidRequestError:
    """The refusal of a body that made a validator fail.

    Args:
        types: of `types_only`.
        body: what was validated.
        failure: what the validator raised.
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
    return InvalidRequestError(f"the body is not what this route expects: {failure}")


def _check_part(where: str, part: Any) -> None:
    if isinstance(part, str):
        return
    if not isinstance(part, dict):
        raise _wrong(where, f"must be an object {_PART}", part)
    kind = part.get("type", "text" if "text" in part else None)
    if kind is None:
        raise _wrong(f"{where}.type", f"is missing: a part of a message is {_PART}")
    if not isinstance(kind, str) or kind not in _TEXTS:
        raise _wrong(f"{where}.type", f"must be 'text', as in {_PART}: this server reads nothing but text", kind)
    field = _TEXTS[kind]
    if not isinstance(part.get(field), str):
        raise _wrong(f"{where}.{field}", "must be a string", part.get(field))


def _check_call(where: str, call: Any) -> None:
    if not isinstance(call, dict):
        raise _wrong(where, f"must be an object {_CALL}", call)
    function = call.get("function")
    if not isinstance(function, dict):
        raise _wrong(f"{where}.function", f"must be an object, as in {_CALL}", function)
    for field in ("name", "arguments"):
        if not isinstance(function.get(field), str):
            raise _wrong(f"{where}.function.{field}", f"must be a string, as in {_CALL}", function.get(field))


def _wrong(where: str, what: str, *given: Any) -> InvalidRequestError:
    got = "".join(f", got {reprlib.repr(value)}" for value in given)
    return InvalidRequestError(f"{where} {what}{got}", param="messages")
