"""How long `unlearngate serve` takes until it is healthy, and the processor time that each of its processes takes."""

from __future__ import annotations

import os
import shlex
import signal
import socket
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path
from typing import Annotated, NamedTuple

import psutil
import torch
import typer

from benchmarks.shapes import make_sets, make_target

_EVERY_S = 0.1
_MOST_S = 900.0
_SERVE = f"{shlex.quote(sys.executable)} -m unlearngate.cli serve"

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Start(NamedTuple):
    """One start: seconds until /health answers; processor seconds, resident MiB by process; the machine's load."""

    wall_s: float
    cpu_s: float
    of_each: dict[str, tuple[float, int]]
    load: float


@app.command()
def main(
    command: Annotated[
        list[str] | None,
        typer.Option(help="a server without --port; repeat to compare several in turns; default: the demo's"),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="starts of each command that count")] = 3,
    known: Annotated[
        int,
        typer.Option(min=0, help="compare a server that knows one set, of random weights, with one that knows so many"),
    ] = 0,
    cold: Annotated[bool, typer.Option("--cold", help="an empty XDG_CACHE_HOME and VLLM_CACHE_ROOT each time")] = False,
) -> None:
    """Start servers in turns, after one start of each that does not count, and write medians.

    Processor time is that of all processes, and of those that have ended; where others use the machine, it says more
    than seconds do. "others" are processes that came and went.

    Example:  python -m benchmarks.start --rounds 5 --command "unlearngate serve" --command "old/bin/unlearngate serve"
    """
    commands = [_serve_sets(count) for count in (1, known)] if known else command or [_SERVE]
    found: dict[str, list[Start]] = {one: [] for one in commands}
    for number in range(rounds + (not cold)):
        for one, starts in found.items():
            with tempfile.TemporaryDirectory() as fresh:
                caches = {"XDG_CACHE_HOME": fresh, "VLLM_CACHE_ROOT": f"{fresh}/vllm"} if cold else {}
                start = time_start(one, os.environ | caches)
            parts = ", ".join(f"{name} {cpu_s:.1f} s {mib} MiB" for name, (cpu_s, mib) in start.of_each.items())
            typer.echo(f"{start.wall_s:.1f} s, processor {start.cpu_s:.1f} s ({parts}), load {start.load:.1f}: {one}")
            if number or cold:
                starts.append(start)
    typer.echo("\n| command | seconds, median (least-most) | processor seconds, median (least-most) |\n|---|---|---|")
    for one, starts in found.items():
        columns = [[start.wall_s for start in starts], [start.cpu_s for start in starts]]
        cells = [f"{statistics.median(x):.1f} ({min(x):.1f}-{max(x):.1f})" for x in columns]
        typer.echo(f"| `{one}` | {' | '.join(cells)} |")


def _serve_sets(count: int) -> str:
    """A server of a small target that knows so many sets, of one layer and rank 16 each: 1 MB on disk."""
    cache = Path(tempfile.gettempdir()) / "unlearngate-bench-trial-float32"
    target = make_target(cache / "target", "trial", torch.float32)
    folder = cache / f"known-{count}"
    make_sets(folder, target, count=count, num_layers=1, tap_layer=0)
    options = ["--forget-sets", str(folder), "--engine-args", "--dtype float32 --enforce-eager --max-model-len 2048"]
    return f"{_SERVE} {shlex.join([str(target), *options])}"


def time_start(command: str, environment: dict[str, str]) -> Start:
    """Start a server, wait until it is healthy, and stop it.

    Raises: RuntimeError with the end of its log if it ends, or is not healthy in time.
    """
    port = _free_port()
    with tempfile.TemporaryFile() as log:
        began = time.monotonic()
        words = [*shlex.split(command), "--port", str(port)]
        server = subprocess.Popen(words, env=environment, stdout=log, stderr=subprocess.STDOUT)
        try:
            while not _healthy(port):
                if server.poll() is not None or time.monotonic() - began > _MOST_S:
                    log.seek(0)
                    raise RuntimeError(f"{command!r} did not start: {log.read()[-2000:].decode(errors='replace')}")
                time.sleep(_EVERY_S)
            wall_s, load = time.monotonic() - began, os.getloadavg()[0]
            parent = psutil.Process(server.pid)
            of_each: dict[str, tuple[float, int]] = {}
            ended_s = 0.0
            for process in [parent, *parent.children(recursive=True)]:
                times, memory = process.cpu_times(), process.memory_info()
                name = f"{'server' if process == parent else Path(process.name()).name} {len(of_each) + 1}"
                of_each[name] = (times.user + times.system, memory.rss // 2**20)
                ended_s += times.children_user + times.children_system
            of_each["others"] = (ended_s, 0)
            return Start(wall_s, sum(cpu_s for cpu_s, _ in of_each.values()), of_each, load)
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(_MOST_S)


def _healthy(port: int) -> bool:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/health", timeout=5) as answer:
            return bool(answer.status == 200)
    except (urllib.error.URLError, OSError):
        return False


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port: int = free.getsockname()[1]
        return port


if __name__ == "__main__":
    app()
