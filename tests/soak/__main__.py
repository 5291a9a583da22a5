"""Ask a server that changes its sets, for as long as wanted, and check every answer."""

from __future__ import annotations

import json
import random
import subprocess
import sys
import tempfile
import threading
import time
from pathlib import Path
from typing import Annotated

import psutil
import typer
from prometheus_client.parser import text_string_to_metric_families
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from soak.changes import Changes
from soak.load import Load
from soak.report import Report, Sample, memory
from soak.server import World, call

from support.server import Server
from unlearngate.files import complete_lines

SAMPLE_EVERY_S = 5.0

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="where soak.md, soak.json and soak.png go")] = Path("build/soak"),
    minutes: Annotated[float, typer.Option(min=0.05, help="how long the load lasts")] = 30.0,
    clients: Annotated[int, typer.Option(min=1, help="that ask at the same time")] = 6,
    changes_every: Annotated[float, typer.Option(min=0.0, help="seconds between changes, on average")] = 2.0,
    seed: Annotated[int | None, typer.Option(help="of everything that is drawn; random unless given")] = None,
) -> None:
    """Load a server with requests of every kind while forget sets are added, replaced, pinned, required and removed.

    Every token is compared with Hugging Face + PEFT for the versions that were in force, every answer with its line in
    the audit log. Exit code 1 if an answer is wrong or missing, a request is left in the engine, or memory grows by
    more than 5 %.

    Example:  PYTHONPATH=tests python -m soak --minutes 30
    """
    seed = random.randrange(2**32) if seed is None else seed
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as folder:
        report, samples, complaints = soak(Path(folder), minutes, clients, changes_every, seed)
    report.write(out, samples)
    typer.echo(report.markdown())
    for complaint in [*complaints[:20], *report.failures]:
        typer.secho(complaint[:600], fg="red", err=True)
    raise typer.Exit(1 if report.failures else 0)


def soak(
    base: Path, minutes: float, clients: int, changes_every: float, seed: int
) -> tuple[Report, list[Sample], list[str]]:
    """Run it.

    Returns: the report, the samples, what is wrong in words.
    Raises: RuntimeError if the server does not start, refuses a change or goes away.
    """
    rng = random.Random(seed)
    world = World(base, seed=rng.randrange(2**16))
    columns = (SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn())
    with world.server() as server, Progress(*columns) as progress:
        bar = progress.add_task("soak: the server starts", total=None)
        server.wait_until_healthy()
        load, changes, stop = Load(world, server, seed), Changes(world, server, rng), threading.Event()
        threads = [threading.Thread(target=load.client, args=(number, stop)) for number in range(clients)]
        samples: list[Sample] = []
        began = time.monotonic()
        try:
            for thread in threads:
                thread.start()
            while (elapsed := time.monotonic() - began) < 60 * minutes:
                if elapsed >= SAMPLE_EVERY_S * len(samples):
                    samples.append(Sample(elapsed / 60, memory_mib(server), load.tally.counts["tokens"]))
                changes.one()
                time.sleep(rng.uniform(0, 2 * changes_every))
                progress.update(bar, description=_state(load, changes))
        finally:
            stop.set()
            for thread in threads:
                thread.join()
        elapsed = time.monotonic() - began
        left, audited, differs = still_running(server), len(load.tally.in_force), audit_differences(world, load)
        exit_code = server.stop()
    counts = load.tally.counts
    start, end = memory(samples)
    report = Report(
        seed=seed,
        minutes=elapsed / 60,
        requests=counts["requests"] + len(load.tally.unanswered),
        tokens=counts["tokens"],
        outcomes={name: count for name, count in counts.items() if name not in ("requests", "tokens")},
        changes=dict(changes.done),
        wrong=len(load.tally.wrong),
        unanswered=len(load.tally.unanswered),
        audited=audited,
        audit_differs=len(differs),
        still_running=left,
        memory_start_mib=start,
        memory_end_mib=end,
        exit_code=exit_code,
    )
    return report, samples, [*load.tally.wrong, *load.tally.unanswered, *differs]


def memory_mib(server: Server) -> float:
    """What all the server's processes would give back if they ended: what is theirs alone, whoever else runs."""
    parent = psutil.Process(server.process.pid)
    return sum(p.memory_full_info().uss for p in (parent, *parent.children(recursive=True))) / 2**20


def still_running(server: Server) -> int:
    """Requests that the engine still has once the last client is gone."""
    for _ in range(100):
        text = call(server, "GET", "/metrics").text
        samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
        left = sum(s.value for s in samples if s.name in ("vllm:num_requests_running", "vllm:num_requests_waiting"))
        if not left:
            break
        time.sleep(0.1)
    return int(left)


def audit_differences(world: World, load: Load) -> list[str]:
    """Answers whose audit lines say something else than the answers did, and whether the log is whole."""
    folder = world.base / "audit"
    command = [sys.executable, "-m", "unlearngate.cli", "audit", "verify", str(folder)]
    verified = subprocess.run(command, capture_output=True, text=True)
    differs = [] if verified.returncode == 0 else [f"audit verify: {verified.stdout} {verified.stderr}"]
    ended: dict[str, list[str]] = {}
    for file in sorted(folder.glob("*.jsonl")):
        for line in map(json.loads, complete_lines(file)):
            if line["event"] == "ended" and line.get("client_request"):
                ended[line["client_request"]] = [f"{s['name']}@{s['digest'][:12]}" for s in line["sets"]]
    for request_id, sets in load.tally.in_force.items():
        if ended.get(request_id) != sets:
            differs.append(f"{request_id}: answered under {sets}, audited as {ended.get(request_id)}")
    return differs


def _state(load: Load, changes: Changes) -> str:
    counts = load.tally.counts
    return (
        f"soak: {counts['requests']} requests, {counts['tokens']} tokens, {changes.done.total()} changes, "
        f"{len(load.tally.wrong)} wrong, {len(load.tally.unanswered)} unanswered"
    )


if __name__ == "__main__":
    app()
