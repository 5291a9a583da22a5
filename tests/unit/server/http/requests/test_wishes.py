"""Wishes to forget that would have no effect are refused by their place; what a user writes is none."""

import json
import random
from functools import reduce
from typing import Annotated, Any

import openai.types.chat
import pytest
from fastapi import Body, Depends, FastAPI
from fastapi.testclient import TestClient
from vllm.entrypoints.generate.base import protocol
from vllm.entrypoints.openai.chat_completion import protocol as chat_protocol
from vllm.entrypoints.openai.completion import protocol as completion_protocol
from vllm.entrypoints.openai.responses import protocol as responses_protocol

from unlearngate.server.http.bodies import StrictRoute
from unlearngate.server.http.failures import answer_failures
from unlearngate.server.http.requests.wishes import RESPONSES_PATH, refuse_misplaced_wishes

SPELLINGS = [
    "forget_set", "forgetSets", "forget-sets", "FORGET_SETS", "forgetsets", "Forget Sets", "forget", "forgets",
    "unlearn_sets", "unlearnSets", "x-forget-sets", "forget_sets[]", "sets_to_forget", "frget_sets", "forgot_sets",
    "forget_stes", "forgetsetz", "forget_topics", "forgetting", " forget_sets", "unlearngate", "unlearn",
    "unlern_sets", "unleran_sets", "unlernSets", "forgt", "forgte_topics", "x_frget_sets", "default_forgt_set",
    "forgotten", "forgotten_topics", "FRGET", "XForgtSets", "x_frgetsets", "forge_sets", "un-learn", "for_get_sets",
    "ｆｏｒｇｅｔ＿ｓｅｔｓ", "forgét_sets", "forge\u0301t", "f\u043erget_topics", "for\u200bget", "f0rget_2",
]  # fmt: skip
# What clients, proxies and tracers send, and words that look like wishes.
OTHERS = """
    format formats target targets budget widget gadget forge forged forger forges learn learned relearn learning_rate
    run_learning_rate runlearner for_getter forget_me_not unforgettable unforgotten forgetful forêt offset set sets
    reset metadata user tags trace_id session_id generation_name mock_response fallbacks num_retries litellm_call_id
    api_base langgraph_node langgraph_step thread_id checkpoint_ns ls_provider ls_model_name run_id parent_run_id
    accept accept-charset accept-encoding accept-language access-control-request-headers access-control-request-method
    authorization baggage b3 cache-control cdn-loop cf-connecting-ip cf-ray connection content-encoding content-language
    content-length content-type cookie date dnt expect forwarded from helicone-auth host http2-settings idempotency-key
    if-match if-none-match keep-alive langchain-project langsmith-trace link max-forwards openai-beta
    openai-organization openai-project origin pragma prefer priority proxy-authorization range referer sec-ch-ua
    sec-fetch-dest sec-fetch-mode sec-fetch-site sec-gpc sentry-trace te trailer traceparent tracestate upgrade
    upgrade-insecure-requests user-agent via warning x-amzn-trace-id x-api-key x-b3-sampled x-b3-traceid
    x-cloud-trace-context x-correlation-id x-csrf-token x-data-parallel-rank x-datadog-trace-id x-envoy-attempt-count
    x-forwarded-for x-forwarded-host x-forwarded-port x-forwarded-prefix x-forwarded-proto x-http-method-override
    x-litellm-api-key x-litellm-num-retries x-litellm-tags x-litellm-timeout x-original-uri x-portkey-config
    x-ratelimit-reset x-real-ip x-request-id x-requested-with x-session-id x-stainless-arch x-stainless-async
    x-stainless-helper-method x-stainless-lang x-stainless-os x-stainless-package-version x-stainless-raw-response
    x-stainless-read-timeout x-stainless-retry-count x-stainless-runtime x-stainless-runtime-version
    x-stainless-timeout
""".split()
PLACES = [
    ("extra_body",), ("metadata",), ("extra_args",), ("vllm_xargs",), ("chat_template_kwargs",), ("a", 0, "b", 1, 0),
    ("messages", 0), ("messages", 0, "content", 0), ("stream_options",), ("tools", 0), ("tools", 0, "function"),
    ("response_format",), ("response_format", "json_schema"), ("structured_outputs",), ("parameters",), ("json",),
    ("messages", 0, "tool_calls", 0), ("sampling_params", "extra"),
]  # fmt: skip
JSON = '{"forget_sets": ["a"]}'
PRINTED = "{'model': 'm', 'forget_sets': ['a']}"  # as Python prints it
IN_STRINGS = [
    {"extra_body": PRINTED}, {"metadata": {"a": f" [{PRINTED}]"}}, {"extra_body": JSON.replace("a", "a,\n")},
    {"extra_body": JSON[:-2]}, {"extra_body": "{'a': True, 'forget_sets' : None}"}, {"a": json.dumps(PRINTED)},
    {"extra_body": f" {JSON}"}, {"metadata": {"options": JSON}}, {"a": f"[{JSON}]"}, {"metadata": {"a": {"b": JSON}}},
    {"a": [JSON]}, {"a": [[0, JSON]]}, {"extra_body": {"metadata": {"x": JSON}}}, {"a": f"\ufeff{JSON}"},
    {"a": json.dumps(JSON)}, {"a": json.dumps({"b": [json.dumps({"c": JSON})]})}, {"a": JSON.replace("f", r"\u0066")},
    {"a": json.dumps(JSON).replace("{", r"\u007b").replace(":", r"\u003a")},
    {"messages": [{"role": "user", "content": "hi", "metadata": JSON}]}, {"tools": [{"function": {"name": JSON}}]},
    {"messages": [{"content": [{"type": "text", "text": "hi", "metadata": JSON}]}]}, {"response_format": JSON},
    {"messages": JSON}, {"functions": JSON}, {"structured_outputs": {"structural_tag": JSON}},
]  # fmt: skip
NO_SCHEMAS = [
    {"tools": [{"type": "function", "function": {"name": "f"}, "parameters": {"forget_sets": ["a"]}}]},
    {"response_format": {"type": "text", "format": {"forget_sets": ["a"]}}},
    {"response_format": {"format": {"forget_sets": ["a"]}}},
    {"response_format": {"type": "structural_tag", "other": {"forget_sets": ["a"]}}},
    {"messages": [{"content": {"forget_sets": ["a"]}}]},
]
TAG = {"type": "tag", "begin": "<", "content": {"type": "json_schema", "json_schema": {"properties": {"forget": {}}}}}
CONTENT = [
    {"messages": [{"role": "user", "content": "unlearn forget_sets: forget_set"}], "user": "forget_sets"},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "forget", "arguments": {"forget": 1}}}]}]},
    {"tools": [{"type": "function", "function": {"name": "forget", "parameters": {"properties": {"forget": {}}}}}]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "unlearn", "schema": {"forget_set": {}}}}},
    {"structured_outputs": {"json": {"properties": {"unlearn": {"type": "string"}}}}},
    {"documents": [{"forget": "me"}], "prompt": {"forget": 1}},
    {"unforgettable": 1, "forget-me-not": 1, "target_sets": 1, "sets": ["a"], "budget_sets": 1, "metadata": {"a": [1]}},
    {"messages": [{"role": "user", "content": JSON}], "suffix": JSON, "prompt": JSON, "stop": JSON},
    {"messages": [{"role": "user", "content": [JSON, {"type": "text", "text": JSON}]}], "stop": [JSON]},
    {"messages": [{"role": "assistant", "reasoning": JSON, "tool_calls": [{"function": {"arguments": JSON}}]}]},
    {"messages": [{"role": "tool", "content": json.dumps(JSON)}], "bad_words": [JSON], "prediction": {"content": JSON}},
    {"tools": [{"type": "function", "function": {"name": "f", "description": JSON, "parameters": JSON}}]},
    {"response_format": {"type": "structural_tag", "format": TAG}},
    {"response_format": {"type": "structural_tag", "structures": [{"begin": "<", "schema": {"forget": {}}}]}},
    {"structured_outputs": {"structural_tag": json.dumps({"type": "structural_tag", "format": TAG})}},
    {"structured_outputs": {"choice": [JSON, "no"]}, "metadata": {"a": "{", "b": "[{:", "c": '{"d": "forget"}'}},
    {"guided_json": '{"properties": {"forget_sets": {}}}', "user": "{forget_sets}"},
    {"structured_outputs": {"json": '{"properties": {"unlearn": {"type": "string"}}}'}, "stop": ["{", "forget_sets"]},
    {"messages": [{"role": "user", "content": PRINTED}], "metadata": {"a": "{'b': 'forget'}", "c": "{forget: it's"}},
    {"structured_outputs": {"regex": '["\'a]"forget":', "grammar": f'"{PRINTED}"'}, "guided_regex": '["]"forget":'},
    {"forget_sets": [{"name": "a", "forget": 1}]},  # read strictly, as the field that it is
    [{"forgetful": 1}],
]

