"""The application around a handler that answers at once: models, streams, browsers, and answers that are no JSON."""

import math
import time
from types import SimpleNamespace
from unittest.mock import Mock

import pytest
from fastapi.testclient import TestClient
from pydantic import BaseModel
from starlette.datastructures import State
from vllm.v1.engine.exceptions import EngineGenerateError

from support.engine.tiny import make_forget_set, make_target
from unlearngate.server.audit.accounting import Accounting
from unlearngate.server.contract.tally import Tally
from unlearngate.server.engine.usage import Meter
from unlearngate.server.http.access import Access
from unlearngate.server.http.app import Answerer, build_app
from unlearngate.server.http.keyring import Keyring
from unlearngate.server.http.keys import ApiKey, KeysFile, hash_secret, write_keys
from unlearngate.server.http.requests.bounds import Bounds
from unlearngate.server.sets.policy import Policy
from unlearngate.server.sets.registry import Registry
from unlearngate.target import identify_target

ORIGIN = "https://chat.example.org"
BODY = {"model": "tiny", "prompt": "hello"}
KEY = {"authorization": "Bearer secret"}


class Answer(BaseModel):
    logprob: float = 0.0


class Handlers:
    """What stands where vLLM's handlers do: it streams two events, or answers with a logprob."""

    logprob = -1.0
    meanwhile = None  # called while a request runs

    async def create_completion(self, request, raw_request):
        async def events():
            yield "data: {}\n\n"
            if self.meanwhile:
                self.meanwhile()
            yield "data: [DONE]\n\n"

        if self.meanwhile and not request.stream:
            self.meanwhile()
        return events() if request.stream else Answer(logprob=self.logprob)


@pytest.fixture
def handlers():
    return Handlers()


@pytest.fixture
def app_of(tmp_path, handlers):
    target = make_target(tmp_path / "tiny", seed=1)
    make_forget_set(tmp_path / "sets" / "anna", target, seed=1, rank=1)
    registry = Registry(identify_target(target), tmp_path / "bindings")
    registry.discover(tmp_path / "sets")
    models = SimpleNamespace(
        base_model_paths=[SimpleNamespace(model_path=str(target))],
        registry=SimpleNamespace(model_config=SimpleNamespace(max_model_len=512)),
    )
    write_keys(tmp_path / "keys", KeysFile(keys=(ApiKey(id="k", tenant="t", sha256=hash_secret("secret")),)))
    state = State({"openai_serving_models": models, "openai_serving_completion": handlers})
    meter = Meter(Tally.create(tmp_path, max_num_seqs=2, max_model_len=512))

    def build(*, keys=False, most_per_key=0, **options):
        policy = Policy(registry, served_name="tiny", num_branches=2)
        answerer = Answerer(policy, None, Accounting(meter, None), state, most_per_key=most_per_key)
        access = Access(Keyring(tmp_path / "keys") if keys else None)
        bounds = Bounds(
            sequences=8,
            prompt_chars=1000,
            request_chars=2000,
            messages=64,
            definition_kb=64,
            definition_items=64,
            repeats=1000,
            biases=64,
            parameters_kb=64,
        )
        return TestClient(build_app(answerer, access, max_body_bytes=2**20, bounds=bounds, **options))

    build.target = target
    return build


def test_a_model_says_its_length_its_root_its_parent_and_since_when_it_is_there(app_of):
    before = int(time.time())
    client = app_of()
    cards = client.get("/v1/models").json()["data"]
    assert [card["id"] for card in cards] == ["tiny", "tiny:forget=anna"]
    assert [card["parent"] for card in cards] == [None, "tiny"]
    for card in cards:
        assert (card["max_model_len"], card["root"], card["object"]) == (512, str(app_of.target), "model")
        assert before <= card["created"] <= time.time()
        assert client.get(f"/v1/models/{card['id']}").json() == card


def test_a_stream_tells_proxies_not_to_hold_it_back(app_of):
    response = app_of().post("/v1/completions", json={**BODY, "stream": True})
    assert response.text == "data: {}\n\ndata: [DONE]\n\n"
    assert response.headers["cache-control"] == "no-cache"
    assert response.headers["x-accel-buffering"] == "no"
    assert response.headers["x-forget-sets"] == "none"


def test_a_failure_is_one_line_and_never_without_a_word(app_of, handlers):
    client = app_of()
    for failure, said in [(EngineGenerateError(), "EngineGenerateError"), (ValueError("a\n  b\n"), "a b")]:
        handlers.meanwhile = Mock(side_effect=failure)
        assert client.post("/v1/completions", json=BODY).json()["error"]["message"].endswith(said)


def test_a_key_has_so_many_requests_at_a_time_and_one_that_ends_makes_room(app_of, handlers):
    client = app_of(keys=True, most_per_key=1)
    inner = []
    handlers.meanwhile = lambda: inner.append(client.post("/v1/completions", json=BODY, headers=KEY))
    for stream in (False, True):
        assert client.post("/v1/completions", json={**BODY, "stream": stream}, headers=KEY).status_code == 200
        error = inner.pop().json()["error"]
        assert error["code"] == "too_many_requests" and "--max-running-per-key" in error["message"]
    handlers.logprob = math.nan  # a request that fails makes room, too
    assert client.post("/v1/completions", json={**BODY, "logprobs": 1}, headers=KEY).status_code == 400
    handlers.meanwhile = None
    handlers.logprob = -1.0
    assert client.post("/v1/completions", json=BODY, headers=KEY).status_code == 200


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_logprobs_that_are_no_numbers_are_refused_with_the_reason_and_the_next_request_is_answered(
    app_of, handlers, number
):
    client = app_of()
    handlers.logprob = number
    response = client.post("/v1/completions", json={**BODY, "logprobs": 1})
    error = response.json()["error"]
    assert (response.status_code, error["param"]) == (400, "logprobs") and "no finite numbers" in error["message"]
    handlers.logprob = -1.0
    assert client.post("/v1/completions", json=BODY).json() == {"logprob": -1.0, "forget_sets": []}


