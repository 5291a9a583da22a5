"""What we add to vLLM's client of the engine: checks of adapter and definition, counted tokens, plain errors, an id."""

from __future__ import annotations

from contextlib import aclosing
from copy import copy
from typing import Any

from unlearngate.server.contract.plan import TOKEN_FIELD, sign, verify
from unlearngate.server.engine.compat import VLLMError, VLLMValidationError
from unlearngate.server.engine.constraints import Constraints
from unlearngate.server.engine.definitions import Definitions
from unlearngate.server.engine.reasons import explained
from unlearngate.server.engine.usage import Meter, Sequence


def response_id(request: Any, raw_request: Any) -> str:
    """The id that vLLM's handlers will give the response.

    In `/v1/responses` it is the field `request_id`; elsewhere the client's x-request-id, or that field, with a prefix.
    """
    fields = type(request).model_fields  # a field of another route is an attribute too, but not read
    if "input" in fields:
        return str(request.request_id)
    prefix = "chatcmpl-" if "messages" in fields else "cmpl-"
    return prefix + raw_request.headers.get("x-request-id", request.request_id)


def check_adapters(engine: Any) -> None:
    """Make the engine's client refuse a request whose adapter is not the one that its token was signed for.

    So the assistants that run are the ones that are composed, even if a route changes the request.
    """
    generate = engine.generate

    def checked(prompt: Any, sampling_params: Any, *args: Any, lora_request: Any = None, **kwargs: Any) -> Any:
        plan = verify((sampling_params.extra_args or {}).get(TOKEN_FIELD))
        adapter_id = lora_request.lora_int_id if lora_request is not None else 0
        if adapter_id != plan.adapter_id:
            raise RuntimeError(f"a request for adapter {plan.adapter_id} was about to run with adapter {adapter_id}")
        return generate(prompt, sampling_params, *args, lora_request=lora_request, **kwargs)

    engine.generate = checked


def try_definitions(engine: Any, definitions: Definitions) -> None:
    """Let a definition reach the engine only if it compiles in time."""
    generate = engine.generate

    async def tried(prompt: Any, sampling_params: Any, *args: Any, **kwargs: Any) -> Any:
        await definitions.admit(sampling_params.structured_outputs)
        async with aclosing(generate(prompt, sampling_params, *args, **kwargs)) as outputs:
            async for output in outputs:
                yield output

    engine.generate = tried


def count_tokens(engine: Any, meter: Meter) -> None:
    """Report to the meter every sequence that this client of the engine begins, and the tokens that it gets.

    What the engine refuses is said in plain words here, for vLLM's handlers put them into streams too.
    """
    from vllm.sampling_params import RequestOutputKind

    generate, add_request = engine.generate, engine.engine_core.add_request_async

    async def counted(prompt: Any, sampling_params: Any, request_id: str, *args: Any, **kwargs: Any) -> Any:
        plan = verify((sampling_params.extra_args or {}).get(TOKEN_FIELD))
        usage = meter.usage(plan.ticket)
        cumulative = sampling_params.output_kind is not RequestOutputKind.DELTA
        try:
            meter.reserve(plan, request_id, sampling_params.n)
            async with aclosing(generate(prompt, sampling_params, request_id, *args, **kwargs)) as outputs:
                async for output in outputs:
                    usage.add_output(request_id, len(output.prompt_token_ids or ()))
                    for choice in output.outputs:
                        usage.failed |= choice.finish_reason == "error"
                        usage.add_tokens(request_id, choice.index, len(choice.token_ids), cumulative=cumulative)
                        _refuse_contradiction(meter, usage.sequences[request_id, choice.index], choice, cumulative)
                    yield output
        except Exception as error:
            usage.failed = True
            if isinstance(error, VLLMError) and (plain := explained(error, sampling_params)):
                raise plain from error
            raise

    async def begun(request: Any) -> None:
        # One call per choice, in the order of their indices; the choices share one object of parameters.
        params = copy(request.sampling_params)
        plan = verify(params.extra_args[TOKEN_FIELD])
        plan = meter.begin_sequence(plan, request.external_req_id, Constraints(params))
        params.extra_args = {**params.extra_args, TOKEN_FIELD: sign(plan)}
        request.sampling_params = params
        await add_request(request)

    engine.generate = counted
    engine.engine_core.add_request_async = begun


def _refuse_contradiction(meter: Meter, sequence: Sequence, choice: Any, cumulative: bool) -> None:
    """Raise if what a request allows left this choice no token: a 400 of vLLM's handlers, or a stream's last event.

    A set's sentence is said whatever the request allows, so a sequence that says one contradicts nothing.
    """
    if sequence.speaks and meter.tally.sentence_of(sequence.lease) != 0:
        return
    reason = sequence.constraints.contradiction(choice.token_ids, cumulative=cumulative)
    if choice.finish_reason == "error":
        reason = reason or sequence.constraints.broken_off()
    if reason:
        raise VLLMValidationError(reason)
