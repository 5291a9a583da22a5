"""Everything about vLLM that differs between versions or is not its public API.

Tried: 0.32 (CPU build, V1 runner). The V2 interface exists from 0.32 on.
"""

from __future__ import annotations

from argparse import Namespace
from contextlib import AbstractAsyncContextManager, aclosing
from copy import copy
from functools import cache
from typing import Any

from vllm.exceptions import VLLMError
from vllm.lora.request import LoRARequest
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor

from unlearngate.errors import UnsupportedDeploymentError
from unlearngate.server.engine.plan import TOKEN_FIELD, sign, verify
from unlearngate.server.engine.usage import Meter

__all__ = [
    "BatchUpdate",
    "LoRARequest",
    "LogitsContext",
    "MoveDirectionality",
    "V1LogitsProcessor",
    "V2LogitsProcessor",
    "VLLMError",
    "adapts_a_row",
    "bind_adapter",
    "check_adapters",
    "compile_on_a_cpu",
    "count_tokens",
    "describe_error",
    "drop_adapter_info",
    "engine_client",
    "engine_config",
    "group_cpu_lora",
    "init_handlers",
    "may_vary_branches",
    "parse_engine_arguments",
    "penalise_after_composing",
    "prometheus_text",
    "response_id",
    "unbind_adapter",
]


def parse_engine_arguments(arguments: list[str]) -> Namespace:
    """VLLM's own `vllm serve` parser over the given words; exits with its usage message if they are wrong."""
    from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="unlearngate serve MODEL --"))
    args = parser.parse_args(arguments)
    validate_parsed_serve_args(args)
    return args


def engine_config(args: Namespace) -> Any:
    """The VllmConfig that these arguments make.

    Raises: UnsupportedDeploymentError if vLLM finds them contradictory.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs

    try:
        return AsyncEngineArgs.from_cli_args(args).create_engine_config()
    except (ValueError, NotImplementedError) as error:
        raise UnsupportedDeploymentError(f"vLLM refuses this configuration: {error}") from error


def engine_client(args: Namespace) -> AbstractAsyncContextManager[Any]:
    """An async context manager that starts the engine and yields vLLM's client for it."""
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client

    return build_async_engine_client(args)


async def init_handlers(engine: Any, state: Any, args: Namespace) -> None:
    """Fill `state` with vLLM's serving handlers: openai_serving_chat, openai_serving_completion, ..._models.

    Every response's `model` is the served name, whatever adapter the request carries: what was in force is told
    elsewhere, and an adapter's internal name is nobody's business.
    """
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state

    await init_app_state(engine, state, args, await engine.get_supported_tasks())
    models = state.openai_serving_models
    served_name = models.base_model_paths[0].name
    models.model_name = lambda lora_request=None: served_name


def unbind_adapter(state: Any, name: str) -> None:
    """The opposite of `bind_adapter`."""
    state.openai_serving_models.lora_requests.pop(name, None)


def drop_adapter_info(engine: Any) -> None:
    """End vLLM's gauge `vllm:lora_requests_info`.

    Its labels are the names of all adapters that run and wait at a moment. It keeps every combination that there ever
    was, with many sets one more at nearly each step, for ever; `unlearngate_requests_total` says which sets run.
    """
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    for stat_logger in engine.logger_manager.stat_loggers if engine.logger_manager else ():
        gauge = getattr(stat_logger, "gauge_lora_info", None)
        if gauge is not None:
            get_prometheus_registry().unregister(gauge)
            stat_logger.gauge_lora_info = None


def bind_adapter(state: Any, adapter: LoRARequest) -> None:
    """Let vLLM's handlers find the adapter when a request's `model` is its name."""
    state.openai_serving_models.lora_requests[adapter.lora_name] = adapter


def prometheus_text() -> bytes:
    """The metrics that this process counts, vLLM's and ours, in Prometheus' text format."""
    from prometheus_client import generate_latest
    from vllm.v1.metrics.prometheus import get_prometheus_registry

    return generate_latest(get_prometheus_registry())


def check_adapters(engine: Any) -> None:
    """Let the engine's client take a request only with the very adapter that its token was signed for.

    Whatever a route does to a request on its way, the assistants that run are the ones that are composed.
    """
    generate = engine.generate

    def checked(prompt: Any, sampling_params: Any, *args: Any, lora_request: Any = None, **kwargs: Any) -> Any:
        plan = verify((sampling_params.extra_args or {}).get(TOKEN_FIELD))
        adapter_id = lora_request.lora_int_id if lora_request is not None else 0
        if adapter_id != plan.adapter_id:
            raise RuntimeError(f"a request for adapter {plan.adapter_id} was about to run with adapter {adapter_id}")
        return generate(prompt, sampling_params, *args, lora_request=lora_request, **kwargs)

    engine.generate = checked


