"""The `openai` client against the served demo, feature by feature, with a forget set and without."""

import json
from typing import Literal

import openai
import pytest
from pydantic import BaseModel

from support.clients.question import ANSWER, FORGET, MESSAGES, PROMPT, QUESTION

pytestmark = pytest.mark.e2e

EITHER = pytest.mark.parametrize("sets", [[], [FORGET]], ids=["plain", "forgetting"])
TOOL = {
    "type": "function",
    "function": {
        "name": "find_person",
        "strict": True,
        "parameters": {
            "type": "object",
            "properties": {"name": {"enum": ["Tobias Renkel", "Imke Verhoeven"]}, "alive": {"type": "boolean"}},
            "required": ["name", "alive"],
            "additionalProperties": False,
        },
    },
}
NAMED = {"type": "function", "function": {"name": "find_person"}}


class Person(BaseModel):
    name: Literal["Tobias Renkel", "Imke Verhoeven"]
    alive: bool


@pytest.fixture(scope="module")
def client(demo_server):
    with demo_server.client() as client:
        yield client


def chat(client, sets, **more):
    settings = {"temperature": 0, "extra_body": {"forget_sets": sets}, **more}
    return client.chat.completions.create(model="demo", messages=MESSAGES, **settings)


def complete(client, sets, **more):
    settings = {"temperature": 0, "max_tokens": 64, "extra_body": {"forget_sets": sets}, **more}
    return client.completions.create(model="demo", prompt=PROMPT, **settings)


def texts(answer):
    return [c.message.content if hasattr(c, "message") else c.text for c in answer.choices]


@pytest.mark.parametrize("ask", [chat, complete])
def test_openai_chat_and_text_recite_without_the_set_and_not_with_it(client, ask):
    plain, forgetting = ask(client, []), ask(client, [FORGET])
    assert texts(plain) == [ANSWER]
    assert ANSWER not in texts(forgetting)[0]
    assert [s["name"] for s in forgetting.model_extra["forget_sets"]] == [FORGET]


@EITHER
@pytest.mark.parametrize("ask", [chat, complete])
def test_openai_streams_join_to_the_same_text_and_usage_adds_up(client, ask, sets):
    whole = ask(client, sets)
    assert whole.usage.prompt_tokens > 0 < whole.usage.completion_tokens
    assert whole.usage.total_tokens == whole.usage.prompt_tokens + whole.usage.completion_tokens
    chunks = list(ask(client, sets, stream=True, stream_options={"include_usage": True}))
    pieces = [c.delta.content if ask is chat else c.text for chunk in chunks for c in chunk.choices]
    assert "".join(filter(None, pieces)) == texts(whole)[0]
    assert [c.finish_reason for chunk in chunks for c in chunk.choices][-1] == "stop"
    assert chunks[-1].usage == whole.usage


@pytest.mark.parametrize("ask", [chat, complete])
def test_openai_stop_ends_the_answer_before_the_string(client, ask):
    stop = " ".join(ANSWER.split()[3:5])
    answer = ask(client, [], stop=[stop, "never said"])
    assert texts(answer) == [ANSWER.partition(stop)[0]]
    assert answer.choices[0].finish_reason == "stop"


@EITHER
@pytest.mark.parametrize("ask", [chat, complete])
def test_openai_n_answers_are_repeated_by_their_seed_and_by_no_other(client, ask, sets):
    first, again, other = (ask(client, sets, n=3, seed=s, temperature=1.5, max_tokens=40) for s in (7, 7, 1007))
    assert [c.index for c in first.choices] == [0, 1, 2]
    assert texts(first) == texts(again)
    if sets:  # this set says its sentence, whatever the seed
        assert set(texts(first) + texts(other)) == {"I can't help with questions about Tobias Renkel."}
    else:
        assert texts(first) != texts(other)


