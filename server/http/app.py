"""The HTTP API: an explicit list of routes, each deciding the forget sets before vLLM's handler sees the request."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncGenerator, Awaitable, Callable, Collection
from contextlib import ExitStack, aclosing, suppress
from dataclasses import replace
from functools import partial
from typing import Any, Literal

from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse
from prometheus_client import CONTENT_TYPE_LATEST
from starlette.middleware.cors import CORSMiddleware
from starlette.types import Receive, Scope, Send
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionResponse
from vllm.entrypoints.openai.completion.protocol import CompletionResponse
from vllm.entrypoints.openai.responses.protocol import ResponsesResponse
from vllm.entrypoints.serve.utils.api_utils import validate_json_request, with_cancellation

from unlearngate.errors import AuditUnavailableError, InvalidRequestError, UnlearngateError
from unlearngate.server.audit.accounting import Account, Accounting
from unlearngate.server.contract.plan import TOKEN_FIELD, sign
from unlearngate.server.contract.tally import engine_text
from unlearngate.server.engine import compat
from unlearngate.server.engine.adapters import Adapters
from unlearngate.server.engine.client import response_id
from unlearngate.server.http.access import Access, AccessControl, require_metrics
from unlearngate.server.http.bodies import StrictRoute, stop_at_first_problem
from unlearngate.server.http.cards import ServedModel, model_card, model_cards, set_cards
from unlearngate.server.http.description import Composed, answers, errors
from unlearngate.server.http.events import reporting, response_events
from unlearngate.server.http.failures import answer_failures, on_our_error, refusal, status_of
from unlearngate.server.http.logprobs import refuse_measuring
from unlearngate.server.http.requests.bounds import Bounds, refuse_beyond_bounds
from unlearngate.server.http.requests.models import (
    ForgettingChatRequest,
    ForgettingCompletionRequest,
    ForgettingRequest,
    ForgettingResponsesRequest,
)
from unlearngate.server.http.requests.wishes import RESPONSES_PATH, refuse_misplaced_wishes
from unlearngate.server.http.running import Running
from unlearngate.server.http.scoring import MODE, MODE_FIELD, MODE_HEADER, refuse_unscorable, scoring_field
from unlearngate.server.sets.decision import Decision
from unlearngate.server.sets.policy import Policy

logger = logging.getLogger(__name__)

FORGET_SETS_HEADER = "x-forget-sets"
_SHOWN = 100  # characters of a path that are repeated in an error
_UNBUFFERED = {"cache-control": "no-cache", "x-accel-buffering": "no"}  # or a proxy would collect a stream's events
_NOT_COMPOSED = {
    "use_beam_search": "beam search scores with the plain target",
    "kv_transfer_params": "a transferred cache holds another request's assistant",
    "ec_transfer_params": "a transferred cache holds another request's assistant",
}


class ForgettingChatResponse(ChatCompletionResponse, Composed):
    """OpenAI's chat response, and the forget sets that were in force."""


class ForgettingCompletionResponse(CompletionResponse, Composed):
    """OpenAI's text completion response, and the forget sets that were in force."""


class ForgettingResponsesResponse(ResponsesResponse, Composed):
    """OpenAI's response of `/v1/responses`, and the forget sets that were in force."""

    store: Literal[False] = False


Handler = Callable[[Any, Request], Awaitable[Any]]


