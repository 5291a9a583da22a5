"""LiteLLM's proxy as a process of its own, with the configuration of examples/."""

from __future__ import annotations

import os
import secrets
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
import openai

from support.clients.environment import QUIET, program
from support.server import free_port

_CONFIG = Path(__file__).parents[3] / "examples" / "litellm.yaml"
START_TIMEOUT_S = 240


@contextmanager
def litellm_proxy(server_url: str, log: Path) -> Iterator[openai.OpenAI]:
    """A client of a proxy in front of this server; leaving ends the proxy."""
    port, key = free_port(), f"sk-{secrets.token_hex(32)}"  # it refuses to start with a key that could be guessed
    command = [program("litellm"), "--config", _CONFIG, "--host", "127.0.0.1", "--port", str(port)]
    variables = {**QUIET, "LITELLM_MASTER_KEY": key, "UNLEARNGATE_URL": f"{server_url}/v1"}
    with log.open("w") as out:
        process = subprocess.Popen(
            [*map(str, command)], stdout=out, stderr=subprocess.STDOUT, env={**os.environ, **variables}
        )
    try:
        _wait_until_alive(f"http://127.0.0.1:{port}", process, log)
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key=key, max_retries=0, timeout=120) as client:
            yield client
    finally:
        process.terminate()
        process.wait(timeout=60)


def _wait_until_alive(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    deadline = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            if httpx.get(f"{url}/health/liveliness", timeout=5).status_code == 200:
                return
        except httpx.TransportError:
            pass
        time.sleep(0.5)
    raise RuntimeError(f"LiteLLM's proxy did not start (exit code {process.poll()}):\n{log.read_text()[-6000:]}")
