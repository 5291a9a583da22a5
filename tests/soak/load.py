"""Random requests of every kind, each answer compared with the formula over the sets that may have been in force."""

from __future__ import annotations

import json
import random
import re
import threading
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

import httpx
from soak.server import STRENGTH, World

from support.engine.reference import Reference, Term
from support.engine.tiny import VOCAB_SIZE
from support.server import Server

TIMEOUT_S = 120
_TOLERANCE = 2e-3  # of a logit: above it, an answer is wrong
_SHARED_PREFIXES = 8
_HANG_UP, _REFUSABLE = 0.08, 0.05


@dataclass
class Request:
    """What is asked, with which key, and how."""

    key: str
    path: str
    body: dict[str, object]
    names: list[str]  # as asked for: NAME or NAME@DIGEST
    strengths: dict[str, dict[str, float]]
    hang_up_after: int | None = None
    refused_with: int | None = None  # it asks for something that nobody may have


@dataclass
class Answer:
    """What came back: of a stream the tokens until one side ended it."""

    status: int
    sets: list[str] = field(default_factory=list)  # NAME@DIGEST of those in force
    choices: list[tuple[list[int], list[int]]] = field(default_factory=list)  # prompts and what followed them

    @property
    def num_tokens(self) -> int:
        """That followed."""
        return sum(len(tokens) for _, tokens in self.choices)


@dataclass
class Tally:
    """What came of all requests. `wrong` and `unanswered` should stay empty."""

    counts: Counter[str] = field(default_factory=Counter)
    wrong: list[str] = field(default_factory=list)
    unanswered: list[str] = field(default_factory=list)
    in_force: dict[str, list[str]] = field(default_factory=dict)  # request id -> its sets, of those answered


