"""Server-sent events: what vLLM's handlers stream, and what was in force."""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

_DATA = "data: "
# Within a string of the JSON the quotes would be escaped.
_ENDS_A_CHOICE = '"finish_reason":"'


async def reporting(
    events: AsyncGenerator[str, None], report: Callable[[], list[dict[str, Any]]]
) -> AsyncGenerator[str, None]:
    """The same events; each that ends a choice also has `forget_sets`, as `report` has it by then.

    Nothing is held back: an event is changed only once it says why a choice ended.
    """
    async with aclosing(events):
        async for event in events:
            if _ENDS_A_CHOICE in event and event.startswith(_DATA):
                chunk = json.loads(event.removeprefix(_DATA))
                chunk["forget_sets"] = report()
                event = f"{_DATA}{json.dumps(chunk, ensure_ascii=False, separators=(',', ':'))}\n\n"
            yield event
