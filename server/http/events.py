"""Server-sent events: what vLLM's handlers stream, and what was in force.

Chat and text completions come as text that is ready to be sent; a stream of `/v1/responses` comes as objects.
"""

from __future__ import annotations

import json
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from typing import Any

from pydantic import ValidationError

from unlearngate.server.engine.compat import describe_error

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


async def response_events(
    events: AsyncGenerator[Any, None], added: Callable[[], dict[str, Any]]
) -> AsyncGenerator[str, None]:
    """The events of `/v1/responses`; the response that some of them have also has what `added` returns by then.

    Where the engine fails, or refuses the request, once the stream has begun, vLLM ends it without a word. Here its
    last event is then OpenAI's `error`.
    """
    next_number = 0
    async with aclosing(events):
        try:
            async for event in events:
                next_number = event.sequence_number + 1
                data = event.model_dump_json(by_alias=True)
                if hasattr(event, "response"):
                    whole = json.loads(data)
                    whole["response"] |= added()
                    data = json.dumps(whole, ensure_ascii=False, separators=(",", ":"))
                yield f"event: {event.type}\n{_DATA}{data}\n\n"
        except Exception as error:
            # vLLM 0.32 has no event for a failure of the engine, and fails at making one.
            broken = (500, "the engine failed at this answer", None)
            status, message, param = broken if isinstance(error, ValidationError) else describe_error(error)
            code = "invalid_request_error" if status < 500 else "internal_error"
            told = {"code": code, "message": message, "param": param, "sequence_number": next_number}
            yield f"event: error\n{_DATA}{json.dumps({'type': 'error', **told}, ensure_ascii=False)}\n\n"
