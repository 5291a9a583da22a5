"""All uses of vLLM in the HTTP process that differ between versions or are not its public API. Tried: 0.32."""

from __future__ import annotations

import os
from argparse import Namespace
from collections.abc import Iterator, Sequence
from contextlib import AbstractAsyncContextManager, contextmanager
from functools import cache
from typing import Any

import torch
from pydantic import ValidationError
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.exceptions import VLLMError, VLLMValidationError
from vllm.lora.request import LoRARequest

from unlearngate.errors import UnsupportedDeploymentError, in_one_line
from unlearngate.processes import ForkContext, may_fork

CPU_KV_CACHE_BYTES = 4 * 2**30

__all__ = [
    "CPU_KV_CACHE_BYTES",
    "ChatCompletionRequest",
    "LoRARequest",
    "VLLMError",
    "VLLMValidationError",
    "bind_adapter",
    "compiles_with_xgrammar",
    "describe_error",
    "drop_adapter_info",
    "engine_client",
    "engine_config",
    "fork_on_a_cpu",
    "init_handlers",
    "keep_prompt_logprobs",
    "logging_config",
    "model_limits",
    "parse_engine_arguments",
    "prometheus_text",
    "unbind_adapter",
    "vocabulary",
]


def parse_engine_arguments(arguments: list[str]) -> Namespace:
    """Parse the words with vLLM's own `vllm serve` parser; exit with its usage message if they are wrong.

    On a CPU the KV cache has CPU_KV_CACHE_BYTES unless the words or the environment say otherwise.

    Raises: UnsupportedDeploymentError if vLLM finds them contradictory.
    """
    try:
        from vllm.entrypoints.common.cli_args import make_arg_parser, validate_parsed_serve_args
    except ModuleNotFoundError:  # 0.32
        from vllm.entrypoints.launchers.cli_args import make_arg_parser, validate_parsed_serve_args
    from vllm.utils.argparse_utils import FlexibleArgumentParser

    parser = make_arg_parser(FlexibleArgumentParser(prog="unlearngate serve MODEL --engine-args"))
    args = parser.parse_args(arguments)
    with _refusal_in_one_sentence():
        validate_parsed_serve_args(args)
    _bound_memory(args, parser.get_default("gpu_memory_utilization"))
    return args


def _bound_memory(args: Namespace, default_utilization: float) -> None:
    """On a CPU, give the KV cache a fixed size if nothing says how large it is: vLLM takes 92 % of all memory there."""
    from vllm.platforms import current_platform

    said = args.kv_cache_memory_bytes or os.environ.get("VLLM_CPU_KVCACHE_SPACE")
    if current_platform.is_cpu() and not said and args.gpu_memory_utilization == default_utilization:
        args.kv_cache_memory_bytes = CPU_KV_CACHE_BYTES


def logging_config() -> dict[str, Any]:
    """How vLLM's processes log unless they are told otherwise, for `logging.config.dictConfig`."""
    from vllm.logger import DEFAULT_LOGGING_CONFIG

    return DEFAULT_LOGGING_CONFIG


def engine_config(args: Namespace) -> Any:
    """The VllmConfig that these arguments make.

    Raises: UnsupportedDeploymentError if vLLM finds them contradictory, or does not know a parser that they name.
    """
    from vllm.engine.arg_utils import AsyncEngineArgs
    from vllm.entrypoints.launchers.launcher import validate_api_server_args

    with _refusal_in_one_sentence():
        validate_api_server_args(args)
        return AsyncEngineArgs.from_cli_args(args).create_engine_config()


@contextmanager
def _refusal_in_one_sentence() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        reason = in_one_line(error)
        if isinstance(error, ValidationError):
            first = error.errors(include_url=False)[0]
            reason = ": ".join([*map(str, first["loc"]), " ".join(first["msg"].removeprefix("Value error, ").split())])
        raise UnsupportedDeploymentError(
            f"vLLM refuses this configuration, which --engine-args can change: {reason}"
        ) from error


