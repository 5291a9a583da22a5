"""Run `unlearngate serve` as people do, as a process that ends with its `with` block, and wait until it is healthy."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import httpx
import openai

from support import preloaded

START_TIMEOUT_S = 400  # the V2 runner, interpreted, beside another engine
# oneDNN keeps the last 1,024 kernels that it compiled, one for every shape: while they grow they hide what leaks.
FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}


def free_port() -> int:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return s.getsockname()[1]


class Server:
    """A running server; `log` is everything it printed. Leaving its `with` block ends it, also when a test failed.

    It is a copy of a process that has imported what it imports, or with `fresh` an interpreter of its own; with `v2`
    one whose engine has vLLM's V2 runner.
    """

    def __init__(
        self,
        arguments: Sequence[str | Path],
        log: Path,
        env: dict[str, str] | None = None,
        *,
        fresh: bool = False,
        v2: bool = False,
    ) -> None:
        self.port = free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        self.folders: dict[str, Path] = {}
        self._log = log
        words = ["serve", *map(str, arguments), "--port", str(self.port)]
        environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", **(env or {})}
        self.process: subprocess.Popen[bytes] | preloaded.Process
        if fresh or v2:
            command = [sys.executable, "-m", "support.engine.v2_server" if v2 else "unlearngate.cli", *words]
            environment |= {"PYTHONPATH": str(Path(__file__).parents[1])} if v2 else {}
            with log.open("w") as out:
                self.process = subprocess.Popen(
                    command, stdout=out, stderr=subprocess.STDOUT, env=environment, start_new_session=True
                )
        else:
            self.process = preloaded.run("unlearngate.cli", words, log, environment)

    def __enter__(self) -> Server:
        return self

    def __exit__(self, *_: object) -> None:
        if self.process.poll() is None:
            self.stop()

    @property
    def log(self) -> str:
        return self._log.read_text(errors="replace")

    def wait_until_healthy(self) -> Server:
        deadline = time.monotonic() + START_TIMEOUT_S
        while time.monotonic() < deadline:
            if self.process.poll() is not None:
                raise RuntimeError(f"the server ended with {self.process.returncode}:\n{self.log[-6000:]}")
            try:
                if httpx.get(f"{self.url}/health", timeout=5).status_code == 200:
                    return self
            except httpx.TransportError:
                pass
            time.sleep(0.5)
        raise RuntimeError(f"not healthy after {START_TIMEOUT_S} s:\n{self.log[-6000:]}")

    def client(self) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", max_retries=0, timeout=120)

    def post(self, path: str, body: object) -> httpx.Response:
        return httpx.post(f"{self.url}{path}", json=body, timeout=120)

    def stop(self) -> int:
        """SIGTERM, and the exit code."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
        try:
            return self.process.wait(timeout=60)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()
            raise
