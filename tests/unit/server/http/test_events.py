"""Streams that tell at their end what was in force."""

import asyncio
import json

import pytest
from openai.types.responses import ResponseTextDeltaEvent
from pydantic import BaseModel, TypeAdapter, ValidationError
from vllm.entrypoints.openai.responses.protocol import StreamingResponsesResponse

from unlearngate.server.http.events import reporting, response_events


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


def streamed(events, failure: Exception | None = None) -> list[tuple[str, dict]]:
    async def source():
        for event in events:
            yield event
        if failure:
            raise failure

    async def collect():
        return [event async for event in response_events(source(), lambda: {"forget_sets": ["a"]})]

    return [
        (kind.removeprefix("event: "), json.loads(line.removeprefix("data: ")))
        for kind, line, *rest in (event.split("\n") for event in asyncio.run(collect()))
        if rest == ["", ""]
    ]


class Response(BaseModel):
    id: str = "resp_1"


class Completed(BaseModel):
    type: str = "response.completed"
    sequence_number: int = 4
    response: Response = Response()


def delta(number: int) -> ResponseTextDeltaEvent:
    fields = {"content_index": 0, "item_id": "m", "logprobs": [], "output_index": 0, "sequence_number": number}
    return ResponseTextDeltaEvent(type="response.output_text.delta", delta="\u00e9\n", **fields)


def test_a_response_within_an_event_has_the_report_and_other_events_stay_as_they_are():
    (first, said), (last, whole) = streamed([delta(3), Completed()])
    assert (first, said) == ("response.output_text.delta", delta(3).model_dump(mode="json"))
    assert (last, whole["response"]) == ("response.completed", {"id": "resp_1", "forget_sets": ["a"]})


def vllms_own() -> Exception:
    """What vLLM raises where the engine fails: it takes the body of an error for an event."""
    with pytest.raises(ValidationError) as raised:
        TypeAdapter(StreamingResponsesResponse).validate_json('{"error": {"message": "Internal server error"}}')
    return raised.value


def test_a_stream_that_fails_says_so_at_its_end():
    for failure, code, said in [
        (vllms_own(), "internal_error", "the engine failed"),
        (ValueError("too many"), "invalid_request_error", "too many"),
    ]:
        *_, (kind, event) = streamed([delta(0), delta(1)], failure)
        assert (kind, event["type"], event["sequence_number"], event["code"]) == ("error", "error", 2, code)
        assert said in event["message"]
