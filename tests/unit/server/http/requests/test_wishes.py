"""Wishes to forget that would have no effect are refused by their place; what a user writes is none."""

import json
import random
from functools import reduce
from typing import Annotated, Any

import pytest
from fastapi import Body, Depends, FastAPI
from fastapi.testclient import TestClient

from unlearngate.server.http.bodies import StrictRoute
from unlearngate.server.http.failures import answer_failures
from unlearngate.server.http.requests.wishes import refuse_misplaced_wishes

SPELLINGS = [
    "forget_set", "forgetSets", "forget-sets", "FORGET_SETS", "forgetsets", "Forget Sets", "forget", "forgets",
    "unlearn_sets", "unlearnSets", "x-forget-sets", "forget_sets[]", "sets_to_forget", "frget_sets", "forgot_sets",
    "forget_stes", "forgetsetz", "forget_topics", "forgetting", " forget_sets", "unlearngate", "unlearn",
]  # fmt: skip
PLACES = [
    ("extra_body",), ("metadata",), ("extra_args",), ("vllm_xargs",), ("chat_template_kwargs",), ("a", 0, "b", 1, 0),
    ("messages", 0), ("messages", 0, "content", 0), ("stream_options",), ("tools", 0), ("tools", 0, "function"),
    ("response_format",), ("response_format", "json_schema"), ("structured_outputs",), ("parameters",), ("json",),
    ("messages", 0, "tool_calls", 0), ("sampling_params", "extra"),
]  # fmt: skip
JSON = '{"forget_sets": ["a"]}'
CONTENT = [
    {"messages": [{"role": "user", "content": "unlearn forget_sets: forget_set"}], "user": "forget_sets"},
    {"messages": [{"role": "assistant", "tool_calls": [{"function": {"name": "forget", "arguments": {"forget": 1}}}]}]},
    {"tools": [{"type": "function", "function": {"name": "forget", "parameters": {"properties": {"forget": {}}}}}]},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "unlearn", "schema": {"forget_set": {}}}}},
    {"structured_outputs": {"json": {"properties": {"unlearn": {"type": "string"}}}}},
    {"documents": [{"forget": "me"}], "prompt": {"forget": 1}},
    {"unforgettable": 1, "forget-me-not": 1, "target_sets": 1, "sets": ["a"], "budget_sets": 1, "metadata": {"a": [1]}},
    {"messages": [{"role": "user", "content": JSON}], "suffix": JSON, "prompt": JSON},
    {"guided_json": '{"properties": {"forget_sets": {}}}', "user": "{forget_sets}"},
    {"structured_outputs": {"json": '{"properties": {"unlearn": {"type": "string"}}}'}, "stop": ["{", "forget_sets"]},
    {"forget_sets": [{"name": "a", "forget": 1}]},  # read strictly, as the field that it is
    [{"forgetful": 1}],
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
    assert_refused(client.post("/", json=at(("extra_body",), spelling)), f"extra_body.{spelling}")
    assert_refused(client.post("/", json=at(("extra_body",), spelling) | {"forget_sets": []}))


@pytest.mark.parametrize("place", PLACES, ids=str)
def test_the_right_spelling_in_another_place_is_refused(client, place):
    shown = "".join(f"[{step}]" if isinstance(step, int) else f".{step}" for step in place).removeprefix(".")
    assert_refused(client.post("/", json=at(place, "forget_sets")), f"{shown}.forget_sets")


@pytest.mark.parametrize("body", [{"extra_body": f" {JSON}"}, {"metadata": {"options": JSON}}, {"a": f"[{JSON}]"}])
def test_a_wish_in_a_string_of_json_is_refused(client, body):
    assert_refused(client.post("/", json=body), ".forget_sets'")


@pytest.mark.parametrize("name", ["forget_sets", "forget-set", "forgetSets", "unlearn"])
def test_a_wish_in_a_query_parameter_or_a_header_is_refused(client, name):
    assert_refused(client.post("/", json={}, params={name: "a"}), f"the query parameter {name!r}")
    for header in (name, f"x-{name}"):
        assert_refused(client.post("/", json={}, headers={header: "a"}), f"the header {header.lower()!r}")
    assert client.post("/", json={}, headers={"x-unlearngate-required": "a"}).status_code == 200  # the gateway's


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
