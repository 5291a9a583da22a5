"""Many clients at once: patient ones that stream whole answers, and impatient ones that hang up at any moment."""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass

import httpx

from support.attacks.raw_http import request
from support.events import events_of_async

TIMEOUT_S = 240
MOMENTS = ("before anything", "in the head", "in the body", "when all is sent", "in the answer")


@dataclass(frozen=True, slots=True)
class Streamed:
    """What a client heard: the status, the sets in force as the header says, the text, and whether it ended well."""

    status: int
    in_force: str
    text: str
    complete: bool


def stream_all(url: str, bodies: Sequence[dict[str, object]]) -> list[Streamed]:
    """Send every body at once, and hear all out."""

    async def everybody() -> list[Streamed]:
        limits = httpx.Limits(max_connections=None, max_keepalive_connections=0)
        async with httpx.AsyncClient(base_url=url, timeout=TIMEOUT_S, limits=limits) as client:
            return await asyncio.gather(*(_stream(client, body) for body in bodies))

    return asyncio.run(everybody())


async def _stream(client: httpx.AsyncClient, body: dict[str, object]) -> Streamed:
    text, last = "", ""
    async with client.stream("POST", "/v1/chat/completions", json={**body, "stream": True}) as response:
        async for line in events_of_async(response):
            if line.startswith("data: {"):
                for choice in json.loads(line.removeprefix("data: ")).get("choices", []):
                    text += choice["delta"].get("content") or ""
            last = line
        in_force = response.headers.get("x-forget-sets", "")
        return Streamed(response.status_code, in_force, text, last == "data: [DONE]")


def hang_up(port: int, bodies: Sequence[dict[str, object]], rng: random.Random) -> None:
    """Send every body, over at most a hundred connections at a time, and hang up on each at a random moment."""
    drawn = [(rng.choice(MOMENTS), rng.random(), rng.random() < 0.5) for _ in bodies]

    async def everybody() -> None:
        at_once = asyncio.Semaphore(100)

        async def one(body: dict[str, object], moment: str, part: float, reset: bool) -> None:
            async with at_once:
                await _hang_up(port, request(body), moment, part, reset)

        await asyncio.gather(*(one(body, *how) for body, how in zip(bodies, drawn, strict=True)))

    asyncio.run(everybody())


async def _hang_up(port: int, sent: bytes, moment: str, part: float, reset: bool) -> None:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    in_head = sent.index(b"\r\n\r\n")
    ends = {
        "before anything": 0,
        "in the head": int(in_head * part),
        "in the body": in_head + 4 + int((len(sent) - in_head - 5) * part),
    }
    try:
        writer.write(sent[: ends.get(moment, len(sent))])
        await writer.drain()
        if moment == "in the answer":
            wanted = 1 + int(4000 * part)
            while wanted > 0 and (heard := await reader.read(wanted)):
                wanted -= len(heard)
        elif part < 0.5:
            await asyncio.sleep(part / 2)
    except ConnectionError:
        pass  # the server hung up first
    if reset:
        writer.transport.abort()
    else:
        writer.close()