class Load:
    """Clients that ask until they are told to stop."""

    def __init__(self, world: World, server: Server, seed: int) -> None:
        self._world, self._server, self._seed = world, server, seed
        self._reference = Reference(world.target, {v.reference: v.folder for v in world.versions.values()})
        rng = random.Random(seed)
        self._prefixes = [_tokens(rng, 96) for _ in range(_SHARED_PREFIXES)]
        self._lock = threading.Lock()
        self.tally = Tally()

    def client(self, number: int, stop: threading.Event) -> None:
        """One client, one request after the other."""
        rng = random.Random(f"{self._seed} {number}")
        count = 0
        while not stop.is_set():
            count += 1
            self._one(f"{number}-{count}", self._draw(rng))

    def _draw(self, rng: random.Random) -> Request:
        if rng.random() < _REFUSABLE:
            body, status = rng.choice(
                [({"forget_sets": ["nobody"]}, 404), ({"forget_sets": [{"name": "anna", "weight": 99}]}, 400)]
            )
            return Request("free", "completions", {"prompt": [5], "max_tokens": 1, **body}, [], {}, refused_with=status)
        key = rng.choice(["free", "free", "bound"])
        names = rng.choice([[], ["anna"], ["bert"], ["cleo"], ["dora"], ["anna", "bert"], ["zora"], ["zora", "anna"]])
        names = [self._pinned(name) if rng.random() < 0.1 else name for name in names]
        strengths = {}
        if key == "free" and rng.random() < 0.3:
            uld = [name for name in names if not name.startswith("zora")]
            strengths = {n: {"weight": rng.uniform(0.2, 2), "gate_nats": rng.uniform(0.5, 4)} for n in uld}
        wanted = [{"name": n, **strengths[n]} if n in strengths else n for n in names]
        body: dict[str, object] = {"model": "tiny", "temperature": 0, "max_tokens": rng.randint(1, 48)}
        body |= {"ignore_eos": True, "return_token_ids": True, "stream": rng.random() < 0.5}
        body |= {"forget_sets": wanted} if wanted else {}
        if rng.random() < 0.3:
            words = " ".join(f"{rng.randrange(1000)}" for _ in range(rng.randint(1, 12)))
            body["messages"] = [{"role": "user", "content": words}]
            path = "chat/completions"
        else:
            prefix = rng.choice(self._prefixes) if rng.random() < 0.5 else []
            prompts = [prefix + _tokens(rng, rng.randint(1, 100)) for _ in range(rng.randint(1, 3))]
            body["prompt"] = prompts[0] if body["stream"] else prompts
            path = "completions"
        hang_up = rng.randint(0, 8) if body["stream"] and rng.random() < _HANG_UP / 0.5 else None
        return Request(key, path, body, names, strengths, hang_up)

    def _pinned(self, name: str) -> str:
        return str(self._world.sets[name].now() or name)

    def _one(self, request_id: str, request: Request) -> None:
        began = time.monotonic()
        try:
            answer = self._ask(request_id, request)
            problem = self._judge(request, answer, began, time.monotonic())
        except (httpx.HTTPError, ValueError, KeyError) as error:
            with self._lock:
                self.tally.unanswered.append(f"{request_id}: {error!r} of {request}")
            return
        with self._lock:
            self.tally.counts["requests"] += 1
            self.tally.counts["tokens"] += answer.num_tokens
            self.tally.counts["hung up" if request.hang_up_after is not None else f"status {answer.status}"] += 1
            if answer.status == 200:
                self.tally.in_force[request_id] = answer.sets
            if problem:
                self.tally.wrong.append(f"{request_id}: {problem}; {request}; {answer}")

    def _ask(self, request_id: str, request: Request) -> Answer:
        headers = {"Authorization": f"Bearer {request.key}", "x-request-id": request_id}
        url = f"{self._server.url}/v1/{request.path}"
        if not request.body.get("stream"):
            response = httpx.post(url, json=request.body, headers=headers, timeout=TIMEOUT_S)
            if response.status_code != 200:
                return Answer(response.status_code)
            body = response.json()
            prompts = request.body.get("prompt") or [body["prompt_token_ids"]]
            tokens = [choice["token_ids"] for choice in sorted(body["choices"], key=lambda choice: choice["index"])]
            if [len(own) for own in tokens] != [request.body["max_tokens"]] * len(prompts):
                raise ValueError(f"choices of {[len(own) for own in tokens]} tokens")
            return Answer(200, _in_force(response), list(zip(prompts, tokens, strict=True)))
        with httpx.stream("POST", url, json=request.body, headers=headers, timeout=TIMEOUT_S) as response:
            if response.status_code != 200:
                response.read()
                return Answer(response.status_code)
            prompt: list[int] = list(request.body.get("prompt", []))
            tokens: list[int] = []
            for line in _lines(response):
                if request.hang_up_after is not None and len(tokens) >= request.hang_up_after:
                    break
                if line == "data: [DONE]":
                    if len(tokens) != request.body["max_tokens"]:
                        raise ValueError(f"the stream ended after {len(tokens)} tokens")
                    break
                piece = json.loads(line.removeprefix("data: "))
                prompt = piece.get("prompt_token_ids") or prompt
                tokens += [token for choice in piece["choices"] for token in choice.get("token_ids") or []]
            else:
                raise ValueError("the stream ended without [DONE]")
            return Answer(200, _in_force(response), [(prompt, tokens)])

    def _judge(self, request: Request, answer: Answer, began: float, ended: float) -> str | None:
        """What is wrong with the answer."""
        if request.refused_with is not None:
            return None if answer.status == request.refused_with else f"expected {request.refused_with}"
        may_be = {name: self._world.sets[name.partition("@")[0]].within(began, ended) for name in request.names}
        if answer.status == 404:  # right if there was a moment without the set, or, by its digest, with another version
            gone = [n for n, values in may_be.items() if None in values or ("@" in n and set(values) != {n})]
            return None if gone else "a set that was there is not found"
        if answer.status != 200:
            return "an unexpected status"
        required = [self._world.required.within(began, ended), [()]][request.key != "bound"]
        asked = {name.partition("@")[0] for name in request.names}
        in_force = {reference.partition("@")[0]: reference for reference in answer.sets}
        if not any(asked | set(more) == set(in_force) for more in required):
            return f"sets in force other than those asked for and required ({required})"
        for name, reference in in_force.items():
            pinned = next((n for n in request.names if n.startswith(f"{name}@")), None)
            if reference not in ([pinned] if pinned else self._world.sets[name].within(began, ended)):
                return f"{reference} was not in force"
        return self._recompute(request, answer)

    def _recompute(self, request: Request, answer: Answer) -> str | None:
        asked = {name.partition("@")[0]: own for name, own in request.strengths.items()}
        student = next((reference for reference in answer.sets if reference.startswith("zora@")), None)
        strengths = {r: {**STRENGTH, **asked.get(r.partition("@")[0], {})} for r in answer.sets if r != student}
        terms = [Term(reference, own["weight"], own["gate_nats"]) for reference, own in strengths.items()]
        for prompt, tokens in answer.choices:
            if tokens:
                with self._lock:
                    verdict = self._reference.check(
                        prompt, tokens, terms, STRENGTH["keep_ratio"], _TOLERANCE, student=student
                    )
                    self.tally.counts["ties"] += verdict.ties
                    self.tally.counts["open gates"] += verdict.open_gates
                    self.tally.counts["closed gates"] += verdict.closed_gates
                if verdict.wrong:
                    return "; ".join(verdict.wrong[:2])
        return None


def _lines(response: httpx.Response) -> Iterator[str]:
    """Of a stream of events; httpx's own also ends lines at characters that may stand in a JSON string."""
    rest = b""
    for piece in response.iter_bytes():
        *lines, rest = (rest + piece).split(b"\n")
        yield from (line.decode() for line in lines if line)


def _in_force(response: httpx.Response) -> list[str]:
    return re.findall(r"[a-z]+@[0-9a-f]{12}", response.headers["x-forget-sets"])


def _tokens(rng: random.Random, count: int) -> list[int]:
    return [rng.randrange(2, VOCAB_SIZE) for _ in range(count)]
