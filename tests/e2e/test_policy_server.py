"""Required sets, API keys and a gateway on a running server, through the real OpenAI client."""

import secrets
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from typer.testing import CliRunner

from support.engine.tiny import make_forget_set, make_target
from support.server import Server
from unlearngate.cli import app

pytestmark = pytest.mark.e2e

MESSAGES = [{"role": "user", "content": "hello there"}]
ENGINE = ["--engine-args", "--dtype float32 --max-model-len 512 --max-num-seqs 16 --enforce-eager"]
GATEWAY = secrets.token_hex(32)


def keys(*words) -> str:
    result = CliRunner().invoke(app, ["keys", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """anna is required for everybody, bert for acme, cleo and dora are globex's to name; root sees them all.

    Logprobs, by which answers are compared here, are allowed to all but initech.
    """
    base = tmp_path_factory.mktemp("policy-server")
    target = make_target(base / "tiny", seed=11)
    for index, name in enumerate(["anna", "bert", "cleo", "dora"]):
        strength = {"weight": 1.0, "keep_ratio": 0.2, "gate_nats": 0.0}
        make_forget_set(base / "sets" / name, target, seed=index, scale=0.3, recommended=strength)
    file = base / "keys.json"
    (base / "secret").write_text(GATEWAY)
    made = {
        "acme": keys("add", file, "--id", "acme", "--tenant", "acme", "--require", "bert", "--allow", "dora"),
        "globex": keys("add", file, "--id", "globex", "--tenant", "globex", "--default-set", "cleo", "--allow", "dora"),
        "root": keys("add", file, "--id", "root", "--tenant", "ops", "--admin"),
        "initech": keys("add", file, "--id", "initech", "--tenant", "initech", "--logprobs", "none"),
    }
    options = ["--required-set", "anna", "--logprobs", "full", "--keys", file, "--gateway-secret-file", base / "secret"]
    options += ["--max-sets-per-request", "3", *ENGINE]
    with Server([target, "--forget-sets", base / "sets", *options], base / "log") as running:
        running.keys_file, running.made = file, made
        yield running.wait_until_healthy()


def client_of(server, tenant, **headers):
    key = server.made.get(tenant, tenant)
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=key, max_retries=0, timeout=120, default_headers=headers)


def ask(client, sets=None, model="tiny"):
    body = {} if sets is None else {"extra_body": {"forget_sets": sets}}
    return client.chat.completions.create(
        model=model, messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, **body
    )


def tokens(answer):
    return [tuple(t.bytes or ()) for t in answer.choices[0].logprobs.content]


def by(answer):
    return {s["name"]: s["by"] for s in answer.model_extra["forget_sets"]}


def test_each_key_gets_its_sets_whatever_it_says_and_what_is_reported_is_what_runs(server):
    cases = [
        ("acme", None, {"anna": "server", "bert": "key"}),
        ("acme", ["dora"], {"anna": "server", "bert": "key", "dora": "request"}),
        ("acme", ["anna"], {"anna": "server", "bert": "key"}),
        ("globex", None, {"anna": "server", "cleo": "default"}),
        ("globex", ["dora"], {"anna": "server", "dora": "request"}),
        ("root", None, {"anna": "server"}),
    ]
    clients = {tenant: client_of(server, tenant) for tenant in server.made}
    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(lambda case: ask(clients[case[0]], case[1]), cases))
    assert [by(answer) for answer in answers] == [expected for _, _, expected in cases]
    # root may name every set: what it asks for by name is what the others got by policy.
    same = [ask(clients["root"], sorted(expected)) for _, _, expected in cases]
    assert [tokens(answer) for answer in answers] == [tokens(answer) for answer in same]
    assert len({str(tokens(answer)) for answer in answers}) == len({str(expected) for _, _, expected in cases})


def test_a_stream_and_a_text_completion_obey_and_tell_too(server):
    with client_of(server, "acme") as client:
        raw = client.chat.completions.with_raw_response.create(
            model="tiny", messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, stream=True
        )
        told = [part.rpartition(";by=")[2] for part in raw.headers["x-forget-sets"].split(", ")]
        choices = [chunk.choices[0] for chunk in raw.parse() if chunk.choices]
        streamed = [tuple(t.bytes or ()) for c in choices if c.logprobs for t in c.logprobs.content]
        assert (told, streamed) == (["server", "key"], tokens(ask(client)))
        text = client.completions.create(model="tiny:forget=dora", prompt="hello", temperature=0, max_tokens=4)
        assert by(text) == {"anna": "server", "bert": "key", "dora": "request"}