# Of /v1/responses, where chat's own places have no meaning.
RESPONSES_WISHES = [
    {"messages": [{"content": JSON}]}, {"input": {"forget_sets": ["a"]}}, {"instructions": {"a": JSON}},
    {"input": [{"content": [{"type": "input_text", "text": "hi", "forget_sets": ["a"]}]}]},
    {"input": [{"role": "user", "metadata": JSON}]},
    {"text": {"forget_sets": ["a"]}}, {"text": {"format": {"forget_sets": ["a"]}}}, {"tools": [{"forget_sets": ["a"]}]},
    {"tools": [{"name": "f", "function": {"parameters": {"forget_sets": ["a"]}}}]}, {"reasoning": {"a": JSON}},
    {"input": [{"type": "reasoning", "summary": [{"forget_sets": ["a"]}]}]},
]  # fmt: skip
RESPONSES_CONTENT = [
    {"input": JSON, "instructions": JSON, "metadata": {"a": "b"}},
    {"input": [{"role": "user", "content": JSON}, {"role": "assistant", "content": [{"text": JSON}]}]},
    {"input": [{"type": "function_call", "name": "forget", "arguments": JSON}]},
    {"input": [{"type": "function_call_output", "output": JSON}, {"output": [{"text": JSON}]}]},
    {"input": [{"type": "reasoning", "summary": [{"text": JSON}], "content": [{"text": JSON}]}]},
    {"tools": [{"type": "function", "name": "unlearn", "description": JSON, "parameters": {"forget_sets": 1}}]},
    {"text": {"format": {"type": "json_schema", "description": JSON, "schema": {"forget_sets": 1}}}},
    {"structured_outputs": {"json": {"forget": 1}}, "stop": [JSON]},
    {"forget_sets": [{"name": "a"}]},
]


