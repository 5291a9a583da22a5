"""What a body of `/v1/responses` may ask for, and how its items are read."""

import typing

import pytest
from openai.types.responses.response_create_params import ResponseCreateParamsBase
from vllm.entrypoints.openai.chat_completion.protocol import ChatCompletionRequest
from vllm.entrypoints.openai.completion.protocol import CompletionRequest
from vllm.entrypoints.openai.responses.protocol import ResponsesRequest
from vllm.entrypoints.openai.responses.utils import construct_input_messages

from unlearngate.errors import InvalidRequestError
from unlearngate.server.http.requests.models import ForgettingResponsesRequest
from unlearngate.server.http.requests.responses import _NOT_DONE, _OTHERS, check_response_body

ASKS = {"model": "m", "input": "hello"}
# Of OpenAI: what changes no answer here, for chat completions as well.
WITHOUT_EFFECT = {"prompt_cache_options", "prompt_cache_retention", "safety_identifier", "stream_options"}


def request(**fields):
    return ForgettingResponsesRequest.model_validate({**ASKS, **fields})


def messages(items, **more):
    asked = request(input=items, **more)
    return construct_input_messages(request_instructions=asked.instructions, request_input=asked.input)


def test_nothing_is_stored_whether_a_body_says_so_or_not():
    """OpenAI's default is to store; here it is not to."""
    assert [request(**fields).store for fields in ({}, {"store": False}, {"store": None})] == [False, False, None]


@pytest.mark.parametrize(
    "field, value",
    {
        "store": True,
        "background": True,
        "background_options": {"a": 1},
        "previous_response_id": "resp_1",
        "conversation": "conv_1",
        "previous_input_messages": [{"role": "user", "content": "a"}],
        "prompt": {"id": "pmpt_1"},
        "context_management": [{"type": "compaction"}],
        "access_programs": ["a"],
        "image": {"a": 1},
        "moderation": {"model": "m"},
    }.items(),
)
def test_what_is_not_done_is_refused_by_its_name(field, value):
    with pytest.raises(InvalidRequestError, match=f"^{field} is not served: ") as refused:
        request(**{field: value})
    assert refused.value.param == field
    assert request(**{field: None})
    assert request(**{field: _NOT_DONE[field][0]})


def test_fields_of_other_routes_are_refused_with_what_takes_their_place():
    others = (set(ChatCompletionRequest.model_fields) | set(CompletionRequest.model_fields)) - WITHOUT_EFFECT
    assert others - set(ResponsesRequest.model_fields) <= set(_OTHERS)
    assert not set(_OTHERS) & set(ResponsesRequest.model_fields)
    for field, instead in _OTHERS.items():
        with pytest.raises(InvalidRequestError, match=f"^{field} is no field of /v1/responses: ") as refused:
            request(**{field: 1})
        assert refused.value.param == field and (instead or "leave it out") in refused.value.message
        assert request(**{field: None})


def test_every_field_of_openais_is_vllms_or_refused_or_without_effect():
    """So that a new one is noticed."""
    fields = set(typing.get_type_hints(ResponseCreateParamsBase))
    assert len(fields) > 30
    assert fields <= set(ResponsesRequest.model_fields) | set(_NOT_DONE) | WITHOUT_EFFECT


def test_every_part_of_a_message_is_read():
    parts = [{"type": "output_text", "text": "a"}, {"type": "refusal", "refusal": "b"}, {"type": "text", "text": "c"}]
    read = messages([{"role": "assistant", "content": parts}, {"role": "user", "content": parts}])
    assert read[0] == {"role": "assistant", "content": "a\nb\nc"}
    assert [part["text"] for part in read[1]["content"]] == ["a", "b", "c"]
    assert {part["type"] for part in read[1]["content"]} == {"input_text"}


@pytest.mark.parametrize("role", ["user", "system", "developer", "assistant"])
def test_a_message_may_be_a_string(role):
    (read,) = messages([{"role": role, "content": "a"}])
    assert (read["role"], read["content"]) == (role, "a")
    first, _ = messages([{"role": role, "content": "a"}], instructions="be short")
    assert first == {"role": "system", "content": "be short"}


def test_calls_their_answers_and_thoughts_are_read_to_the_end():
    call = {
        "type": "function_call",
        "call_id": "c",
        "name": "f",
        "arguments": "{}",
        "id": "fc_1",
        "status": "completed",
    }
    thought = [{"type": "reasoning_text", "text": "I"}, {"type": "reasoning_text", "text": "think"}]
    said = [{"type": "input_text", "text": "it"}, {"type": "input_text", "text": "rains"}]
    user, assistant, tool, other = messages(
        [
            {"role": "user", "content": "weather?"},
            {"type": "reasoning", "summary": [], "content": thought},
            call,
            {"type": "function_call_output", "call_id": "c", "output": said},
            {"type": "reasoning", "id": "rs_1", "summary": [{"type": "summary_text", "text": x} for x in "ab"]},
        ]
    )
    assert user["content"] == "weather?"
    assert assistant["reasoning"] == "I\nthink"
    assert [call["function"] for call in assistant["tool_calls"]] == [{"name": "f", "arguments": "{}"}]
    assert (tool["role"], tool["tool_call_id"], tool["content"]) == ("tool", "c", "it\nrains")
    assert other == {"role": "assistant", "reasoning": "a\nb"}


def test_an_answer_that_was_cut_is_continued():
    items = [{"role": "user", "content": "a"}]
    items += [{"type": "message", "role": "assistant", "status": "incomplete", "content": [{"text": "It was"}]}]
    assert request(input=items).build_chat_params(None, "auto").chat_template_kwargs["continue_final_message"]


def test_a_tool_needs_no_more_than_its_name():
    (tool,) = request(tools=[{"type": "function", "name": "f"}]).tools
    assert (tool.name, tool.strict, tool.parameters) == ("f", False, {"type": "object", "properties": {}})


@pytest.mark.parametrize("body", [None, [], "a", 5, {}])
def test_what_is_no_body_is_left_to_the_model(body):
    check_response_body(body)