def test_responses_obey_a_key_and_refuse_what_would_forget_less(server):
    with client_of(server, "acme") as client, client_of(server, "initech") as other:
        fields = {"model": "tiny", "input": "hello there", "temperature": 0, "max_output_tokens": 12}
        for sets, told in [(None, {}), (["dora"], {"dora": "request"})]:
            body = {"enable_response_messages": True, "forget_sets": sets}
            answer = client.responses.create(**fields, extra_body=body)
            assert by(answer) == {"anna": "server", "bert": "key", **told}
            *_, last = client.responses.create(**fields, extra_body=body, stream=True)
            assert by(last.response) == by(answer)
            assert last.response.model_extra["output_messages"] == answer.model_extra["output_messages"]
            chat = client.chat.completions.create(
                model="tiny", messages=MESSAGES, temperature=0, max_tokens=12,
                extra_body={"return_token_ids": True, "forget_sets": sets},
            )  # fmt: skip
            assert answer.model_extra["output_messages"][0]["tokens"] == chat.choices[0].model_extra["token_ids"]
        for asked in ({"extra_body": {"forget_sets": []}}, {"model": "tiny:forget="}):
            with pytest.raises(openai.PermissionDeniedError, match="required for it: anna, bert"):
                client.responses.create(**{**fields, **asked})
        for asked in ({"include": ["message.output_text.logprobs"]}, {"top_logprobs": 3},
                      {"extra_body": {"logit_bias": {"5": 1}}}):  # fmt: skip
            with pytest.raises(openai.PermissionDeniedError, match="is not allowed in requests with a required"):
                other.responses.create(**fields, **asked)
        assert by(other.responses.create(**fields)) == {"anna": "server"}


@pytest.mark.parametrize(
    "sets, model, kind, sentence",
    [
        ([], "tiny", openai.PermissionDeniedError, "required for it: anna, bert"),
        (None, "tiny:forget=", openai.PermissionDeniedError, "required for it: anna, bert"),
        ([{"name": "bert", "weight": 0.5}], "tiny", openai.PermissionDeniedError, "must stay 1, got 0.5"),
        ([{"name": "anna", "gate_nats": 1}], "tiny", openai.PermissionDeniedError, "must be at most 0, got 1"),
        ([{"name": "dora", "keep_ratio": 0.9}], "tiny", openai.PermissionDeniedError, "must stay 0.2, got 0.9"),
        (["cleo"], "tiny", openai.NotFoundError, "it may name: anna, bert, dora"),
        (["nobody"], "tiny", openai.NotFoundError, "it may name: anna, bert, dora"),
    ],
)
def test_what_would_forget_less_is_refused_with_the_reason(server, sets, model, kind, sentence):
    with client_of(server, "acme") as client, pytest.raises(kind, match=sentence):
        ask(client, sets, model)


@pytest.mark.parametrize(
    "asked",
    [
        {"logprobs": True},
        {"logprobs": True, "top_logprobs": 5},
        {"logprobs": True, "stream": True},
        {"logit_bias": {"5": 1}},
        {"extra_body": {"allowed_token_ids": [5, 6]}},
        {"extra_body": {"bad_words": ["a"]}},
        {"extra_body": {"vllm_xargs": {"another": "x.y"}}},
    ],
    ids=str,
)
def test_a_key_without_logprobs_is_refused_whatever_measures_them(server, asked):
    with client_of(server, "initech") as client:
        with pytest.raises(openai.PermissionDeniedError, match="is not allowed in requests with a required") as refused:
            client.chat.completions.create(model="tiny", messages=MESSAGES, max_tokens=2, **asked)
        assert refused.value.code == "required_forget_set"
        with pytest.raises(openai.PermissionDeniedError, match="logprobs is not allowed"):
            client.completions.create(model="tiny", prompt="hello", max_tokens=2, logprobs=0)
        answer = client.chat.completions.create(model="tiny", messages=MESSAGES, temperature=0, max_tokens=12)
        assert by(answer) == {"anna": "server"} and answer.choices[0].logprobs is None


