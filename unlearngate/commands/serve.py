"""`unlearngate serve`: start the server; without a model the demo's."""

from __future__ import annotations

import gc
import inspect
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from annotated_types import Ge, Le
from pydantic.fields import FieldInfo

from unlearngate.commands._shared import demo_folder, errors_as_sentences
from unlearngate.commands.models import with_sets
from unlearngate.server.config import ServerConfig


def _with_options(command: Callable[..., None]) -> Callable[..., None]:
    """Give the command, besides its own arguments, an option for every field of ServerConfig but the target."""
    own = [p for p in inspect.signature(command, eval_str=True).parameters.values() if p.kind is not p.VAR_KEYWORD]
    fields = {name: field for name, field in ServerConfig.model_fields.items() if name != "target"}
    command.__signature__ = inspect.Signature([*own, *(_option(*one) for one in fields.items())])  # type: ignore[attr-defined]
    command.__annotations__ = {}
    return command


def _option(name: str, field: FieldInfo) -> inspect.Parameter:
    bounds: dict[str, Any] = {"min": None, "max": None}
    for one in field.metadata:
        bounds |= {"min": one.ge} if isinstance(one, Ge) else {"max": one.le} if isinstance(one, Le) else {}
    repeated = field.default == ()
    flag = [f"--{name.replace('_', '-')}"] if field.annotation is bool else []  # and no --no-...
    default = None if repeated or field.is_required() else field.default
    kind: Any = list[str] if repeated else field.annotation
    if default is None:
        kind = kind | None
    option = Annotated[kind, typer.Option(*flag, help=field.description, **bounds)]
    return inspect.Parameter(name, inspect.Parameter.KEYWORD_ONLY, default=default, annotation=option)


@contextmanager
def _uncollected() -> Iterator[None]:
    """Keep Python's collector of cycles from what is made inside, or until `collect_from_now`.

    What imports make stays. To go through it again and again takes a quarter of the time that vLLM's imports take.
    An end by an error leaves nothing uncollected: libraries would say so, and have the last word.
    """
    gc.disable()
    try:
        yield
    finally:
        gc.unfreeze()
        gc.enable()


@_with_options
def serve(
    model: Annotated[
        Path | None,
        typer.Argument(help="the target's Hugging Face checkpoint folder, or a name that `models list` has"),
    ] = None,
    **options: Any,
) -> None:
    """Serve a target with its forget sets over OpenAI's HTTP API.

    Without MODEL the tiny demo is served. `smollm2-135m-instruct` is fetched at first (93 MB), and served with sets for
    two topics that it knows unless --forget-sets says otherwise; `smollm2-135m-taught` is that model after a lesson
    about a person who does not exist, and has a set for her, too.

    Example:  unlearngate serve ./Llama-3.1-8B-Instruct --forget-sets ./sets --default-set acme-takedown
    """
    from unlearngate.assistant_training.demo.real import models_with_sets

    with errors_as_sentences(), _uncollected():
        if model is not None and not model.exists() and (found := with_sets(str(model))):
            options["name"] = options["name"] or str(model)
            model, sets = found
            options["forget_sets"] = options["forget_sets"] or sets
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "2")
            options["engine_args"] = f"--dtype float32 --enforce-eager --max-model-len 2048 {options['engine_args']}"
        elif model is None:
            from unlearngate.assistant_training.demo.build import build_demo

            demo = build_demo(demo_folder(None)).folder
            model = demo / "target"
            options["forget_sets"] = options["forget_sets"] or demo / "forget_sets"
            options["name"] = options["name"] or "demo"
            # The demo is tiny: float32 costs nothing, 1 GiB of cache is plenty, compiling never pays.
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            options["engine_args"] = f"--dtype float32 --enforce-eager {options['engine_args']}"
        if options["forget_sets"] is None:
            known = ", ".join(models_with_sets())
            raise typer.BadParameter(f"a MODEL needs --forget-sets DIR, but for {known}", param_hint="--forget-sets")

        from unlearngate.server.launch import serve as run

        given = {name: value for name, value in options.items() if value is not None}
        code = run(ServerConfig(target=model, **given))
    # All is closed, and Python would take seconds to tear down vLLM's modules.
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