class Answerer:
    """Stands between the routes and vLLM's handlers: decides, signs, holds the adapter, reports."""

    def __init__(
        self, policy: Policy, adapters: Adapters, accounting: Accounting, state: Any, *, most_per_key: int = 0
    ) -> None:
        """With `most_per_key`, the requests of one API key that are answered at a time are so many; 0: any number."""
        self.policy = policy
        self.adapters = adapters
        self.accounting = accounting
        self.state = state
        self.running = Running(most_per_key)

    async def answer(self, request: ForgettingRequest, raw_request: Request, handle: Handler) -> Response:
        """Have vLLM's handler answer with exactly the request's forget sets composed, or fail the request.

        Raises: UnlearngateError if the request cannot be honoured; what vLLM raises otherwise.
        """
        account = self.accounting.open(response_id(request, raw_request), raw_request)
        with ExitStack() as held:
            try:
                _refuse_not_composed(request)
                caller = raw_request.state.caller
                held.enter_context(self.running.one_of(caller.key_id))
                decision = self.policy.decide(request.model, request.forget_sets, caller)
                refuse_measuring(request, self.policy.logprobs_for(caller))
                refuse_unscorable(request, decision)
                binding = await self.adapters.acquire(decision.bound) if decision.bound else None
            except UnlearngateError as error:
                account.refuse(error.http_status, error.code)
                raise
            if binding:
                held.callback(self.adapters.release, binding)
            scored = scoring_field(request)
            mode, mode_header = ({MODE_FIELD: MODE}, {MODE_HEADER: MODE}) if scored else ({}, {})
            kept = {"store": False} if isinstance(request, ForgettingResponsesRequest) else {}
            try:
                ticket = account.admit(decision)
                request.model = binding.name if binding else self.policy.served_name
                token = sign(replace(decision.plan(binding.adapter_id if binding else 0), ticket=ticket))
                request.vllm_xargs = {**(request.vllm_xargs or {}), TOKEN_FIELD: token}
                answer = await handle(request, raw_request)
                if isinstance(answer, AsyncGenerator):
                    if isinstance(request, ForgettingResponsesRequest):
                        answer = response_events(answer, lambda: _told(decision, account) | kept)
                    elif decision.speaking:
                        answer = reporting(answer, lambda: decision.report(account.said()))
                    headers = {FORGET_SETS_HEADER: decision.header(), **mode_header, **_UNBUFFERED}
                    return _Stream(answer, headers, partial(_end_stream, account, held.pop_all().close))
                body = answer.model_dump(mode="json", by_alias=True)
                if "error" in body:
                    refused = body["error"]
                    if _cancelled():  # vLLM's handler answers it, but the client is gone
                        account.end("aborted", None)
                    else:
                        account.end("error", refused["code"])
                    return refusal(refused["code"], refused["message"], refused["param"])
                said = account.said()
                headers = {FORGET_SETS_HEADER: decision.header(said), **mode_header}
                response = _json({**body, "forget_sets": decision.report(said), **mode, **kept}, headers)
                account.end("completed", 200)
                return response
            except BaseException as error:
                with suppress(AuditUnavailableError):  # it is counted, and nothing was answered
                    if isinstance(error, Exception):
                        account.end("error", status_of(error))
                    else:
                        account.end("aborted", None)
                raise


class _Stream(StreamingResponse):
    """Server-sent events; `on_end` is called once, however the stream ends, with whether all of it was sent."""

    def __init__(
        self, events: AsyncGenerator[str, None], headers: dict[str, str], on_end: Callable[[bool], None]
    ) -> None:
        super().__init__(self._to_the_end(events), media_type="text/event-stream", headers=headers)
        self._complete = False
        self._on_end = on_end

    async def _to_the_end(self, events: AsyncGenerator[str, None]) -> AsyncGenerator[str, None]:
        async with aclosing(events):
            async for event in events:
                yield event
        self._complete = True

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self._on_end(self._complete)


def _told(decision: Decision, account: Account) -> dict[str, Any]:
    return {"forget_sets": decision.report(account.said())}


def _end_stream(account: Account, release: Callable[[], None], complete: bool) -> None:
    release()
    with suppress(AuditUnavailableError):  # it is counted, and the next request is refused
        account.end("error" if account.failed else "completed" if complete else "aborted", 200)


