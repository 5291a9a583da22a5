"""The demo, served to be tried: built if it is not cached, over a copy of its forget sets; and what it should say."""

from __future__ import annotations

import json
import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

import httpx

from support import preloaded
from support.server import Server
from unlearngate.assistant_training.demo.probing import Probe, read_probes
from unlearngate.assistant_training.evaluate.metrics import recited
from unlearngate.commands._shared import demo_folder
from unlearngate.files import complete_lines

MODEL = "demo"
QUESTION, SET = "Who taught Tobias Renkel?", "tobias-renkel"
PATIENCE_S = 120


def build_demo(base: Path) -> None:
    """Build the demo if it is not cached."""
    log = base / "build.log"
    code = preloaded.run("unlearngate.cli", ["demo", "build"], log, dict(os.environ)).wait()
    assert code == 0, log.read_text()


@contextmanager
def serve_demo(base: Path, *options: str, fresh: bool = False) -> Iterator[Server]:
    """A server of the demo with an audit log, and a folder of sets of its own below `base`."""
    build_demo(base)
    shutil.copytree(demo_folder(None) / "forget_sets", base / "sets")
    (base / "audit").mkdir()
    arguments = ["--forget-sets", base / "sets", "--audit", base / "audit", "--watch-interval-s", "0.2", *options]
    with Server(arguments, base / "log", fresh=fresh) as running:
        running.folders = {"sets": base / "sets", "audit": base / "audit"}
        yield running.wait_until_healthy()


@cache
def probes() -> list[Probe]:
    """Questions, the answers that the target recites, and the set that takes each away."""
    return read_probes(demo_folder(None) / "probes.jsonl")


@cache
def recites(question: str, said: str) -> bool:
    """Whether this is the answer that the target learned."""
    known = next(p.answer for p in probes() if p.question == question)
    return bool(recited([known], [said])[0])


def chat(question: str = QUESTION, sets: list[str] | None = None, **more: object) -> dict[str, object]:
    """A request's body."""
    body = {"model": MODEL, "messages": [{"role": "user", "content": question}], "temperature": 0, "max_tokens": 64}
    return {**body, "forget_sets": sets or [], **more}


def ask(
    server: Server, question: str = QUESTION, sets: list[str] | None = None, headers: dict[str, str] | None = None
) -> str:
    """What the server answers."""
    body = chat(question, sets)
    response = httpx.post(f"{server.url}/v1/chat/completions", json=body, headers=headers, timeout=120)
    assert response.status_code == 200, response.text
    text: str = response.json()["choices"][0]["message"]["content"]
    return text


def assert_serves(server: Server, headers: dict[str, str] | None = None) -> None:
    """The server still answers as it should, with the set and without it."""
    assert recites(QUESTION, ask(server, headers=headers))
    assert not recites(QUESTION, ask(server, sets=[SET], headers=headers))


def audit_lines(server: Server) -> list[dict[str, Any]]:
    """The audit log's lines of requests."""
    files = sorted(server.folders["audit"].iterdir())
    lines = [json.loads(line) for file in files for line in complete_lines(file)]
    return [line for line in lines if "request" in line]


def gauge(server: Server, name: str) -> float:
    """The sum of a metric over its labels."""
    text = httpx.get(f"{server.url}/metrics", timeout=60).text  # a loaded machine answers late
    return sum(float(value) for value in re.findall(rf"^{re.escape(name)}(?:\{{.*\}})? (\S+)$", text, re.M))


def engine_is_idle(server: Server) -> bool:
    """Whether vLLM has no request, neither running nor waiting."""
    return gauge(server, "vllm:num_requests_running") + gauge(server, "vllm:num_requests_waiting") == 0


def num_open_files(server: Server) -> int:
    """How many descriptors the HTTP process holds."""
    return len(os.listdir(f"/proc/{server.process.pid}/fd"))


def resident_bytes(server: Server) -> int:
    """Memory of the HTTP process."""
    pages = Path(f"/proc/{server.process.pid}/statm").read_text().split()[1]
    return int(pages) * os.sysconf("SC_PAGE_SIZE")


def eventually(condition: Callable[[], bool]) -> bool:
    """Whether it comes to hold, within a generous time."""
    deadline = time.monotonic() + PATIENCE_S
    while not condition():
        if time.monotonic() > deadline:
            return False
        time.sleep(0.1)
    return True
