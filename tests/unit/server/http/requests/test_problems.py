"""What is wrong with a body, as a sentence that a client's author can act on, for OpenAI's and vLLM's fields."""

import inspect
from types import SimpleNamespace

import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient
from transformers import PreTrainedTokenizerBase
from transformers.utils.chat_template_utils import render_jinja_template
from vllm.entrypoints.openai.responses.utils import construct_input_messages
from vllm.renderers.chat_utils import parse_chat_messages
from vllm.renderers.hf import safe_apply_chat_template

from unlearngate.server.http.bodies import StrictRoute, stop_at_first_problem
from unlearngate.server.http.failures import answer_failures
from unlearngate.server.http.requests.models import (
    ForgettingChatRequest,
    ForgettingCompletionRequest,
    ForgettingResponsesRequest,
)
from unlearngate.server.http.requests.shapes import RESERVED_SWITCHES

USER = {"role": "user", "content": "hello"}
FUNCTION = {"name": "f", "arguments": "{}"}
CALL = {"id": "x", "type": "function", "function": FUNCTION}


def called(call):
    return {"messages": [{"role": "assistant", "tool_calls": [call]}]}


def strict(number, strict=True):
    function = {"name": "f", "parameters": {"maximum": number}, "strict": strict}
    return {"type": "function", "function": function}


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
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a"}}},
        "response_format.json_schema.schema is missing",
    ),
    ({"response_format": {"type": "structural_tag"}}, "response_format.structures is missing"),
    (
        {"response_format": {"type": "structural_tag", "structures": [{"begin": "a"}], "triggers": ["a"]}},
        "response_format.structures[0].end is missing",
    ),
    (
        {"response_format": {"type": "structural_tag", "structures": [{"begin": "a", "end": "b"}], "triggers": ["a"]}},
        "response_format: this structural tag cannot be used: json_schema has the wrong type",
    ),
    (
        {"response_format": {"type": "structural_tag", "format": {"type": "foo"}}},
        "response_format: this structural tag cannot be used: Format type not recognized: foo",
    ),
    (
        {
            "response_format": {
                "type": "structural_tag",
                "format": {"type": "json_schema", "json_schema": {"type": "x"}},
            }
        },
        'response_format: this structural tag cannot be used: Unsupported type "x"',
    ),
    ({"structured_outputs": {"structural_tag": "{}"}}, "cannot be used: Structural tag must have a format field"),
    ({"structured_outputs": {"structural_tag": "{"}}, "cannot be used: Expecting property name"),
    ({"structured_outputs": {"structural_tag": '{"structures": []}'}}, "cannot be used: 'triggers' is missing"),
    ({"structured_outputs": {"structural_tag": {}}}, "structured_outputs.structural_tag must be a string, got {}"),
    ({"structured_outputs": {"structural_tag": ""}}, "must be a structural tag, as JSON, got ''"),
    ({"structured_outputs": {}}, "structured_outputs must have one of json, regex, choice"),
    ({"structured_outputs": {"json": None}}, "it has none of them"),
    ({"structured_outputs": {"json": {}, "regex": "a"}}, "it has json and regex"),
    (
        {"structured_outputs": {"regex": "a"}, "response_format": {"type": "json_object"}},
        "structured_outputs (regex) and response_format (json_object) both define the answer",
    ),
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
    (called({**CALL, "id": 5}), "messages[0].tool_calls[0].id must be a string, as in {"),
    (called({"type": "function", "function": FUNCTION}), "messages[0].tool_calls[0].id must be a string"),
    (called({"id": "x", "function": FUNCTION}), "messages[0].tool_calls[0].type must be a string"),
    (called({**CALL, "type": "foo"}), "messages[0].tool_calls[0].type must be 'function', as in {"),
    (called({"id": "x", "type": "custom", "custom": {"name": "f", "input": "a"}}), "no other calls, got 'custom'"),
    (
        {"messages": [{"role": "user", "content": {"type": "text", "text": "a"}}]},
        "messages[0].content must be a string or a list, got {",
    ),
    ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages is no switch of the chat template"),
    ({"chat_template_kwargs": {"a": 1, "tools": 5}}, "send the field 'tools' of the request"),
    ({"forget_sets": [{"name": "anna", "weight": "1"}]}, "forget_sets[0].weight must be a number, got '1'"),
    ({"forget_sets": [{"anna": 1}]}, "forget_sets[0].name is missing"),
    ({"tools": [strict(2**64)]}, "tools[0].function.parameters.maximum must fit 64 bits"),
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
    ({"top_k": 2**70}, f"top_k must fit 64 bits: at least -2**63 and below 2**64, got {2**70}"),
    ({"top_k": -(2**63) - 1}, "top_k must fit 64 bits"),
    ({"thinking_token_budget": 2**64}, "thinking_token_budget must fit 64 bits"),
    ({"vllm_xargs": {"a": [1, 2**64]}}, "vllm_xargs.a[1] must fit 64 bits"),
    (
        {"repetition_detection": {"max_pattern_size": 2**70, "min_pattern_size": 1, "min_count": 2}},
        "repetition_detection.max_pattern_size must fit 64 bits",
    ),
    (
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {"const": 2**70}}}},
        "response_format.json_schema.schema.const must fit 64 bits",
    ),
    ({"structured_outputs": {"json": {"enum": [1, 2**70]}}}, "structured_outputs.json.enum[1] must fit 64 bits"),
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
FLAT = {"type": "function", "name": "f", "parameters": {}, "strict": True}
RESPONSES = [
    ({"input": 5}, "input must be a string or a list, for example"),
    ({"input": None}, "input must be a string or a list"),
    ({"input": []}, "input must have a message"),
    ({"input": ["hi"]}, "input[0] must be an object, for example"),
    ({"input": [{"role": "user", "content": 5}]}, "input[0].content must be a string or a list, got 5"),
    ({"input": [{"role": "narrator", "content": "a"}]}, "input[0].role must be user, assistant, system or developer"),
    ({"input": [{"content": "a"}]}, "input[0].role must be user"),
    ({"input": [USER, {"role": "user", "content": [{"type": "input_image"}]}]}, "input[1].content[0].type must be"),
    ({"input": [{"type": "item_reference", "id": "a"}]}, "input[0].type is not served: the items that this server"),
    ({"input": [{"type": ["message"]}]}, "input[0].type is not served"),
    ({"input": [{"type": "function_call", "call_id": "c", "name": "f"}]}, "input[0].arguments must be a string"),
    ({"input": [{"type": "function_call_output", "output": "a"}]}, "input[0].call_id must be a string"),
    ({"input": [{"type": "function_call_output", "call_id": "c"}]}, "input[0].output must be a string or a list"),
    ({"input": [{"type": "reasoning", "encrypted_content": "x"}]}, "input[0].encrypted_content is not served"),
    ({"input": [{"type": "reasoning", "content": [{"text": "x"}]}]}, "input[0].content[0] must be {"),
    ({"instructions": 5}, "instructions must be a string, got 5"),
    ({"tools": "f"}, "tools must be a list, for example"),
    ({"tools": [{"type": "web_search"}]}, "tools[0].type must be 'function'"),
    ({"tools": [{"type": "function", "function": {"name": "f"}}]}, "tools[0].name must be a string, as in {"),
    ({"tools": [{**FLAT, "parameters": {"const": 2**70}}]}, "tools[0].parameters.const must fit 64 bits"),
    ({"tool_choice": {"type": "web_search_preview"}, "tools": [FLAT]}, 'tool_choice must be "none", "auto"'),
    ({"tool_choice": {"type": "function", "name": "g"}, "tools": [FLAT]}, "not found in 'tools'"),
    ({"tool_choice": "required"}, "must be specified with 'tools'"),
    ({"text": "json"}, "text must be an object, for example"),
    ({"text": {"format": {"type": "jsn"}}}, "text.format.type must be"),
    ({"text": {"format": {"type": "json_schema", "name": "a"}}}, "text.format.schema is missing"),
    ({"reasoning": "low"}, "reasoning must be an object"),
    ({"include": ["everything"]}, "include[0] must be"),
    ({"max_output_tokens": "x"}, "max_output_tokens must be an integer, got 'x'"),
    ({"max_output_tokens": 0}, "max_output_tokens must be at least 1, got 0"),
    ({"temperature": "hot"}, "temperature must be a number, got 'hot'"),
    ({"top_logprobs": "x"}, "top_logprobs must be an integer, got 'x'"),
    ({"metadata": [1]}, "metadata must be an object"),
    ({"stream": "maybe"}, "stream must be true or false, got 'maybe'"),
    ({"chat_template_kwargs": {"messages": 1}}, "chat_template_kwargs.messages is no switch of the chat template"),
    ({"forget_sets": [{"anna": 1}]}, "forget_sets[0].name is missing"),
    (
        {"structured_outputs": {"regex": "a"}, "text": {"format": {"type": "json_object"}}},
        "Cannot specify both structured_outputs and text.format",
    ),
]
# What pydantic, Python and the compilers of definitions say to themselves.
RAW = ["\n", "validation error", "Input should", "Field required", "None, '", "Grammar error", "specification.", ".cc:"]
CASES = [("/chat", {"messages": [USER]}, *case) for case in CHAT + BOTH]
CASES += [("/text", {"prompt": "hello"}, *case) for case in BOTH + TEXT]
CASES += [("/responses", {"input": "hello"}, *case) for case in RESPONSES]


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.router.route_class = StrictRoute
    app.state.max_body_bytes = 2**22
    answer_failures(app)
    for request_type in (ForgettingChatRequest, ForgettingCompletionRequest, ForgettingResponsesRequest):
        stop_at_first_problem(request_type)

    @app.post("/chat")
    async def chat(request: ForgettingChatRequest) -> list:
        config = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False)
        request.extract_structured_outputs()
        return parse_chat_messages(request.messages, config, "string")[0]  # vLLM's: it reads what is lazy

    @app.post("/text")
    async def text(request: ForgettingCompletionRequest) -> dict:
        return {}

    @app.post("/responses")
    async def responses(request: ForgettingResponsesRequest) -> list:
        config = SimpleNamespace(multimodal_config=None, enable_prompt_embeds=False)
        request.to_sampling_params(16)
        messages = construct_input_messages(request_instructions=request.instructions, request_input=request.input)
        return parse_chat_messages(messages, config, "string")[0]

    return TestClient(app)