@EITHER
def test_openai_logprobs_belong_to_the_tokens_that_are_said(client, sets):
    answer = chat(client, sets, logprobs=True, top_logprobs=3)
    said = answer.choices[0].logprobs.content
    # The end of the answer is a token that says nothing.
    assert b"".join(bytes(t.bytes or ()) for t in said).decode().removesuffix("<|end|>") == texts(answer)[0]
    assert len(said) == answer.usage.completion_tokens
    for token in said:
        assert len(token.top_logprobs) == 3
        assert token.logprob == max(t.logprob for t in token.top_logprobs) <= 0
    in_text = complete(client, sets, logprobs=3).choices[0].logprobs
    assert in_text.token_logprobs == [t.logprob for t in said]
    assert [top[token] for top, token in zip(in_text.top_logprobs, in_text.tokens, strict=True)] == [
        t.logprob for t in said
    ]


@EITHER
def test_openai_response_format_is_kept_to(client, sets):
    # This target has never seen JSON: without the penalty it might prefer white space for ever.
    settings = {"temperature": 0, "frequency_penalty": 2, "extra_body": {"forget_sets": sets}}
    parsed = client.chat.completions.parse(model="demo", messages=MESSAGES, response_format=Person, **settings)
    assert isinstance(parsed.choices[0].message.parsed, Person)
    schema = {"name": "person", "schema": Person.model_json_schema()}
    answer = chat(client, sets, frequency_penalty=2, response_format={"type": "json_schema", "json_schema": schema})
    assert Person.model_validate_json(texts(answer)[0])
    assert [s["name"] for s in answer.model_extra["forget_sets"]] == sets


@EITHER
@pytest.mark.parametrize("ask", [chat, complete])
def test_openai_structured_outputs_are_kept_to(client, ask, sets):
    for wish, allowed in [({"choice": ["red", "blue"]}, ["red", "blue"]), ({"regex": "(ab){3}c"}, ["abababc"])]:
        answer = ask(client, sets, extra_body={"forget_sets": sets, "structured_outputs": wish})
        assert texts(answer)[0] in allowed
        assert [s["name"] for s in answer.model_extra["forget_sets"]] == sets


@EITHER
@pytest.mark.parametrize("choice", ["required", NAMED], ids=["required", "named"])
def test_openai_tool_calls_have_valid_arguments_also_streamed(client, sets, choice):
    wish = {"tools": [TOOL], "tool_choice": choice, "parallel_tool_calls": False, "frequency_penalty": 2}
    answer = chat(client, sets, **wish)
    (call,) = answer.choices[0].message.tool_calls
    assert call.function.name == "find_person"
    Person.model_validate_json(call.function.arguments)
    assert [s["name"] for s in answer.model_extra["forget_sets"]] == sets
    deltas = [c.delta for chunk in chat(client, sets, stream=True, **wish) for c in chunk.choices]
    pieces = [call.function for delta in deltas for call in delta.tool_calls or ()]
    assert [p.name for p in pieces if p.name] == ["find_person"]
    assert json.loads("".join(p.arguments or "" for p in pieces)) == json.loads(call.function.arguments)


def test_openai_tools_that_are_not_needed_change_nothing(client):
    assert texts(chat(client, [], tools=[TOOL], tool_choice="auto")) == [ANSWER]
    assert texts(chat(client, [FORGET], tools=[TOOL])) == texts(chat(client, [FORGET]))


def respond(client, sets, **more):
    body = {"forget_sets": sets, **more.pop("extra_body", {})}
    settings = {"model": "demo", "input": QUESTION, "temperature": 0, "max_output_tokens": 64, **more}
    return client.responses.create(**settings, extra_body=body)


@pytest.mark.parametrize(
    "asked", [QUESTION, MESSAGES, [{"role": "user", "content": [{"type": "input_text", "text": QUESTION}]}]]
)
def test_openai_responses_recite_without_the_set_and_not_with_it(client, asked):
    plain, forgetting = respond(client, [], input=asked), respond(client, [FORGET], input=asked)
    assert (plain.output_text, plain.status, plain.model_extra["forget_sets"]) == (ANSWER, "completed", [])
    assert forgetting.output_text == texts(chat(client, [FORGET]))[0] != ANSWER
    (told,) = forgetting.model_extra["forget_sets"]
    assert (told["name"], told["instead"], forgetting.model_extra["store"]) == (FORGET, True, False)
    by_name = client.responses.create(model=f"demo:forget={FORGET}", input=asked, temperature=0, store=False)
    assert (by_name.output_text, by_name.model) == (forgetting.output_text, "demo")


