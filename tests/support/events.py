"""The lines of a stream of events, which end with a line feed and nothing else.

httpx's `iter_lines` ends them wherever Python's `splitlines` would, and an answer's text may hold such a character.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterator

import httpx


class _Lines:
    """Takes text as it comes, and gives lines once they are whole."""

    def __init__(self) -> None:
        self._rest = ""

    def take(self, text: str) -> list[str]:
        *whole, self._rest = (self._rest + text).split("\n")
        return [line for line in whole if line]


def events_of(response: httpx.Response) -> Iterator[str]:
    """The lines that are not empty."""
    lines = _Lines()
    for text in response.iter_text():
        yield from lines.take(text)


async def events_of_async(response: httpx.Response) -> AsyncIterator[str]:
    """The lines that are not empty."""
    lines = _Lines()
    async for text in response.aiter_text():
        for line in lines.take(text):
            yield line