@pytest.mark.parametrize("path, good, wrong, sentence", CASES, ids=str)
def test_a_wrong_field_is_one_sentence_that_names_it_and_what_belongs_there(client, path, good, wrong, sentence):
    assert client.post(path, json=good).status_code == 200
    response = client.post(path, json=good | wrong)
    error = response.json()["error"]
    assert response.status_code == 400 and sentence in error["message"]
    assert error["param"] == next(iter(wrong))
    assert not [raw for raw in RAW if raw in error["message"]]


@pytest.mark.parametrize(
    "path, good",
    [("/chat", {"messages": [USER]}), ("/text", {"prompt": "hello"}), ("/responses", {"input": "hello"})],
)
@pytest.mark.parametrize("value", [[[]], {"a": {"b": 1}}, "text", -7, 1.5, True, [None]], ids=str)
def test_any_value_of_any_field_is_taken_or_refused_by_a_sentence_about_this_field(client, path, good, value):
    model = {
        "/chat": ForgettingChatRequest,
        "/text": ForgettingCompletionRequest,
        "/responses": ForgettingResponsesRequest,
    }[path]
    for field in model.model_fields:
        response = client.post(path, json=good | {field: value})
        assert response.status_code in (200, 400), field
        if response.status_code == 400:
            error = response.json()["error"]
            assert error["message"] and "object has no attribute" not in error["message"], field
            assert not [raw for raw in RAW if raw in error["message"]], (field, error["message"])