@pytest.fixture(scope="module")
def client():
    app = FastAPI()
    app.router.route_class = StrictRoute
    app.state.max_body_bytes = 2**22
    answer_failures(app)

    @app.post("/", dependencies=[Depends(refuse_misplaced_wishes)])
    async def ask(body: Annotated[Any, Body()]) -> dict:
        return {}

    app.post(RESPONSES_PATH, dependencies=[Depends(refuse_misplaced_wishes)])(ask)
    return TestClient(app)


def at(place, field):
    """A body that holds the field at a place: names of objects, and indices of lists."""
    return reduce(lambda v, step: [0] * step + [v] if isinstance(step, int) else {step: v}, place[::-1], {field: ["a"]})


def assert_refused(response, *places):
    error = response.json()["error"]
    assert (response.status_code, error["param"], error["code"]) == (400, "forget_sets", "invalid_request_error")
    assert '"forget_sets": ["NAME"]' in error["message"]
    for place in places:
        assert place in error["message"]


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_wish_in_another_spelling_is_refused_at_the_top_and_within(client, spelling):
    assert_refused(client.post("/", json={"model": "m", spelling: ["a"]}), repr(spelling))
    assert_refused(client.post("/", json=at(("extra_body",), spelling)), repr(f"extra_body.{spelling}"))
    assert_refused(client.post("/", json=at(("extra_body",), spelling) | {"forget_sets": []}))


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_right_spelling_in_another_place_is_refused(client, place):
    shown = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
    assert_refused(client.post("/", json=at(place, "forget_sets")), f"{shown}.forget_sets")


@pytest.mark.parametrize("body", IN_STRINGS, ids=str)
def test_a_wish_in_a_string_of_json_is_refused(client, body):
    assert_refused(client.post("/", json=body), "forget_sets'")


@pytest.mark.parametrize("body", NO_SCHEMAS, ids=str)
def test_a_wish_beside_a_schema_is_refused(client, body):
    assert_refused(client.post("/", json=body), "forget_sets'")


