"""The bodies of the routes that generate: vLLM's models, with `forget_sets`, checked as vLLM leaves unchecked."""

from __future__ import annotations

from typing import Annotated, Any, Literal, Self, cast

from pydantic import BeforeValidator, Field, ModelWrapValidatorHandler, model_validator
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest

from unlearngate.server.http.bodies import blame_the_body
from unlearngate.server.http.requests.responses import check_response_body
from unlearngate.server.sets.choices import ForgetSetChoice, parse_choices

ForgetSets = Annotated[
    list[str | ForgetSetChoice] | None,
    BeforeValidator(parse_choices),
    Field(description="forget sets in force besides required ones: absent = the default, [] = none"),
]


class ForgettingChatRequest(ChatCompletionRequest):
    """OpenAI's chat request, and `forget_sets`."""

    forget_sets: ForgetSets = None

    @model_validator(mode="wrap")
    @classmethod
    def _blame_the_body(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return cast("Self", blame_the_body(cls, data, handler))


class ForgettingCompletionRequest(CompletionRequest):
    """OpenAI's text completion request, and `forget_sets`."""

    forget_sets: ForgetSets = None

    @model_validator(mode="wrap")
    @classmethod
    def _blame_the_body(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        return cast("Self", blame_the_body(cls, data, handler))


class ForgettingResponsesRequest(ResponsesRequest):
    """OpenAI's request of `/v1/responses`, and `forget_sets`. Nothing is stored, whatever vLLM is told."""

    forget_sets: ForgetSets = None
    store: Literal[False] | None = False
    background: Literal[False] | None = False

    @model_validator(mode="wrap")
    @classmethod
    def _blame_the_body(cls, data: Any, handler: ModelWrapValidatorHandler[Self]) -> Self:
        check_response_body(data)
        return cast("Self", blame_the_body(cls, data, handler))


ForgettingRequest = ForgettingChatRequest | ForgettingCompletionRequest | ForgettingResponsesRequest
