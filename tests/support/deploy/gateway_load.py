"""Clients that keep asking through a gateway, and what became of each request."""

from __future__ import annotations

import re
import threading
import time
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field

import httpx

from support.deploy.nginx import Nginx


@dataclass
class Outcome:
    """A request: when it was sent and over, and what came. `status` is None if the connection broke."""

    began: float
    prompt: int
    ended: float = 0.0
    status: int | None = None
    code: str | None = None
    sets: tuple[str, ...] = ()
    tokens: list[int] = field(default_factory=list)

    @property
    def failed(self) -> bool:
        return self.status != 200


class Load:
    """Threads that ask for completions of these prompts in turn, one request each at a time, until told to stop."""

    def __init__(
        self, gateway: Nginx, key: str, host: str, prompts: Sequence[list[int]], *, max_tokens: int, threads: int
    ) -> None:
        self.outcomes: list[Outcome] = []
        self._gateway, self._key, self._host = gateway, key, host
        self._prompts, self._max_tokens = prompts, max_tokens
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._ask_on, args=(i,)) for i in range(threads)]

    @contextmanager
    def running(self):
        for thread in self._threads:
            thread.start()
        try:
            yield self
        finally:
            self._stop.set()
            for thread in self._threads:
                thread.join(timeout=150)

    def wait_for(self, more: int, timeout_s: float = 120) -> None:
        """Until so many more requests have been answered with 200."""
        goal, deadline = self.answered() + more, time.monotonic() + timeout_s
        while self.answered() < goal:
            assert time.monotonic() < deadline, Counter((o.status, o.code) for o in self.outcomes)
            time.sleep(0.05)

    def answered(self) -> int:
        return sum(not o.failed for o in list(self.outcomes))

    def _ask_on(self, index: int) -> None:
        # A kept connection may be closed by a reload just as a request is sent on it.
        with self._gateway.client(self._key, self._host, keep_alive=False) as client:
            while not self._stop.is_set():
                index += 1
                outcome = Outcome(time.monotonic(), index % len(self._prompts))
                ask(client, self._prompts[outcome.prompt], self._max_tokens, outcome)
                outcome.ended = time.monotonic()
                self.outcomes.append(outcome)


def ask(client: httpx.Client, prompt: list[int], max_tokens: int, outcome: Outcome) -> None:
    """One completion; fills in the outcome."""
    body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": max_tokens, "ignore_eos": True,
            "return_token_ids": True}  # fmt: skip
    try:
        response = client.post("/v1/completions", json=body)
        outcome.status = response.status_code
        if response.status_code == 200:
            outcome.sets = reported(response)
            outcome.tokens = response.json()["choices"][0]["token_ids"]
        else:
            outcome.code = response.json()["error"]["code"]
    except httpx.TransportError:
        pass


def reported(response: httpx.Response) -> tuple[str, ...]:
    """What was in force, as name@digest, in the header's order."""
    return tuple(re.findall(r"[a-z]+@[0-9a-f]{12}", response.headers["x-forget-sets"]))
