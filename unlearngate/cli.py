"""The command line. Only this module knows both the offline and the online side."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console
from rich.table import Table

from unlearngate.commands._shared import errors_as_sentences
from unlearngate.commands.audit import app as audit_app
from unlearngate.commands.calibrate import calibrate
from unlearngate.commands.evaluate import app as evaluate_app
from unlearngate.commands.keys import app as keys_app
from unlearngate.commands.reproduce import reproduce
from unlearngate.commands.sets import app as sets_app
from unlearngate.commands.train import app as train_app
from unlearngate.errors import UnlearngateError

app = typer.Typer(
    help="Serve an LLM and take chosen knowledge away from it per request, with its weights untouched.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
demo_app = typer.Typer(help="The demo: a small target that knows fictional people by heart, and sets that forget some.")
app.add_typer(demo_app, name="demo")
app.add_typer(sets_app, name="sets")
app.add_typer(keys_app, name="keys")
app.add_typer(train_app, name="train")
app.add_typer(evaluate_app, name="evaluate")
app.add_typer(audit_app, name="audit")
app.command("calibrate")(calibrate)
app.command("reproduce")(reproduce)


@demo_app.command("build")
def demo_build(
    out: Annotated[Path | None, typer.Option(help="where it goes; default: below $XDG_CACHE_HOME or ~/.cache")] = None,
    tofu: Annotated[Path | None, typer.Option(help="build from TOFU's JSON lines in this folder instead")] = None,
    authors: Annotated[int, typer.Option(min=4, help="people the target learns")] = 12,
    sets: Annotated[int, typer.Option(min=1, help="people a forget set is made for")] = 3,
    seed: Annotated[int, typer.Option(help="same seed, same demo")] = 0,
    force: Annotated[bool, typer.Option(help="build again even if it is there")] = False,
) -> None:
    """Train the demo target and its forget sets, and check that they do what is promised.

    Writes OUT/target, OUT/forget_sets/NAME and OUT/probes.jsonl; takes a few minutes on two cores, and nothing the next
    time. Example:  unlearngate demo build --tofu data/tofu --authors 12
    """
    from unlearngate.assistant_training.demo.build import build_demo

    with errors_as_sentences():
        summary = build_demo(
            out or demo_folder(tofu), tofu=tofu, num_authors=authors, num_forget_sets=sets, seed=seed, force=force
        )
    header, rows = summary.table()
    state = "already there, built in" if summary.reused else "built in"
    _print_table(f"{summary.folder}, {state} {summary.seconds:.0f} s", header, rows)


@demo_app.command("probe")
def demo_probe(
    url: Annotated[str, typer.Option(help="a server that serves the demo")] = "http://127.0.0.1:8000",
    name: Annotated[str, typer.Option(help="the served model name")] = "demo",
    folder: Annotated[Path | None, typer.Option(help="the demo's folder; default: the cached one")] = None,
    require: Annotated[bool, typer.Option(help="exit 1 unless the demo's promise holds")] = False,
) -> None:
    """Ask a running server every question, plainly and with each forget set, and count what it still recites.

    Recited: ROUGE-L recall of at least 0.9, greedy. Unchanged: token for token. Start the server first, with
    unlearngate serve.
    """
    from openai import OpenAIError
    from rich.progress import Progress

    from unlearngate.assistant_training.demo.probing import probe_server, read_probes

    with errors_as_sentences():
        probes = read_probes((folder or demo_folder(None)) / "probes.jsonl")
        try:
            with Progress() as progress:
                outcomes = probe_server(url, name, probes, progress=progress)
        except OpenAIError as error:
            raise UnlearngateError(f"{url} does not answer as the demo would: {error}") from error
    rows = [[o.forget_set, *(f"{v:.1%}" for v in o.figures().values())] for o in outcomes]
    _print_table(f"{len(probes)} questions to {url}", ["forget set", *outcomes[0].figures()], rows)
    if require and not all(o.keeps_the_promise() for o in outcomes):
        raise typer.Exit(1)


@demo_app.command("path")
def demo_path() -> None:
    """Print the folder the demo is built in."""
    typer.echo(demo_folder(None))


@app.command()
def serve(
    model: Annotated[
        Path | None, typer.Argument(help="the target's Hugging Face checkpoint folder; left out: the demo")
    ] = None,
    forget_sets: Annotated[
        Path | None, typer.Option(help="folder with one sub-folder per forget set; changes are noticed")
    ] = None,
    state: Annotated[
        Path | None, typer.Option(help="keep what is in force in this folder, across restarts; for this server alone")
    ] = None,
    watch_interval_s: Annotated[
        float, typer.Option(min=0, help="how often --forget-sets is looked at for changes; 0: never")
    ] = 2.0,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    name: Annotated[str | None, typer.Option(help="model name that clients use; default: the folder's")] = None,
    default_set: Annotated[
        list[str] | None, typer.Option(help="in force when a request does not say; repeat for several")
    ] = None,
    required_set: Annotated[
        list[str] | None, typer.Option(help="in force for every request, whatever it says; repeat for several")
    ] = None,
    keys: Annotated[
        Path | None, typer.Option(help="file of API keys (unlearngate keys); with it every request needs one")
    ] = None,
    gateway_secret_file: Annotated[
        Path | None, typer.Option(help="secret by which a gateway may require sets and say the tenant")
    ] = None,
    require_gateway: Annotated[
        bool, typer.Option("--require-gateway", help="refuse requests that do not come through the gateway")
    ] = False,
    max_sets_per_request: Annotated[int, typer.Option(min=1, max=8, help="assistant branches of the model")] = 2,
    max_loaded: Annotated[int, typer.Option(min=1, help="combinations of sets that one batch may hold")] = 8,
    max_known: Annotated[int, typer.Option(min=1, help="combinations of sets kept in memory")] = 64,
    max_rank: Annotated[
        int, typer.Option(min=1, max=512, help="room for sets of this LoRA rank that come while the server runs")
    ] = 1,
    assistant_layers: Annotated[
        int | None, typer.Option(min=1, help="layers of every assistant; default: as in most of the sets")
    ] = None,
    assistant_tap: Annotated[
        int | None,
        typer.Option(min=0, help="layer that every assistant starts before; default: as in most of the sets"),
    ] = None,
    enable_undial: Annotated[
        bool,
        typer.Option("--enable-undial", help="also serve sets of kind undial, which put LoRA on the target itself"),
    ] = False,
    audit: Annotated[Path | None, typer.Option(help="write an audit log to this file or folder")] = None,
    audit_max_mb: Annotated[int, typer.Option(min=1, help="size from which the audit log goes on in a new file")] = 256,
    max_body_mb: Annotated[int, typer.Option(min=1, help="largest body of a request, in MiB; larger ones are 413")] = 4,
    drain_timeout_s: Annotated[int, typer.Option(min=0, help="how long running requests may finish on SIGTERM")] = 30,
    engine_args: Annotated[
        str, typer.Option(help='vLLM options in one string, e.g. "--max-model-len 4096 --tensor-parallel-size 2"')
    ] = "",
) -> None:
    """Serve a target with its forget sets over OpenAI's HTTP API.

    Without MODEL the demo is served, and built first if it is not there.
    Example:  unlearngate serve ./Llama-3.1-8B-Instruct --forget-sets ./sets --default-set acme-takedown
    """
    with errors_as_sentences():
        if model is None:
            from unlearngate.assistant_training.demo.build import build_demo

            demo = build_demo(demo_folder(None)).folder
            model, forget_sets, name = demo / "target", forget_sets or demo / "forget_sets", name or "demo"
            # The demo is tiny: float32 costs nothing, and 1 GiB of cache is plenty.
            os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
            engine_args = f"--dtype float32 {engine_args}"
        if forget_sets is None:
            raise typer.BadParameter("a MODEL needs --forget-sets DIR", param_hint="--forget-sets")

        from unlearngate.server.launch import ServerConfig
        from unlearngate.server.launch import serve as run

        code = run(
            ServerConfig(
                target=model,
                forget_sets=forget_sets,
                state=state,
                watch_interval_s=watch_interval_s,
                host=host,
                port=port,
                served_name=name,
                default_sets=tuple(default_set or ()),
                required_sets=tuple(required_set or ()),
                keys=keys,
                gateway_secret_file=gateway_secret_file,
                require_gateway=require_gateway,
                max_sets_per_request=max_sets_per_request,
                max_loaded=max_loaded,
                max_known=max_known,
                max_rank=max_rank,
                assistant_layers=assistant_layers,
                assistant_tap=assistant_tap,
                enable_undial=enable_undial,
                audit=audit,
                audit_max_mb=audit_max_mb,
                max_body_mb=max_body_mb,
                drain_timeout_s=drain_timeout_s,
                engine_arguments=tuple(shlex.split(engine_args)),
            )
        )
    raise typer.Exit(code)


def demo_folder(tofu: Path | None) -> Path:
    """Where the demo is cached."""
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    return cache / "unlearngate" / ("demo-tofu" if tofu else "demo")


def _print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


if __name__ == "__main__":
    app()