def test_a_key_is_told_only_of_what_it_may_name(server):
    def listed(tenant):
        with client_of(server, tenant) as client:
            models = [m.id.removeprefix("tiny:forget=") for m in client.models.list()]
            cards = client.get("/forget_sets", cast_to=httpx.Response).json()["data"]
        assert models == ["tiny", *(card["id"] for card in cards)]
        return {card["id"]: (card["required"], card["default"]) for card in cards}

    assert listed("acme") == {"anna": (True, False), "bert": (True, False), "dora": (False, False)}
    assert listed("globex") == {"anna": (True, False), "cleo": (False, True), "dora": (False, False)}
    assert list(listed("root")) == ["anna", "bert", "cleo", "dora"]
    with client_of(server, "acme") as client, pytest.raises(openai.NotFoundError):
        client.models.retrieve("tiny:forget=cleo")


def test_without_a_key_nothing_but_health_and_the_documentation_answers(server):
    with client_of(server, "wrong") as client, pytest.raises(openai.AuthenticationError) as refused:
        ask(client)
    assert (refused.value.code, refused.value.type) == ("invalid_api_key", "invalid_request_error")
    for path in ("/v1/models", "/v1/forget_sets", "/metrics", "/v1/chat/completions", "/v1/responses/1", "/nothing"):
        assert httpx.get(f"{server.url}{path}").status_code == 401
    assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
    assert httpx.get(f"{server.url}/openapi.json").status_code == 200
    for tenant, status in (("acme", 403), ("root", 200)):
        bearer = {"authorization": f"Bearer {server.made[tenant]}"}
        assert httpx.get(f"{server.url}/metrics", headers=bearer).status_code == status


def test_only_the_gateway_can_require_more(server):
    required = {"x-unlearngate-required": "cleo"}
    with client_of(server, "globex", **required) as client, pytest.raises(openai.PermissionDeniedError) as refused:
        ask(client)
    assert refused.value.code == "gateway_only"
    proven = {**required, "x-unlearngate-gateway": GATEWAY, "x-unlearngate-tenant": "globex"}
    with client_of(server, "globex", **proven) as client:
        assert by(ask(client, ["dora"])) == {"anna": "server", "cleo": "gateway", "dora": "request"}
        with pytest.raises(openai.PermissionDeniedError, match="required for it: anna, cleo"):
            ask(client, [])
    missing = {**proven, "x-unlearngate-required": "nobody"}
    with client_of(server, "globex", **missing) as client, pytest.raises(openai.InternalServerError) as unavailable:
        ask(client)
    assert (unavailable.value.status_code, unavailable.value.code) == (503, "forget_set_unavailable")


def test_the_keys_file_is_followed_and_a_broken_one_lifts_nothing(server):
    file = server.keys_file
    new = keys("add", file, "--id", "later", "--tenant", "later", "--require", "dora")
    with client_of(server, new) as client:
        assert by(ask(client)) == {"anna": "server", "dora": "key"}
        good = file.read_text()
        file.write_text(good.replace('"required"', '"requird"'))
        assert by(ask(client)) == {"anna": "server", "dora": "key"}
        health = httpx.get(f"{server.url}/health")
        assert health.status_code == 200 and "the last good one is in force" in health.json()["warning"]
        assert "Extra inputs are not permitted" in " ".join(server.log.split())
        file.write_text(good)
        assert httpx.get(f"{server.url}/health").json() == {"status": "ok"}
        keys("remove", file, "later")
        with pytest.raises(openai.AuthenticationError):
            ask(client)


@pytest.mark.parametrize(
    "options, sentence",
    [
        (["--required-set", "zoe"], "forget set 'zoe' must be in force for this request (server)"),
        (["--keys", "KEYS"], "API key 'acme': forget set 'zoe' must be in force"),
        (["--keys", "BROKEN"], "is not the JSON of a keys file"),
        (["--require-gateway"], "--require-gateway needs --gateway-secret-file"),
        (["--gateway-secret-file", "BROKEN"], "at least 32 printable ASCII characters"),
    ],
)
def test_a_server_that_could_not_honour_its_policy_does_not_start(tmp_path, options, sentence):
    target = make_target(tmp_path / "target", seed=1)
    make_forget_set(tmp_path / "sets" / "anna", target, seed=1)
    keys("add", tmp_path / "KEYS", "--id", "acme", "--tenant", "acme", "--require", "zoe")
    (tmp_path / "BROKEN").write_text("{")
    options = [tmp_path / option if option.isupper() else option for option in options]
    with Server([target, "--forget-sets", tmp_path / "sets", *options], tmp_path / "log") as failed:
        assert failed.process.wait(timeout=120) == 2
    assert sentence in " ".join(failed.log.split()) and "Traceback" not in failed.log
