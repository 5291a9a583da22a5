"""What /openapi.json says beyond the types of the requests: the responses, and every error."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import BaseModel, Field

Responses = dict[int | str, dict[str, Any]]


class ErrorContent(BaseModel):
    """What was wrong."""

    message: str
    type: Literal["invalid_request_error", "internal_error"]
    param: str | None = Field(description="the field that it is about")
    code: str = Field(description="docs/http.md lists them")


class ErrorBody(BaseModel):
    """OpenAI's shape of an error."""

    error: ErrorContent


class SetInForce(BaseModel):
    """A forget set that an answer was composed with."""

    name: str
    version: str
    digest: str
    weight: float
    keep_ratio: float
    gate_nats: float
    by: Literal["server", "key", "gateway", "request", "default"]
    instead: bool | None = Field(
        default=None, description="of a set that says something instead: whether an answer was that; null: not known"
    )


class Composed(BaseModel):
    """What an answer says of its composition."""

    forget_sets: list[SetInForce]
    prompt_logprobs_mode: Literal["scoring"] | None = Field(
        default=None,
        description="there if log-probabilities of the prompt were asked for: their mode, as docs/composition.md has "
        "it; generated tokens have sampling's",
    )


_ERRORS = {
    400: "The request cannot be honoured as written.",
    401: "With --keys: no API key, or one that this server does not know.",
    403: "The caller may not have this, or sends a gateway's header.",
    404: "A model, forget set or folder that is not there.",
    408: "The body did not come in time.",
    409: "Another version of the set is in force.",
    413: "The body is too large.",
    422: "vLLM cannot process the request.",
    429: "Too many requests of this API key are running (--max-running-per-key), or too many definitions wait.",
    500: "A fault of this server, or a set whose files were changed on its disk.",
    501: "vLLM does not implement this.",
    503: "Not now: the engine is gone, the audit log cannot be written, or a set cannot be put in force.",
}
_IN_FORCE = {
    "x-forget-sets": {"description": "the forget sets in force, or `none`", "schema": {"type": "string"}},
    "x-prompt-logprobs-mode": {
        "description": "`scoring` if log-probabilities of the prompt were asked for",
        "schema": {"type": "string"},
    },
}
_EVENTS: dict[str, Any] = {
    "text/event-stream": {}
}  # readers differ on whether a schema would be of the whole or of each


def errors(*statuses: int) -> Responses:
    """OpenAPI's responses for these statuses, each with OpenAI's error body."""
    return {status: {"model": ErrorBody, "description": _ERRORS[status]} for status in statuses}


def answers(model: type[BaseModel]) -> Responses:
    """OpenAPI's responses of a route that generates: this model's JSON, or events; and every error."""
    success = {"model": model, "description": "The answer; events with `stream`.", "headers": _IN_FORCE}
    failures = errors(400, 401, 403, 404, 408, 413, 422, 429, 500, 501, 503)
    return {200: {**success, "content": _EVENTS}, **failures}
