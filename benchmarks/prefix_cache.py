"""How much of a shared prompt is found in vLLM's prefix cache while sets are in force."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Annotated

import torch
import typer
from rich.console import Console
from rich.progress import track

from benchmarks.serving import OFF, PLAIN, Situation, Worker
from benchmarks.shapes import configuration, make_sets, make_target

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    shape: Annotated[str, typer.Option(help="as in benchmarks.serving; weights are random")] = "trial",
    layers: Annotated[int, typer.Option(min=1, help="K, an assistant's layers")] = 4,
    requests: Annotated[int, typer.Option(min=2, help="in each situation, one after the other")] = 32,
    shared_tokens: Annotated[
        int, typer.Option(min=0, help="of a prompt, the same in all requests: whole blocks of the cache")
    ] = 1024,
    own_tokens: Annotated[int, typer.Option(min=1, help="of a prompt, of this request alone")] = 32,
    dtype: Annotated[str, typer.Option(help="float32 or bfloat16")] = "float32",
) -> None:
    """Ask with one system prompt, with and without sets in force, and write how much of it was computed once.

    vLLM keys a block by its tokens and the adapter, which is the combination of sets in force with their versions. So a
    combination's first request computes the prompt; the others find it, whatever weights and gates they ask for.

    Example:  python -m benchmarks.prefix_cache --requests 16
    """
    cache = Path(tempfile.gettempdir()) / f"unlearngate-bench-{shape}-{dtype}"
    target = make_target(cache / "target", shape, getattr(torch, dtype))
    folder = cache / f"sets-{layers}"
    names = make_sets(folder, target, count=16, num_layers=layers, tap_layer=0)
    common: list[str | Path] = ["--target", target, "--dtype", dtype, "--prefix-caching"]
    ours: list[str | Path] = ["--sets", folder, "--max-loaded", "16"]
    config = configuration(shape)
    typer.echo(f"{shape}: {config.num_hidden_layers} layers, K = {layers}; {requests} requests in turn, each of "
               f"{shared_tokens} shared tokens and {own_tokens} of its own\n")  # fmt: skip
    typer.echo("| sets in force | prompt tokens found in the cache | the most that keying by sets allows |")
    typer.echo("|---|---|---|")
    console = Console(stderr=True)
    with ExitStack() as stack:
        work = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        workers = {}
        for name, options in track({"plain": [], "ours": ours}.items(), description="engines start", console=console):
            workers[name] = Worker([*common, *options, "--work", work / name])
            stack.callback(workers[name].close)
        for beginning, situation in enumerate(_situations(names)):
            wanted = situation.sets(requests)
            prompt = {"prompt_tokens": shared_tokens + own_tokens, "shared_tokens": shared_tokens}
            found = 0
            for sets in track(wanted, description=situation.name, console=console):
                answer = workers[situation.engine].run(sets=[sets], beginning=beginning, new_tokens=2, **prompt)
                found += answer["cached_tokens"]
            total = requests * (shared_tokens + own_tokens)
            most = (requests - len({tuple(sets) for sets in wanted})) * shared_tokens
            typer.echo(f"| {situation.name} | {found / total:.1%} | {most / total:.1%} |")


def _situations(names: Sequence[str]) -> list[Situation]:
    return [
        Situation(PLAIN, "plain", [[]]),
        Situation(OFF, "ours", [[]]),
        Situation("one set", "ours", [[names[0]]]),
        Situation("one set, every other request", "ours", [[names[0]], []]),
        Situation("16 sets in turn", "ours", [[name] for name in names]),
    ]


if __name__ == "__main__":
    app()