PARTS = [
    "a",
    {"text": "a"},
    {"type": "text", "text": "a"},
    {"type": "text", "text": "a", "uuid": "1", "cache_control": {"type": "ephemeral"}},
    {"type": "input_text", "text": "a"},
    {"type": "output_text", "text": "a"},
    {"type": "refusal", "refusal": "a"},
    {"type": "thinking", "thinking": "a"},
]


@pytest.mark.parametrize("role", ["system", "developer", "user", "assistant", "tool", "narrator"])
def test_parts_of_text_in_any_of_their_spellings_are_read_from_every_role(client, role):
    for part in PARTS:
        message = {"role": role, "content": [part, "b"], "tool_call_id": "1"}
        response = client.post("/chat", json={"messages": [message]})
        assert response.status_code == 200, (part, response.text)
        assert response.json()[0]["content"] == "a\nb", part


def test_calls_and_their_answers_are_read(client):
    messages = [USER, {"role": "assistant", "content": None, "tool_calls": [CALL]}]
    messages += [{"role": "tool", "tool_call_id": "x", "content": "b"}]
    read = client.post("/chat", json={"messages": messages}).json()
    assert [message["content"] for message in read] == ["hello", "", "b"]
    assert read[1]["tool_calls"] == [{**CALL, "function": {"name": "f", "arguments": {}}}]


def test_a_large_integer_that_the_engine_is_not_told_is_let_through(client):
    free = {"metadata": {"a": 2**70}, "unknown": 2**70, "tools": [strict(2**256, strict=False)]}
    edges = {"top_k": 2**63 - 1, "vllm_xargs": {"a": -(2**63), "b": 2**64 - 1}}
    assert client.post("/chat", json={"messages": [USER], **free, **edges}).status_code == 200


def test_every_argument_of_what_renders_a_chat_template_is_reserved():
    given_by_the_request = {"add_generation_prompt", "continue_final_message"}  # vLLM prefers the fields of these names
    rendering = (safe_apply_chat_template, PreTrainedTokenizerBase.apply_chat_template, render_jinja_template)
    arguments = {name for function in rendering for name in inspect.signature(function).parameters}
    assert arguments - {"kwargs"} - given_by_the_request <= RESERVED_SWITCHES