def test_a_wish_in_the_wrong_place_is_refused_by_the_routes_that_generate(app_of):
    client = app_of()
    for path in ("/v1/completions", "/v1/chat/completions"):
        for body, more in [
            ({"extra_body": {"forget_sets": ["anna"]}}, ""),
            ({"forget_set": "anna"}, ""),
            ({}, "?forget_sets=anna"),
            ({"messages": [{"role": "user", "content": [{"type": "text", "text": "a", "forget_sets": ["anna"]}]}]}, ""),
        ]:
            response = client.post(path + more, json={**BODY, "messages": [], **body})
            assert (response.status_code, response.json()["error"]["param"]) == (400, "forget_sets")


@pytest.mark.parametrize("method, path", [("GET", "resp_1"), ("DELETE", "resp_1"), ("POST", "resp_1/cancel"),
                                          ("GET", "resp_1/input_items"), ("POST", "compact")])  # fmt: skip
def test_no_response_is_kept_and_what_would_read_one_says_so(app_of, method, path):
    response = app_of().request(method, f"/v1/responses/{path}")
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["type"]) == (404, "not_found", "invalid_request_error")
    assert f"/v1/responses/{path} is not there: no response is kept here" in error["message"]


# Browsers


def preflight(client, origin=ORIGIN, method="POST", path="/v1/completions"):
    headers = {"origin": origin, "access-control-request-method": method}
    headers |= {"access-control-request-headers": "authorization,content-type"}
    return client.options(path, headers=headers)


def test_without_allowed_origins_no_browser_is_told_anything(app_of):
    client = app_of()
    assert preflight(client).status_code == 405
    response = client.post("/v1/completions", json=BODY, headers={"origin": ORIGIN})
    assert response.status_code == 200
    assert not [name for name in response.headers if name.startswith("access-control")]


@pytest.mark.parametrize(
    "path, method", [("/v1/completions", "POST"), ("/v1/models", "GET"), ("/v1/forget_sets", "GET")]
)
def test_a_preflight_of_an_allowed_origin_needs_no_key_and_allows_one_to_be_sent(app_of, path, method):
    client = app_of(keys=True, allowed_origins=[ORIGIN])
    response = preflight(client, path=path, method=method)
    assert response.status_code == 200
    assert response.headers["access-control-allow-origin"] == ORIGIN
    assert method in response.headers["access-control-allow-methods"]
    assert {"authorization", "content-type"} <= {
        name.strip().lower() for name in response.headers["access-control-allow-headers"].split(",")
    }
    assert "access-control-allow-credentials" not in response.headers


def test_a_page_may_read_answers_refusals_and_what_was_in_force(app_of):
    client = app_of(keys=True, allowed_origins=[ORIGIN])
    for headers, status in [(KEY, 200), ({}, 401), ({"authorization": "Bearer other"}, 401)]:
        for body in (BODY, {**BODY, "stream": True}):
            response = client.post("/v1/completions", json=body, headers={"origin": ORIGIN, **headers})
            assert response.status_code == status
            assert response.headers["access-control-allow-origin"] == ORIGIN
            assert "x-forget-sets" in response.headers["access-control-expose-headers"]
            assert "origin" in response.headers["vary"].lower()


def test_a_page_may_read_that_a_request_failed(app_of, handlers):
    def fail():
        raise RuntimeError("nobody expected this")

    handlers.meanwhile = fail
    client = app_of(allowed_origins=[ORIGIN])
    client = TestClient(client.app, raise_server_exceptions=False)
    response = client.post("/v1/completions", json=BODY, headers={"origin": ORIGIN})
    assert (response.status_code, response.json()["error"]["type"]) == (500, "internal_error")
    assert response.headers["access-control-allow-origin"] == ORIGIN


def test_another_origin_is_allowed_nothing(app_of):
    client = app_of(allowed_origins=[ORIGIN])
    for origin in ("https://evil.example", "http://chat.example.org", "https://chat.example.org.evil.example", "null"):
        assert "access-control-allow-origin" not in preflight(client, origin).headers
        response = client.post("/v1/completions", json=BODY, headers={"origin": origin})
        assert "access-control-allow-origin" not in response.headers


def test_every_origin_may_be_allowed(app_of):
    client = app_of(allowed_origins=["*"])
    assert preflight(client, "https://any.example").headers["access-control-allow-origin"] == "*"


def test_a_request_beyond_a_bound_is_a_400_before_it_is_anything_else(app_of):
    body = {"model": "tiny", "prompt": ["a", "b", "c"], "n": 3}
    response = app_of().post("/v1/completions", json=body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["param"], error["message"]) == (
        "n",
        "n has 9 sequences (prompts times n), this server takes at most 8 (--max-sequences)",
    )
