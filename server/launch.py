"""Start the server: check everything, start the engine, answer until told to stop, let running streams finish."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import resource
import shlex
import signal
import socket
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import AbstractAsyncContextManager, AbstractContextManager, AsyncExitStack, closing, contextmanager
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

import uvicorn
from rich.console import Console
from rich.table import Table

from unlearngate.processes import collect_from_now, use_one_thread
from unlearngate.sentences import Sentences
from unlearngate.server.audit.accounting import Accounting
from unlearngate.server.audit.log import Audit
from unlearngate.server.config import ServerConfig
from unlearngate.server.contract.options import OWN_GROUP_VARIABLE, engine_options
from unlearngate.server.contract.refusals import refuse_arguments, refuse_unsupported
from unlearngate.server.contract.tally import Tally
from unlearngate.server.engine.usage import Meter
from unlearngate.server.http.access import Access
from unlearngate.server.http.connections import GuardedHttp
from unlearngate.server.http.gateway import Gateway
from unlearngate.server.http.keyring import Keyring
from unlearngate.server.http.readiness import Readiness, readiness_routes
from unlearngate.server.http.requests.bounds import Bounds
from unlearngate.server.metrics import CANARY_FAILURES
from unlearngate.server.sets.canaries import Canaries
from unlearngate.server.sets.lifecycle import Lifecycle, keep_looking, keep_proving
from unlearngate.server.sets.policy import Policy
from unlearngate.server.sets.registry import Registry
from unlearngate.server.sets.store import Store
from unlearngate.server.starting import ended_at_once, explained
from unlearngate.target import TargetIdentity, identify_quantised, identify_target

logger = logging.getLogger(__name__)

_OPEN_FILES = 65535
_CHARS_PER_TOKEN = 32  # more than text has: a longer prompt does not fit, and need not be tokenised to see that
_KEEP_ALIVE_S = 75  # longer than clients and gateways keep a connection that they may use again (httpx 5, nginx 60)
_NO_TRACKER = "ignore:resource_tracker"


def serve(config: ServerConfig) -> int:
    """Run the server until SIGTERM or SIGINT. Returns the exit code: 0, or 1 if the engine died.

    Raises: ArtefactError, UnsupportedDeploymentError, OSError (port taken) before the engine is started.
    """
    os.environ.setdefault("VLLM_NO_USAGE_STATS", "1")
    os.environ.setdefault("VLLM_MAX_N_SEQUENCES", "128")  # OpenAI's limit; vLLM's 16384 would take an engine hours
    os.environ[OWN_GROUP_VARIABLE] = "1"
    # Python's tracker frees what a failed engine left, and would have the last word after the reason.
    os.environ["PYTHONWARNINGS"] = ",".join(filter(None, (os.environ.get("PYTHONWARNINGS"), _NO_TRACKER)))
    num_threads = use_one_thread()
    _log_what_we_do()
    _allow_many_connections()
    access = _access(config)
    listener = _listen(config.host, config.port)
    try:
        with tempfile.TemporaryDirectory(prefix="unlearngate-") as scratch, ended_at_once(Path(scratch)):
            target = _identify(config)
            with _audit(config, target.model_id) as audit:
                store = Store(config.state or Path(scratch) / "state")
                registry = Registry(
                    target, store.bindings, Sentences(config.target), needs_proof=config.quantised_from is not None
                )
                write_event = audit.append if audit else None
                lifecycle = Lifecycle(registry, config.forget_sets, store, write_event=write_event)
                lifecycle.start(
                    tap_layer=config.assistant_tap,
                    num_layers=config.assistant_layers,
                    undial=config.enable_undial,
                )
                policy = Policy(
                    registry,
                    served_name=target.model_id,
                    num_branches=config.max_sets_per_request,
                    default_sets=config.default_set,
                    required_sets=config.required_set,
                    logprobs=config.logprobs,
                )
                policy.refuse_impossible(access.known_callers())
                from unlearngate.server.engine import compat  # takes seconds: everything above should fail before

                arguments = _engine_namespace(config, registry)
                engine_config = compat.engine_config(arguments)
                refuse_unsupported(engine_config)
                _warn_of_other_dtypes(registry, str(engine_config.model_config.dtype).removeprefix("torch."))
                _warn_of_other_switches(registry, getattr(arguments, "default_chat_template_kwargs", None) or {})
                tally = Tally.create(
                    Path(scratch),
                    max_num_seqs=engine_config.scheduler_config.max_num_seqs,
                    max_model_len=engine_config.model_config.max_model_len,
                )
                accounting = Accounting(Meter(tally), audit)
                start = explained(Path(scratch), compat.logging_config())
                unwanted = [listener.fileno(), *([audit.fileno()] if audit else [])]
                engine = compat.engine_client(arguments, num_threads, unwanted)
                running = _run(config, lifecycle, policy, access, accounting, arguments, listener, engine, start)
                collect_from_now()
                return asyncio.run(running)
    finally:
        listener.close()


def _identify(config: ServerConfig) -> TargetIdentity:
    if config.quantised_from is None:
        return identify_target(config.target, config.name)
    found = identify_quantised(config.target, config.quantised_from, config.name)
    logger.info(
        "%s is quantised by %s; forget sets are for the weights that it was made from, sha256 %s..., and are in force "
        "once their canaries hold here",
        *(found.target.model_id, found.method, found.target.weights_digest[:12]),
    )
    return found.target


def _log_what_we_do() -> None:
    """Configure our own loggers, which vLLM does not: every change of the sets in force should leave a line."""
    handler = logging.StreamHandler()
    handler.setFormatter(logging.Formatter("%(levelname)s %(asctime)s %(name)s: %(message)s"))
    ours = logging.getLogger("unlearngate")
    ours.setLevel(logging.INFO)
    ours.addHandler(handler)


def _allow_many_connections() -> None:
    """Raise the limit of open files, which is often 1024: each connection is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _OPEN_FILES if hard == resource.RLIM_INFINITY else min(hard, _OPEN_FILES)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def _access(config: ServerConfig) -> Access:
    gateway = None
    if config.gateway_secret_file:
        gateway = Gateway.from_file(config.gateway_secret_file, demanded=config.require_gateway)
    return Access(Keyring(config.keys) if config.keys else None, gateway)