def response_id(request: Any, raw_request: Any) -> str:
    """The id that vLLM's handlers will give the response: the client's x-request-id if there is one, with a prefix."""
    prefix = "chatcmpl-" if hasattr(request, "messages") else "cmpl-"
    return prefix + raw_request.headers.get("x-request-id", request.request_id)


def count_tokens(engine: Any, meter: Meter) -> None:
    """Have the meter told of every sequence that this client of the engine begins, and of the tokens that it gets."""
    from vllm.sampling_params import RequestOutputKind

    generate, add_request = engine.generate, engine.engine_core.add_request_async

    async def counted(prompt: Any, sampling_params: Any, request_id: str, *args: Any, **kwargs: Any) -> Any:
        usage = meter.usage(verify((sampling_params.extra_args or {}).get(TOKEN_FIELD)).ticket)
        cumulative = sampling_params.output_kind is not RequestOutputKind.DELTA
        try:
            async with aclosing(generate(prompt, sampling_params, request_id, *args, **kwargs)) as outputs:
                async for output in outputs:
                    usage.add_output(request_id, len(output.prompt_token_ids or ()))
                    for choice in output.outputs:
                        usage.failed |= choice.finish_reason == "error"
                        usage.add_tokens(request_id, choice.index, len(choice.token_ids), cumulative=cumulative)
                    yield output
        except Exception:
            usage.failed = True
            raise

    async def begun(request: Any) -> None:
        # One call per choice, in the order of their indices; the choices share one object of parameters.
        params = copy(request.sampling_params)
        plan = meter.begin_sequence(verify(params.extra_args[TOKEN_FIELD]), request.external_req_id)
        params.extra_args = {**params.extra_args, TOKEN_FIELD: sign(plan)}
        request.sampling_params = params
        await add_request(request)

    engine.generate = counted
    engine.engine_core.add_request_async = begun


def adapts_a_row(linear: Any) -> bool:
    """Whether a linear map's LoRA does anything in the batch that is about to run; no device is waited for.

    True also where nobody has said yet what is in the batch.
    """
    punica = getattr(linear, "punica_wrapper", None)
    if punica is None or punica.indices_len[0] is None:
        return True
    if (kernels := getattr(punica, "token_mapping_meta", None)) is not None:  # not on a CPU
        return not bool(kernels.no_lora_flag_cpu)
    return bool((punica.token_lora_indices >= 0).any())


def may_vary_branches(config: Any) -> bool:
    """Whether the model may choose, batch by batch, how many branches run.

    Not on the V2 runner, where nobody knows a batch's rows before its logits; and not with CUDA graphs, which repeat
    for all batches what was chosen when they were recorded.
    """
    from vllm.config import CUDAGraphMode

    without_graphs = config.compilation_config.cudagraph_mode in (None, CUDAGraphMode.NONE)
    return without_graphs and not config.use_v2_model_runner


def compile_on_a_cpu(config: Any) -> None:
    """Compile on a CPU as vLLM does without LoRA: with LoRA it compiles nothing there, its operations being in the way.

    Ours are one operation to the compiler (`cpu_lora`). `--enforce-eager` stays as it is.
    """
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    compilation = config.compilation_config
    eager = config.model_config.enforce_eager or compilation.backend != "inductor"
    if current_platform.is_cpu() and not eager and compilation.mode == CompilationMode.NONE:
        compilation.mode = CompilationMode.DYNAMO_TRACE_ONCE
        compilation.custom_ops[:] = ["none" if name == "all" else name for name in compilation.custom_ops]


def group_cpu_lora() -> None:
    """Let engines of this process apply LoRA on a CPU by `cpu_lora.GroupedLora`."""
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: "unlearngate.server.worker.cpu_lora.GroupedLora")


@cache
def penalise_after_composing() -> None:
    """Let the V2 runner's sampler apply penalties after the composition, once for this process, as the V1 runner does.

    Penalties scale logits, so the order shows in the answer; V2 has them before any custom processor.
    """
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    init = Sampler.__init__

    def reordered(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.logits_processors.remove(self.penalties_state)
        self.logits_processors.append(self.penalties_state)

    Sampler.__init__ = reordered


def describe_error(error: Exception) -> tuple[int, str, str | None]:
    """HTTP status, message and offending field for an error that came out of vLLM's handlers."""
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineDeadError):
        return 503, "the engine has ended; the server is stopping", None
    info = create_error_response(error).error
    return info.code, info.message, info.param
