"""What is wrong with a body, as a sentence that a client's author can act on, for OpenAI's and vLLM's fields."""

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from unlearngate.server.http.app import ForgettingChatRequest, ForgettingCompletionRequest
from unlearngate.server.http.bodies import StrictRoute, stop_at_first_problem
from unlearngate.server.http.failures import answer_failures

USER = {"role": "user", "content": "hello"}
CHAT = [
    ({"stop": list("abcde")}, "stop must have at most 4 items, got 5 items"),
    ({"stop": 5}, "stop must be a string or a list of strings, got 5"),
    ({"stop": ["a", 1]}, "stop[1] must be a string, got 1"),
    (
        {"response_format": "json"},
        'response_format must be an object, for example {"type": "json_object"}, got \'json\'',
    ),
    ({"response_format": ["json"]}, "response_format must be an object"),
    (
        {"response_format": {"type": "jsn"}},
        "response_format.type must be 'text', 'json_object', 'json_schema' or 'structural_tag', got 'jsn'",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"schema": {}}}},
        "response_format.json_schema.name is missing",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": "x"}},
        "response_format.json_schema must be an object, got 'x'",
    ),
    ({"response_format": {"type": "json_schema"}}, "'json_schema' field must be provided"),
    ({"messages": [{"role": "user", "content": [{"type": "foo"}]}]}, "messages[0].content[0].type must be 'text'"),
    ({"messages": [{"role": "user", "content": [{"type": "image_url"}]}]}, "reads nothing but text, got 'image_url'"),
    ({"messages": [{"role": "user", "content": [{"type": ["text"]}]}]}, "messages[0].content[0].type must be 'text'"),
    ({"messages": [USER, {"role": "user", "content": [{}]}]}, "messages[1].content[0].type is missing"),
    ({"messages": [{"role": "user", "content": [{"type": "text"}]}]}, "messages[0].content[0].text must be a string"),
    ({"messages": [{"role": "user", "content": [7]}]}, "messages[0].content[0] must be an object"),
    ({"messages": [{"role": "user", "content": 5}]}, "messages[0].content must be a string or a list, got 5"),
    ({"messages": [{"content": "x"}]}, "messages[0].role is missing"),
    ({"messages": [{"role": 5, "content": "x"}]}, "messages[0].role must be a string, got 5"),
    ({"messages": ["hi"]}, "messages[0] must be an object, got 'hi'"),
    ({"messages": "hi"}, "messages must be a list, for example"),
    ({"messages": None}, "messages must be a list, for example"),
    ({"messages": [{"role": "assistant", "tool_calls": [{"id": "x"}]}]}, "messages[0].tool_calls[0].function must be"),
    ({"messages": [{"role": "assistant", "tool_calls": "x"}]}, "messages[0].tool_calls must be a list"),
    (
        {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {}}}]}]},
        "messages[0].tool_calls[0].function.arguments must be a string",
    ),
    ({"tools": {"a": 1}}, "tools must be a list, for example"),
    ({"tools": ["f"]}, "tools[0] must be an object, got 'f'"),
    ({"tools": [{"type": "x"}]}, "tools[0].type must be 'function', got 'x'"),
    ({"tools": [{"type": "function"}]}, "tools[0].function is missing"),
    ({"stream_options": True, "stream": True}, "stream_options must be an object, for example"),
    (
        {"stream_options": {"include_usage": "maybe"}, "stream": True},
        "stream_options.include_usage must be true or fal",
    ),
    ({"reasoning_effort": "huge"}, "reasoning_effort must be 'none', 'minimal', 'low'"),
    ({"structured_outputs": "a"}, "structured_outputs must be an object"),
    ({"structured_outputs": {"regex": 5}}, "structured_outputs.regex must be a string, got 5"),
    ({"structured_outputs": {"choice": "a"}}, "structured_outputs.choice must be a list, got 'a'"),
    ({"vllm_xargs": {"a": {}}}, "vllm_xargs.a must be a string, an integer, a number or a list, got {}"),
    ({"logprobs": 5}, "logprobs must be true or false, got 5"),
    ({"forget_sets": "a"}, "forget_sets must be a list"),
]
BOTH = [
    ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
    ({"n": "x"}, "n must be an integer, got 'x'"),
    ({"n": 1.5}, "n must be an integer, got 1.5"),
    ({"seed": 2**70}, f"seed must be at most {2**63 - 1}, got {2**70}"),
    ({"logit_bias": {"5": "x"}}, "logit_bias.5 must be a number, got 'x'"),
    ({"logit_bias": [1]}, "logit_bias must be an object, for example"),
    ({"stream": "maybe"}, "stream must be true or false, got 'maybe'"),
    ({"user": 5}, "user must be a string, got 5"),
    ({"allowed_token_ids": ["a"]}, "allowed_token_ids[0] must be an integer, got 'a'"),
    ({"truncate_prompt_tokens": -5}, "truncate_prompt_tokens must be at least -1, got -5"),
    ({"stop": list("abcde")}, "stop must have at most 4 items, got 5 items"),
]
TEXT = [
    ({"prompt": 5}, "prompt must be a list, a string or a list of strings"),
    ({"prompt": ["a", 1]}, "prompt[1] must be a string, got 1"),
    ({"prompt": [1.5]}, "prompt[0] must be an integer, a list or a string, got 1.5"),
    ({"prompt": [["a"]]}, "prompt[0][0] must be an integer, got 'a'"),
]
CASES = [("/chat", {"messages": [USER]}, *case) for case in CHAT + BOTH]
CASES += [("/text", {"prompt": "hello"}, *case) for case in BOTH + TEXT]


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.router.route_class = StrictRoute
    app.state.max_body_bytes = 2**22
    answer_failures(app)
    for request_type in (ForgettingChatRequest, ForgettingCompletionRequest):
        stop_at_first_problem(request_type)

    @app.post("/chat")
    async def chat(request: ForgettingChatRequest) -> dict:
        return {}

    @app.post("/text")
    async def text(request: ForgettingCompletionRequest) -> dict:
        return {}

    return TestClient(app)