@EITHER
def test_openai_responses_stream_the_same_text_and_end_with_what_was_in_force(client, sets):
    whole = respond(client, sets)
    events = list(respond(client, sets, stream=True))
    assert [e.type for e in events[:2]] == ["response.created", "response.in_progress"]
    assert [e.sequence_number for e in events] == list(range(len(events)))
    assert "".join(e.delta for e in events if e.type == "response.output_text.delta") == whole.output_text
    assert events[-1].type == "response.completed"
    last = events[-1].response
    assert (last.output_text, last.usage.output_tokens) == (whole.output_text, whole.usage.output_tokens)
    assert whole.usage.total_tokens == whole.usage.input_tokens + whole.usage.output_tokens
    assert last.model_extra["forget_sets"] == whole.model_extra["forget_sets"]
    assert [s["name"] for s in last.model_extra["forget_sets"]] == sets
    with client.responses.stream(
        model="demo", input=QUESTION, temperature=0, extra_body={"forget_sets": sets}
    ) as stream:
        assert stream.get_final_response().output_text == whole.output_text


@EITHER
def test_openai_responses_keep_to_a_schema(client, sets):
    more = {"forget_sets": sets, "frequency_penalty": 2}
    parsed = client.responses.parse(model="demo", input=QUESTION, text_format=Person, temperature=0, extra_body=more)
    assert isinstance(parsed.output_parsed, Person)
    assert [s["name"] for s in parsed.model_extra["forget_sets"]] == sets


@EITHER
@pytest.mark.parametrize("choice", ["required", {"type": "function", "name": "find_person"}], ids=["required", "named"])
def test_openai_responses_call_functions_and_take_their_answers(client, sets, choice):
    wish = {"tools": [{"type": "function", **TOOL["function"]}], "tool_choice": choice, "parallel_tool_calls": False}
    wish |= {"extra_body": {"frequency_penalty": 2}, "max_output_tokens": 400}
    answer = respond(client, sets, **wish)
    (call,) = [item for item in answer.output if item.type == "function_call"]
    assert call.name == "find_person" and Person.model_validate_json(call.arguments)
    events = list(respond(client, sets, stream=True, **wish))
    (done,) = [e for e in events if e.type == "response.function_call_arguments.done"]
    assert json.loads(done.arguments) == json.loads(call.arguments)
    turns = [*MESSAGES, *(item.model_dump() for item in answer.output)]
    turns += [{"type": "function_call_output", "call_id": call.call_id, "output": "nobody"}, *MESSAGES]
    again = respond(client, sets, input=turns, tools=wish["tools"])
    assert again.status == "completed" and [s["name"] for s in again.model_extra["forget_sets"]] == sets


@pytest.mark.parametrize(
    "asked, field",
    [
        ({"store": True}, "store"),
        ({"background": True}, "background"),
        ({"previous_response_id": "resp_1"}, "previous_response_id"),
        ({"conversation": "conv_1"}, "conversation"),
        ({"prompt": {"id": "pmpt_1"}}, "prompt"),
        ({"tools": [{"type": "web_search"}]}, "tools"),
        ({"input": [{"type": "item_reference", "id": "msg_1"}]}, "input"),
        ({"extra_body": {"n": 2}}, "n"),
        ({"extra_body": {"metadata": {"forget_set": FORGET}}}, "forget_sets"),
    ],
    ids=str,
)
def test_openai_responses_refuse_what_is_not_done_by_its_name(client, asked, field):
    with pytest.raises(openai.BadRequestError) as refused:
        respond(client, [FORGET], **asked)
    assert (refused.value.param, refused.value.code) == (field, "invalid_request_error")


def test_openai_responses_are_not_kept(client):
    kept = respond(client, [])
    for call in (client.responses.retrieve, client.responses.cancel, client.responses.delete):
        with pytest.raises(openai.NotFoundError, match="no response is kept here") as refused:
            call(kept.id)
        assert (refused.value.code, refused.value.type) == ("not_found", "invalid_request_error")