def engine_client(args: Namespace, num_threads: int, unwanted: Sequence[int]) -> AbstractAsyncContextManager[Any]:
    """An async context manager that starts the engine and yields vLLM's client for it.

    On a CPU the engine's processes are copies of this one where that is safe: see `fork_on_a_cpu`.

    Args:
        args: vLLM's.
        num_threads: of torch, in the engine.
        unwanted: file descriptors that the engine must not inherit.
    """
    from vllm.entrypoints.launchers.api_server.entry import build_async_engine_client
    from vllm.platforms import current_platform

    if current_platform.is_cpu() and may_fork():
        fork_on_a_cpu(num_threads, unwanted)
    else:
        torch.set_num_threads(num_threads)  # vLLM counts with it
        # Off a CPU vLLM would fork by itself, and what a copy must undo would not be undone.
        os.environ.setdefault("VLLM_WORKER_MULTIPROC_METHOD", "spawn")
    return build_async_engine_client(args)


def fork_on_a_cpu(num_threads: int, unwanted: Sequence[int] = ()) -> None:
    """Let the engine be a copy of this process, and its workers copies of it where they need no threads of their own.

    vLLM spawns on a CPU, because OpenMP reads how its threads are bound when it is loaded: so do we, unless they are
    not bound (VLLM_CPU_OMP_THREADS_BIND=nobind).
    """
    from vllm.v1.engine import utils
    from vllm.v1.executor import multiproc_executor

    engines, workers = ForkContext(num_threads, unwanted), ForkContext(num_threads)
    utils.get_mp_context = lambda: engines
    if os.environ.get("VLLM_CPU_OMP_THREADS_BIND") == "nobind":
        multiproc_executor.get_mp_context = lambda: workers


async def init_handlers(engine: Any, state: Any, args: Namespace) -> None:
    """Fill `state` with vLLM's serving handlers: openai_serving_chat, openai_serving_completion, ..._models.

    Every response's `model` is the served name, whatever adapter the request carries. An adapter's internal name stays
    private; other fields list the sets in force.
    """
    from vllm.entrypoints.launchers.api_server.app_state import init_app_state

    await init_app_state(engine, state, args, await engine.get_supported_tasks())
    models = state.openai_serving_models
    served_name = models.base_model_paths[0].name
    models.model_name = lambda lora_request=None: served_name


@cache
def keep_prompt_logprobs() -> None:
    """Let each choice of a stream find its prompt's log-probabilities, once for this process.

    They come with a choice's first output. Where a reader is slow vLLM 0.32 makes one output of several, and forgets
    them unless the first of these had them: the stream of the other choices then ends with an error.
    """
    from vllm.outputs import RequestOutput

    add = RequestOutput.add

    def kept(self: Any, next_output: Any, aggregate: bool) -> None:
        if not self.prompt_logprobs:  # vLLM has an empty list where it gave them before
            self.prompt_logprobs = next_output.prompt_logprobs
        add(self, next_output, aggregate)

    RequestOutput.add = kept


def model_limits(state: Any) -> tuple[str, int]:
    """The served model's folder, as the engine was given it, and how many tokens prompt and answer may have."""
    models = state.openai_serving_models
    return str(models.base_model_paths[0].model_path), int(models.registry.model_config.max_model_len)


def compiles_with_xgrammar(engine: Any) -> bool:
    """Whether xgrammar compiles what answers must match; `auto` may choose another for what it cannot compile."""
    return engine.vllm_config.structured_outputs_config.backend in ("auto", "xgrammar")


def vocabulary(engine: Any) -> tuple[str, int]:
    """The folder of the engine's tokenizer, and V, the number of its logits."""
    config = engine.model_config
    return str(config.tokenizer), int(config.get_vocab_size())


def unbind_adapter(state: Any, name: str) -> None:
    """The opposite of `bind_adapter`."""
    state.openai_serving_models.lora_requests.pop(name, None)


def drop_adapter_info(engine: Any) -> None:
    """Unregister vLLM's gauge `vllm:lora_requests_info`.

    Its labels are the names of all adapters that run and wait at a moment, and it keeps every combination for ever.
    With many sets nearly every step adds one. `unlearngate_requests_total` says which sets run.
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


def describe_error(error: Exception) -> tuple[int, str, str | None]:
    """HTTP status, message and offending field for an error that came out of vLLM's handlers."""
    from vllm.entrypoints.serve.exception_handling.error_response import create_error_response
    from vllm.v1.engine.exceptions import EngineDeadError

    if isinstance(error, EngineDeadError):
        return 503, "the engine has ended; the server is stopping", None
    info = create_error_response(error).error
    return info.code, info.message, info.param
