"""Streams that tell at their end what was in force."""

import asyncio
import json

from unlearngate.server.http.events import reporting


def collected(events: list[str], reports: list) -> list[str]:
    async def source():
        for event in events:
            yield event

    async def collect():
        return [event async for event in reporting(source(), lambda: reports.pop(0))]

    return asyncio.run(collect())


def data(**fields) -> str:
    return f"data: {json.dumps(fields, separators=(',', ':'))}\n\n"


def test_events_that_end_a_choice_have_the_report_of_their_moment_and_others_stay_as_they_are():
    tricky = data(choices=[{"delta": {"content": 'they said "finish_reason":"stop"'}, "finish_reason": None}])
    ends = [data(choices=[{"index": i, "text": "\u00e9", "finish_reason": "stop"}]) for i in range(2)]
    others = [tricky, data(choices=[]), "data: [DONE]\n\n"]
    first, end, second, *rest = collected([tricky, *ends, *others[1:]], [["a"], ["b"]])
    assert [first, *rest] == others
    for event, original, report in ((end, ends[0], ["a"]), (second, ends[1], ["b"])):
        assert event.startswith("data: ") and event.endswith("\n\n")
        assert json.loads(event[6:]) == {**json.loads(original[6:]), "forget_sets": report}