@contextmanager
def _audit(config: ServerConfig, model: str) -> Iterator[Audit | None]:
    if config.audit is None:
        yield None
        return
    audit = Audit(config.audit, max_bytes=config.audit_max_mb * 2**20, model=model, unlearngate=version("unlearngate"))
    with closing(audit):
        yield audit


def _listen(host: str, port: int) -> socket.socket:
    """Bind the port first: a port that is taken should not cost an engine start."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listener = socket.socket(family, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind((host, port))
    except OSError as error:
        listener.close()
        raise OSError(error.errno, f"cannot listen on {host}:{port}: {error.strerror}; choose another --port") from None
    listener.set_inheritable(False)
    return listener


def _engine_namespace(config: ServerConfig, registry: Registry) -> Any:
    branches, max_rank = registry.branches(config.max_sets_per_request), registry.max_rank(config.max_rank)
    registry.limit(branches, max_rank)
    options = engine_options(
        branches,
        max_rank=max_rank,
        max_loaded=config.max_loaded,
        max_known=config.max_known,
    )
    words = ["--model", str(config.target), "--served-model-name", registry.target.model_id]
    given = shlex.split(config.engine_args)
    words += ["--shutdown-timeout", str(config.drain_timeout_s), *given]
    refuse_arguments(given, [_flag(name) for name in options])
    for name, value in options.items():
        words += _as_words(_flag(name), value)
    from unlearngate.server.engine import compat

    return compat.parse_engine_arguments(words)


def _warn_of_other_dtypes(registry: Registry, served: str) -> None:
    """A gate or a figure that was measured in one dtype may be another in a coarser one."""
    for forget_set in registry.sets.values():
        measured = forget_set.manifest.training.get("dtype")
        if measured not in (None, served):
            logger.warning(
                "%s was measured in %s and is served in %s: its gate may open elsewhere. Serve with --engine-args "
                "'--dtype %s', or calibrate it on a checkpoint in %s",
                *(forget_set.reference, measured, served, measured, served),
            )


def _warn_of_other_switches(registry: Registry, served: Mapping[str, Any]) -> None:
    """A set trained on prompts that close a thought, say, was never shown what is served with the thought open."""
    for forget_set in registry.sets.values():
        trained = forget_set.manifest.chat_template_kwargs
        if forget_set.manifest.kind != "verbatim" and trained != dict(served):
            logger.warning(
                "%s was trained with the chat template's switches %s, and requests are served with %s unless they say "
                "otherwise: its gate may stay shut. Serve with --engine-args \"--default-chat-template-kwargs '%s'\", "
                "or train it with --chat-template-kwargs '%s'",
                *(
                    forget_set.reference,
                    json.dumps(trained),
                    json.dumps(served),
                    json.dumps(trained),
                    json.dumps(served),
                ),
            )


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _as_words(flag: str, value: Any) -> list[str]:
    if value is True:
        return [flag]
    if isinstance(value, dict):
        return [flag, json.dumps(value)]
    return [flag, *(value if isinstance(value, list) else [str(value)])]


async def _run(
    config: ServerConfig,
    lifecycle: Lifecycle,
    policy: Policy,
    access: Access,
    accounting: Accounting,
    arguments: Any,
    listener: socket.socket,
    client_of_engine: AbstractAsyncContextManager[Any],
    start: AbstractContextManager[None],
) -> int:
    from starlette.datastructures import State

    from unlearngate.server.engine import asking, client, compat
    from unlearngate.server.engine.adapters import Adapters
    from unlearngate.server.engine.definitions import Definitions
    from unlearngate.server.http.admin import admin_routes
    from unlearngate.server.http.app import Answerer, build_app

    async with AsyncExitStack() as running:
        state = State()
        with start:
            engine = await running.enter_async_context(client_of_engine)
            await compat.init_handlers(engine, state, arguments)
            compat.keep_prompt_logprobs()
        client.check_adapters(engine)
        compat.drop_adapter_info(engine)
        if compat.compiles_with_xgrammar(engine):
            definitions = Definitions(*compat.vocabulary(engine), config.max_compile_s)
            running.push_async_callback(definitions.close)
            client.try_definitions(engine, definitions)
        client.count_tokens(engine, accounting.meter)
        adapters = Adapters(policy.registry.bindings, engine, state, capacity=config.max_known)
        answerer = Answerer(policy, adapters, accounting, state, most_per_key=config.max_running_per_key)
        app = build_app(
            answerer,
            access,
            max_body_bytes=config.max_body_mb * 2**20,
            bounds=_bounds(config, compat.model_limits(state)[1]),
            allowed_origins=config.allowed_origin,
        )
        app.include_router(admin_routes(lifecycle))
        ask = partial(asking.ask, state)
        canaries = Canaries(adapters, accounting.meter, ask, served_name=policy.served_name)
        await lifecycle.require_proof(canaries.prove)
        policy.registry.check_not_empty(config.forget_sets)
        policy.refuse_impossible(access.known_callers())
        lifecycle.publish()

        async def check_engine() -> None:
            await engine.check_health()
            accounting.check()

        app.include_router(readiness_routes(Readiness(policy, access, check_engine)))
        drain_s = config.drain_timeout_s
        server = uvicorn.Server(
            uvicorn.Config(
                app,
                http=GuardedHttp,
                ws="none",
                log_level="info",
                timeout_graceful_shutdown=drain_s,
                timeout_keep_alive=_KEEP_ALIVE_S,
            )
        )
        beside = [asyncio.create_task(_stop_when_dead(engine, server)), asyncio.create_task(accounting.keep_synced())]
        if config.watch_interval_s:
            beside.append(asyncio.create_task(keep_looking(lifecycle, config.watch_interval_s)))
        if config.prove_every:
            beside.append(asyncio.create_task(keep_proving(lifecycle, 60 * config.prove_every, _count_failure)))
        _announce(policy.registry, listener)
        # Once done, uvicorn raises the signal that stopped it again. Ignore it: the engine still has to stop.
        signal.signal(signal.SIGTERM, lambda *_: None)
        signal.signal(signal.SIGINT, lambda *_: None)
        await server.serve(sockets=[listener])
        for task in beside:
            task.cancel()
        return 1 if engine.errored else 0


def _bounds(config: ServerConfig, max_model_len: int) -> Bounds:
    return Bounds(
        sequences=config.max_sequences,
        prompt_chars=config.max_prompt_chars or _CHARS_PER_TOKEN * max_model_len,
        request_chars=config.max_request_chars,
        messages=config.max_messages,
        definition_kb=config.max_definition_kb,
        definition_items=config.max_definition_items,
        repeats=config.max_repeats,
        biases=config.max_biases,
        parameters_kb=config.max_parameters_kb,
    )


def _count_failure(name: str) -> None:
    CANARY_FAILURES.labels(name).inc()


async def _stop_when_dead(engine: Any, server: uvicorn.Server) -> None:
    """A server without its engine must end, so that a supervisor starts it again."""
    while not engine.errored:
        await asyncio.sleep(0.5)
    logger.error("the engine died: stopping, exit code 1")
    server.should_exit = True


def _announce(registry: Registry, listener: socket.socket) -> None:
    host, port = listener.getsockname()[:2]
    table = Table(title=f"{registry.target.model_id} on http://{host}:{port}", title_justify="left")
    for column in ("forget set", "kind", "version", "digest", "weight", "keep_ratio", "gate_nats"):
        table.add_column(column)
    for forget_set in registry.sets.values():
        manifest = forget_set.manifest
        strength = [f"{v:g}" for v in manifest.recommended.model_dump().values()]
        table.add_row(forget_set.name, manifest.kind, manifest.version, forget_set.digest[:12], *strength)
    console = Console()
    console.print(table)
    for reason in registry.refused.values():
        console.print(f"refused: {reason}", style="red", markup=False)
