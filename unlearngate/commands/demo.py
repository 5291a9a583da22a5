"""`unlearngate demo`: build the demo, and ask a server that serves it."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from unlearngate.commands._shared import demo_folder, errors_as_sentences, print_table
from unlearngate.errors import UnlearngateError
from unlearngate.progress import shown_progress

app = typer.Typer(help="The demo: a small target that knows fictional people by heart, and sets that forget some.")


@app.command("build")
def demo_build(
    out: Annotated[Path | None, typer.Option(help="where it goes; default: below $XDG_CACHE_HOME or ~/.cache")] = None,
    tofu: Annotated[Path | None, typer.Option(help="build from TOFU's JSON lines in this folder instead")] = None,
    authors: Annotated[int, typer.Option(min=4, help="people the target learns")] = 12,
    sets: Annotated[int, typer.Option(min=1, help="people a forget set is made for")] = 3,
    seed: Annotated[int, typer.Option(help="same seed, same demo")] = 0,
    force: Annotated[bool, typer.Option(help="build again even if it is there")] = False,
) -> None:
    """Train the demo target and its forget sets, and check that they forget and keep what they should.

    Writes OUT/target, OUT/forget_sets/NAME and OUT/probes.jsonl. The demo of the default settings comes with the
    package and is only copied; with --force it is trained, in half an hour on one core.
    Example:  unlearngate demo build --tofu data/tofu --authors 12
    """
    from unlearngate.assistant_training.demo.build import build_demo

    with errors_as_sentences():
        summary = build_demo(
            out or demo_folder(tofu), tofu=tofu, num_authors=authors, num_forget_sets=sets, seed=seed, force=force
        )
    header, rows = summary.table()
    state = "already there, built in" if summary.reused else "built in"
    print_table(f"{summary.folder}, {state} {summary.seconds:.0f} s", header, rows)


@app.command("probe")
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

    from unlearngate.assistant_training.demo.probing import probe_server, read_probes

    with errors_as_sentences():
        probes = read_probes((folder or demo_folder(None)) / "probes.jsonl")
        try:
            with shown_progress() as progress:
                outcomes = probe_server(url, name, probes, progress=progress)
        except OpenAIError as error:
            raise UnlearngateError(f"{url} does not answer as the demo would: {error}") from error
    rows = [[o.forget_set, *(f"{v:.1%}" for v in o.figures().values())] for o in outcomes]
    print_table(f"{len(probes)} questions to {url}", ["forget set", *outcomes[0].figures()], rows)
    if require and not all(o.keeps_the_promise() for o in outcomes):
        raise typer.Exit(1)


@app.command("path")
def demo_path() -> None:
    """Print the folder the demo is built in."""
    typer.echo(demo_folder(None))