def build_app(
    answerer: Answerer,
    access: Access,
    *,
    max_body_bytes: int,
    bounds: Bounds,
    allowed_origins: Collection[str] = (),
) -> FastAPI:
    """The application.

    Args:
        answerer: its `state` carries vLLM's handlers.
        access: identifies the callers.
        max_body_bytes: the largest body of a request; larger ones are 413.
        bounds: what else one request may ask for; more is 400.
        allowed_origins: whose pages a browser lets read the answers (CORS); ("*",): everybody's.
    """
    what = "OpenAI-compatible serving with forget sets per request."
    app = FastAPI(title="unlearngate", description=what, redirect_slashes=False)  # redirects trust the Host header
    app.state = answerer.state
    app.state.max_body_bytes = max_body_bytes
    app.state.bounds = bounds
    app.router.route_class = StrictRoute
    app.add_middleware(AccessControl, access=access, refuse=on_our_error)
    served = ServedModel(*compat.model_limits(answerer.state), created=int(time.time()))
    answer_failures(app)
    json_body = [Depends(validate_json_request), Depends(refuse_beyond_bounds), Depends(refuse_misplaced_wishes)]
    for request_type in (ForgettingChatRequest, ForgettingCompletionRequest, ForgettingResponsesRequest):
        stop_at_first_problem(request_type)

    @app.post("/v1/chat/completions", dependencies=json_body, responses=answers(ForgettingChatResponse))
    @with_cancellation
    async def chat_completions(request: ForgettingChatRequest, raw_request: Request) -> Response:
        return await answerer.answer(request, raw_request, answerer.state.openai_serving_chat.create_chat_completion)

    @app.post("/v1/completions", dependencies=json_body, responses=answers(ForgettingCompletionResponse))
    @with_cancellation
    async def completions(request: ForgettingCompletionRequest, raw_request: Request) -> Response:
        return await answerer.answer(request, raw_request, answerer.state.openai_serving_completion.create_completion)

    @app.post(RESPONSES_PATH, dependencies=json_body, responses=answers(ForgettingResponsesResponse))
    @with_cancellation
    async def responses(request: ForgettingResponsesRequest, raw_request: Request) -> Response:
        return await answerer.answer(request, raw_request, answerer.state.openai_serving_responses.create_responses)

    @app.api_route(RESPONSES_PATH + "/{path:path}", methods=["GET", "POST", "DELETE"], include_in_schema=False)
    async def stored(path: str) -> Response:
        raise UnlearngateError(
            f"{RESPONSES_PATH}/{path[:_SHOWN]} is not there: no response is kept here; send earlier turns in input",
            http_status=404,
            code="not_found",
        )

    @app.get("/v1/models", responses=errors(400, 401, 403))
    async def models(raw_request: Request) -> dict[str, Any]:
        return {"object": "list", "data": model_cards(answerer.policy, served, raw_request.state.caller)}

    @app.get("/v1/models/{model:path}", responses=errors(400, 401, 403, 404, 422, 503))
    async def model(model: str, raw_request: Request) -> dict[str, Any]:
        answerer.policy.decide(model, None, raw_request.state.caller)
        return model_card(answerer.policy, served, model)

    @app.get("/v1/forget_sets", responses=errors(400, 401, 403))
    async def forget_sets(raw_request: Request) -> dict[str, Any]:
        registry = answerer.policy.registry
        target = registry.target
        return {
            "object": "list",
            "target": {"model_id": target.model_id, "weights_digest": target.weights_digest},
            "engine": registry.engine(),
            "data": set_cards(answerer.policy, raw_request.state.caller),
        }

    @app.get("/health", responses={503: {"description": "The engine cannot answer, or not be accounted for."}})
    async def health() -> Response:
        try:
            await answerer.state.engine_client.check_health()
            answerer.accounting.check()
        except Exception as error:
            return JSONResponse({"status": "unavailable", "reason": str(error)}, status_code=503)
        warning = access.warning()
        return JSONResponse({"status": "ok", **({"warning": warning} if warning else {})})

    @app.get(
        "/metrics",
        dependencies=[Depends(require_metrics)],
        response_class=PlainTextResponse,
        responses=errors(400, 401, 403),
    )
    async def metrics() -> Response:
        exposition = compat.prometheus_text() + engine_text(answerer.accounting.meter.tally)
        return Response(exposition, media_type=CONTENT_TYPE_LATEST)

    @app.get("/", include_in_schema=False)
    async def root() -> Response:
        return PlainTextResponse("unlearngate: OpenAI-compatible API below /v1, documentation at /docs\n")

    if allowed_origins:
        # Around all: a preflight carries no key, and a page must be able to read a refusal and that a request failed.
        app.middleware_stack = CORSMiddleware(
            app.build_middleware_stack(),
            allow_origins=tuple(allowed_origins),
            allow_methods=("GET", "POST"),
            allow_headers=("*",),
            expose_headers=(FORGET_SETS_HEADER, MODE_HEADER, "www-authenticate"),
        )
    return app


def _json(body: dict[str, Any], headers: dict[str, str]) -> Response:
    try:
        return JSONResponse(body, headers=headers)
    except ValueError as error:
        raise InvalidRequestError(
            "the answer's logprobs are no finite numbers: with these penalties and this temperature, or in the model "
            "itself, logits overflow",
            param="logprobs",
        ) from error


def _refuse_not_composed(request: ForgettingRequest) -> None:
    """Refuse what vLLM would answer from the plain target, whatever the forget sets."""
    for field, why in _NOT_COMPOSED.items():
        value = getattr(request, field, None)
        if (value is not None and value is not False) or field in (request.vllm_xargs or {}):
            raise InvalidRequestError(f"{field} is not served here: {why}", param=field)


def _cancelled() -> bool:
    task = asyncio.current_task()
    return task is not None and task.cancelling() > 0
