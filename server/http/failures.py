"""Error responses: every failed request is answered with OpenAI's error body, and counted."""

from __future__ import annotations

import logging
import re

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException

from unlearngate.errors import UnlearngateError
from unlearngate.server.engine import compat
from unlearngate.server.engine.reasons import reason_of
from unlearngate.server.http.requests.problems import sentence_of
from unlearngate.server.metrics import REFUSALS

logger = logging.getLogger(__name__)

_CODES = {
    404: "not_found",
    405: "method_not_allowed",
    408: "body_timeout",
    413: "body_too_large",
    503: "unavailable",
}
_LONGEST_MESSAGE = 2000
_LINE_ENDS = re.compile(r"\s*\n\s*")


def answer_failures(app: FastAPI) -> None:
    """Register a handler for every error that a route, or what runs before it, raises."""
    app.add_exception_handler(UnlearngateError, on_our_error)
    app.add_exception_handler(RequestValidationError, _on_malformed)
    app.add_exception_handler(HTTPException, _on_http_error)
    # vLLM's own errors, and the plain Python ones that its handlers still raise.
    for kind in (compat.VLLMError, ValueError, TypeError, OverflowError, NotImplementedError, Exception):
        app.add_exception_handler(kind, _on_engine_error)


async def on_our_error(_: Request, error: Exception) -> Response:
    """The answer to an UnlearngateError."""
    assert isinstance(error, UnlearngateError)
    return refusal(error.http_status, error.message, error.param, error.code)


def refusal(status: int, message: str, param: str | None, code: str | None = None) -> JSONResponse:
    """OpenAI's error body, counted. The message is one line; one that repeats a long request is cut."""
    message = _LINE_ENDS.sub(" ", message.strip())
    if len(message) > _LONGEST_MESSAGE:
        message = message[:_LONGEST_MESSAGE] + "..."
    kind = "invalid_request_error" if status < 500 else "internal_error"
    REFUSALS.labels(code or _CODES.get(status, kind)).inc()
    error = {"message": message, "type": kind, "param": param, "code": code or _CODES.get(status, kind)}
    return JSONResponse({"error": error}, status_code=status)


def status_of(error: Exception) -> int:
    """The HTTP status that this error is answered with."""
    return error.http_status if isinstance(error, UnlearngateError) else compat.describe_error(error)[0]


async def _on_malformed(_: Request, error: Exception) -> Response:
    assert isinstance(error, RequestValidationError)
    return refusal(400, *sentence_of(error.errors(), error.body))


async def _on_http_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    response = refusal(error.status_code, str(error.detail), None)
    response.headers.update(error.headers or {})
    return response


async def _on_engine_error(_: Request, error: Exception) -> Response:
    status, message, param = compat.describe_error(error)
    if status >= 500:
        logger.error("a request failed", exc_info=error)
    return refusal(status, message or f"the server could not answer this request: {reason_of(error)}", param)