@pytest.mark.parametrize("path, good, wrong, sentence", CASES, ids=str)
def test_a_wrong_field_is_one_sentence_that_names_it_and_what_belongs_there(client, path, good, wrong, sentence):
    assert client.post(path, json=good).status_code == 200
    response = client.post(path, json=good | wrong)
    error = response.json()["error"]
    assert response.status_code == 400 and sentence in error["message"]
    assert error["param"] == next(iter(wrong))
    assert "\n" not in error["message"] and "validation error" not in error["message"]


@pytest.mark.parametrize("path, good", [("/chat", {"messages": [USER]}), ("/text", {"prompt": "hello"})])
@pytest.mark.parametrize("value", [[[]], {"a": {"b": 1}}, "text", -7, 1.5, True, [None]], ids=str)
def test_any_value_of_any_field_is_taken_or_refused_by_a_sentence_about_this_field(client, path, good, value):
    model = ForgettingChatRequest if path == "/chat" else ForgettingCompletionRequest
    for field in model.model_fields:
        response = client.post(path, json=good | {field: value})
        assert response.status_code in (200, 400), field
        if response.status_code == 400:
            error = response.json()["error"]
            assert error["message"] and "object has no attribute" not in error["message"], field
            assert "\n" not in error["message"] and "Input should" not in error["message"], (field, error["message"])


def test_parts_of_text_in_any_of_their_spellings_are_taken(client):
    parts = ["a", {"type": "text", "text": "a"}, {"text": "a"}, {"type": "input_text", "text": "a"}]
    assert client.post("/chat", json={"messages": [{"role": "user", "content": parts}]}).status_code == 200
    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [call]}]
    messages += [{"role": "tool", "tool_call_id": "1", "content": "b"}]
    assert client.post("/chat", json={"messages": messages}).status_code == 200