@pytest.mark.parametrize("body", RESPONSES_WISHES, ids=str)
def test_a_wish_is_refused_by_responses_too(client, body):
    assert_refused(client.post(RESPONSES_PATH, json=body), "forget_sets'")


@pytest.mark.parametrize("body", RESPONSES_CONTENT, ids=str)
def test_what_a_user_writes_into_responses_is_let_through(client, body):
    assert client.post(RESPONSES_PATH, json=body).json() == {}


@pytest.mark.parametrize("name", ["forget_sets", "forget-set", "forgetSets", "unlearn", "frget-sets", "unlern"])
def test_a_wish_in_a_query_parameter_or_a_header_is_refused(client, name):
    assert_refused(client.post("/", json={}, params={name: "a"}), f"the query parameter {name!r}")
    for header in (name, f"x-{name}"):
        assert_refused(client.post("/", json={}, headers={header: "a"}), f"the header {header.lower()!r}")
    assert client.post("/", json={}, headers={"x-unlearngate-required": "a"}).status_code == 200  # the gateway's


@pytest.mark.parametrize("value", [JSON, f"[{JSON}]", json.dumps({"a": JSON})])
def test_a_wish_in_the_value_of_a_query_parameter_or_a_header_is_refused(client, value):
    assert_refused(
        client.post("/", json={}, params=[("m", "x"), ("m", value)]), "the query parameter 'm", "forget_sets'"
    )
    assert_refused(client.post("/", json={}, headers={"x-metadata": value}), "the header 'x-metadata", "forget_sets'")


def fields_of(*modules):
    """The names of all fields of the models and typed dictionaries in these modules."""
    kinds = [kind for module in modules for kind in vars(module).values() if isinstance(kind, type)]
    return {name for kind in kinds for name in getattr(kind, "__annotations__", {}) if not name.startswith("__")}


def test_names_that_others_use_are_no_wishes(client):
    names = {*OTHERS, *fields_of(protocol, chat_protocol, completion_protocol, responses_protocol, openai.types.chat)}
    assert len(names) > 450 and {"kv_transfer_params", "parallel_tool_calls", "best_of", "previous_response_id"} < names
    body = dict.fromkeys(names, 1)
    assert client.post("/", json={**body, "a": body, "b": json.dumps(body)}).json() == {}
    assert client.post("/", json={}, params=body, headers={name: "1" for name in OTHERS if name.isascii()}).json() == {}


@pytest.mark.parametrize("body", CONTENT, ids=str)
def test_what_a_user_writes_and_other_fields_are_let_through(client, body):
    assert client.post("/", json=body).json() == {}


def test_a_wish_anywhere_in_random_bodies_is_found_and_without_one_nothing_is(client, seed):
    rng = random.Random(seed)

    def draw(depth):
        if depth == 0 or rng.random() < 0.2:
            return rng.choice([1, "forget_sets", None, True, [], {}])
        if rng.random() < 0.5:
            return [draw(depth - 1) for _ in range(rng.randint(1, 3))]
        return {f"{rng.choice('abcdefgh')}{i}": draw(depth - 1) for i in range(rng.randint(1, 3))}

    def objects(value):
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        return [*([value] if isinstance(value, dict) else []), *(o for v in inner for o in objects(v))]

    for _ in range(100):
        body = {"a": draw(rng.randint(1, 6))}
        assert client.post("/", json=body).status_code == 200, body
        rng.choice(objects(body))[rng.choice(SPELLINGS)] = 1
        assert_refused(client.post("/", json=body))


def test_a_deep_and_a_long_body_are_looked_through_to_the_end(client):
    deep = reduce(lambda v, _: {"a": v}, range(400), {"forget": 1})
    assert_refused(client.post("/", content=json.dumps(deep)))
    long = {"a": [[{"b": 1}]] * 50_000 + [{"unlearn": 1}]}
    assert_refused(client.post("/", content=json.dumps(long)), "a[50000].unlearn")
    strings = {"a": ['{"b": 1}', '{"b":'] * 50_000 + [reduce(lambda s, _: json.dumps([s]), range(12), JSON)]}
    assert_refused(client.post("/", content=json.dumps(strings)), "a[100000]")
