"""Request bodies: limited in size and time, strict JSON, and read once per request.

Python's parser also takes what JSON (RFC 8259) does not have: NaN, Infinity and floats that overflow to it, UTF-16, and
halves of surrogate pairs, which no tokenizer and no response can encode. Each is a 400 before any other code sees it.
"""

from __future__ import annotations

import asyncio
import json
import math
import re
from collections.abc import Callable, Coroutine
from functools import cache
from typing import Any, NoReturn

from fastapi import Request, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel, ValidationError
from pydantic_core import SchemaValidator
from starlette.exceptions import HTTPException

from unlearngate.errors import InvalidRequestError
from unlearngate.server.engine.compat import VLLMError
from unlearngate.server.engine.reasons import reason_of
from unlearngate.server.http.requests.problems import sentence_of
from unlearngate.server.http.requests.shapes import check_integers, check_shapes, refuse_types, types_only

BODY_TIMEOUT_S = 60.0
_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]")
_COLLECTIONS = {"list", "tuple", "set", "frozenset", "dict"}
_CLOSE = {"connection": "close"}  # or the rest of the body would still be read


class StrictRoute(APIRoute):
    """A route that reads its body in this way. The limit is the application's `state.max_body_bytes`."""

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Wrap the request, so that its body is read strictly."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(_StrictRequest(request.scope, request.receive))

        return strictly


class _StrictRequest(Request):
    async def body(self) -> bytes:
        if not hasattr(self, "_body"):
            try:
                async with asyncio.timeout(BODY_TIMEOUT_S):
                    self._body = await self._read_all()
            except TimeoutError:
                raise HTTPException(
                    408, f"the body was not there within {BODY_TIMEOUT_S:g} seconds", headers=_CLOSE
                ) from None
        return self._body

    async def json(self) -> Any:
        if not hasattr(self, "_json"):
            self._json = read_json(await self.body())
        return self._json

    async def _read_all(self) -> bytes:
        limit = self.app.state.max_body_bytes
        # A declared length saves reading. Bytes are counted all the same: a chunked body declares none.
        declared = self.headers.get("content-length", "0")
        if declared.isdecimal() and int(declared) > limit:
            _refuse_size(limit)
        body = bytearray()
        async for chunk in self.stream():
            body += chunk
            if len(body) > limit:
                _refuse_size(limit)
        return bytes(body)


def read_json(body: bytes) -> Any:
    """Parse the body.

    Raises: json.JSONDecodeError if it is not JSON.
    """
    try:
        text = body.decode("utf-8-sig")
        value = json.loads(text, parse_constant=_refuse_constant, parse_float=_finite)
        if _SURROGATE.search(text):
            json.dumps(value, ensure_ascii=False).encode()
        return value
    except json.JSONDecodeError:
        raise
    except UnicodeDecodeError as error:
        reason = f"it is not UTF-8 (byte {error.start})"
    except UnicodeEncodeError:
        reason = "it has half of a surrogate pair"
    except RecursionError:
        reason = "it is nested too deeply"
    except ValueError as error:  # ours, and integers of thousands of digits
        reason = str(error)
    raise json.JSONDecodeError(reason, "", 0)


def stop_at_first_problem(model: type[BaseModel]) -> None:
    """Make the model's validation stop at a list's or object's first wrong item.

    Otherwise pydantic collects every item's problems, which takes 10,000 times the memory of the body.
    Call it before anything validates with the model.
    """
    todo: list[Any] = [model.__pydantic_core_schema__]
    seen: set[int] = set()
    while todo:
        node = todo.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, dict):
            kind = node.get("type")  # a dict if a field has this name
            if isinstance(kind, str) and kind in _COLLECTIONS:
                node["fail_fast"] = True
            todo += node.values()
        elif isinstance(node, list | tuple):
            todo += node
    del model.__pydantic_validator__  # or the new one would be a copy of it
    model.__pydantic_validator__ = SchemaValidator(model.__pydantic_core_schema__)


def blame_the_body(model: type[BaseModel], data: Any, handler: Callable[[Any], Any]) -> Any:
    """Run a model's validators, and ours. What vLLM's do not say about a wrong body, the answer does: a 400.

    Raises: InvalidRequestError.
    """
    check_shapes(data)
    try:
        request = handler(data)
    except (AttributeError, LookupError, TypeError, RecursionError) as error:
        otherwise = InvalidRequestError(f"the body is not what this route expects: {error}")
        raise refuse_types(_types_of(model), data, otherwise) from error
    except VLLMError as error:
        if error.__cause__ is None:
            raise
        raise _wrong_tag(_types_of(model), data, error, getattr(error, "parameter", None)) from error
    check_integers(model.model_fields, data)
    return request


def _wrong_tag(types: type[BaseModel], data: Any, error: Exception, field: str | None) -> InvalidRequestError:
    """Of a structural tag vLLM says only that it is wrong. The cause says why."""
    cause = error.__cause__
    if isinstance(cause, ValidationError):
        return InvalidRequestError(f"{field}.{sentence_of(cause.errors(), data[field])[0]}", param=field)
    reason = f"{field}: this structural tag cannot be used: {reason_of(error)}"
    return refuse_types(types, data, InvalidRequestError(reason, param=field))


@cache
def _types_of(model: type[BaseModel]) -> type[BaseModel]:
    types = types_only(model)
    stop_at_first_problem(types)
    return types


def _refuse_size(limit: int) -> NoReturn:
    raise HTTPException(413, f"the body may have at most {limit} bytes (--max-body-mb)", headers=_CLOSE)


def _refuse_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _finite(digits: str) -> float:
    value = float(digits)
    if not math.isfinite(value):
        raise ValueError(f"{digits[:20]} is larger than any number here")
    return value
