"""Ask a server for all that OpenAI's API documents, for as long as wanted, beside a client that wants little."""

from __future__ import annotations

import json
import os
import random
import statistics
import tempfile
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Annotated

import httpx
import psutil
import typer
from fuzz.bodies import MODEL, body
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

from support.demo import serve_demo
from support.server import FEW_KERNELS

ROUTES = {"chat": "/v1/chat/completions", "text": "/v1/completions", "responses": "/v1/responses"}
HANG_S = 120.0
LITTLE = {"model": MODEL, "prompt": "hello", "max_tokens": 4, "temperature": 0}
LITTLE_EVERY_S = 0.25
MEMORY_GROWTH = 0.05  # in the second half: in the first, helpers start and caches fill

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False)


class Fuzz:
    """Clients in threads, and what they found."""

    def __init__(self, url: str, seed: int) -> None:
        """Nothing is asked before `run`."""
        self.url, self.seed = url, seed
        self.statuses: Counter[int] = Counter()
        self.faults: list[str] = []
        self.waited_s: list[float] = []
        self._over, self._runs = threading.Event(), 0

    def run(self, minutes: float, clients: int) -> None:
        """Ask with so many clients for so long, and with the one that wants little."""
        self._over.clear()
        self._runs += 1
        threads = [threading.Thread(target=self._ask, args=(i,)) for i in range(clients)]
        threads.append(threading.Thread(target=self._want_little))
        for thread in threads:
            thread.start()
        columns = TextColumn("{task.description}"), TimeElapsedColumn()
        with Progress(SpinnerColumn(), *columns) as progress:
            task, end = progress.add_task("", total=None), time.monotonic() + 60 * minutes
            while time.monotonic() < end:
                worst = max(self.waited_s, default=0)
                progress.update(task, description=f"{self.statuses.total()} bodies, longest wait {worst:.1f} s")
                time.sleep(1)
        self._over.set()
        for thread in threads:
            thread.join()

    def _ask(self, client: int) -> None:
        rng = random.Random(f"{self.seed} {self._runs} {client}")
        with httpx.Client(timeout=HANG_S) as http:
            while not self._over.is_set():
                kind = rng.choice(sorted(ROUTES))
                asked = body(rng, kind)
                if rng.random() < 0.1:  # and some hang up
                    self._hang_up(http, kind, asked, rng.uniform(0, 0.5))
                    continue
                try:
                    answer = http.post(self.url + ROUTES[kind], json=asked)
                    self.statuses[answer.status_code] += 1
                    if answer.status_code >= 500 or '"code": 500' in answer.text or '"code":500' in answer.text:
                        self._fault(f"{answer.status_code} {answer.text[:300]}", asked)
                except httpx.HTTPError as error:
                    self._fault(f"{type(error).__name__} {error}", asked)

    def _hang_up(self, http: httpx.Client, kind: str, asked: object, after_s: float) -> None:
        try:
            http.post(self.url + ROUTES[kind], json=asked, timeout=httpx.Timeout(HANG_S, read=after_s))
        except httpx.ReadTimeout:
            self.statuses[0] += 1

    def _want_little(self) -> None:
        with httpx.Client(timeout=HANG_S) as http:
            while not self._over.wait(LITTLE_EVERY_S):
                before = time.monotonic()
                try:
                    status = http.post(self.url + ROUTES["text"], json=LITTLE).status_code
                except httpx.HTTPError as error:
                    status = str(error)
                if status != 200:
                    self._fault(f"who wants little got {status}", LITTLE)
                self.waited_s.append(time.monotonic() - before)

    def _fault(self, what: str, asked: object) -> None:
        self.faults.append(f"{what} for {json.dumps(asked)[:2000]}")


@app.command()
def main(
    out: Annotated[Path, typer.Option(help="where fuzz.json and the bodies with faults go")] = Path("build/fuzz"),
    minutes: Annotated[float, typer.Option(min=0.05, help="how long it lasts")] = 10.0,
    clients: Annotated[int, typer.Option(min=1, help="that ask at the same time")] = 3,
    bound_s: Annotated[float, typer.Option(help="a request for four tokens may wait so long beside all others")] = 5.0,
    seed: Annotated[int | None, typer.Option(help="of the bodies; random unless given")] = None,
) -> None:
    """Send bodies made by a grammar of OpenAI's API to the demo: all documented fields, extreme values, two at once.

    Another client asks for four tokens all the while. Exit code 1 after a 5xx, a request that hangs, a wait of the
    other client above the bound, or memory that grows by more than 5 % in the second half.

    Example:  PYTHONPATH=tests python -m fuzz --minutes 10
    """
    seed = random.randrange(2**32) if seed is None else seed
    out.mkdir(parents=True, exist_ok=True)
    typer.echo(f"seed {seed}")
    os.environ |= FEW_KERNELS
    with tempfile.TemporaryDirectory() as folder, serve_demo(Path(folder), fresh=True) as server:
        fuzz, process = Fuzz(server.url, seed), psutil.Process(server.process.pid)
        fuzz.run(minutes / 2, clients)
        half = _memory(process)
        fuzz.run(minutes / 2, clients)
        growth = _memory(process) / half - 1
        code = server.stop()
    waited = sorted(fuzz.waited_s)
    figures = {
        "seed": seed,
        "minutes": minutes,
        "bodies": fuzz.statuses.total(),
        "statuses": {str(status): count for status, count in sorted(fuzz.statuses.items())},
        "other_client": {
            "requests": len(waited),
            "median_s": round(statistics.median(waited), 3),
            "p99_s": round(waited[int(0.99 * len(waited))], 3),
            "longest_s": round(waited[-1], 3),
        },
        "memory_growth": round(growth, 4),
        "faults": len(fuzz.faults),
        "exit_code": code,
    }
    (out / "fuzz.json").write_text(json.dumps(figures, indent=1) + "\n")
    (out / "faults.txt").write_text("".join(f"{fault}\n" for fault in fuzz.faults))
    typer.echo(json.dumps(figures, indent=1))
    for fault in fuzz.faults[:20]:
        typer.secho(fault[:600], fg="red", err=True)
    missed = {
        f"{len(fuzz.faults)} faults, all in {out / 'faults.txt'}": fuzz.faults,
        f"the server ended with {code}": code,
        f"the other client waited {waited[-1]:.1f} s, at most {bound_s} s are allowed": waited[-1] > bound_s,
        f"memory grew by {growth:.1%}, at most {MEMORY_GROWTH:.0%} is allowed": growth > MEMORY_GROWTH,
    }
    for what in (what for what, is_so in missed.items() if is_so):
        typer.secho(what, fg="red", err=True)
    raise typer.Exit(any(missed.values()))


def _memory(server: psutil.Process) -> int:
    """Bytes that only the server's processes have, together."""
    return sum(process.memory_full_info().uss for process in (server, *server.children(recursive=True)))


if __name__ == "__main__":
    app()
