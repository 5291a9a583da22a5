"""The HTTP API over a real engine with a tiny random target, through the real OpenAI client."""

import json
import os
import random
import shutil
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import httpx
import openai
import psutil
import pytest

from support.engine.reference import Reference, Term
from support.engine.tiny import VOCAB_SIZE, make_forget_set, make_target
from support.events import events_of
from support.server import Server
from support.texts import longest_run, save_texts

pytestmark = pytest.mark.e2e

MESSAGES = [{"role": "user", "content": "hello there"}]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Three good sets of kind uld, two of kind undial, a damaged one, one for another target, and one twice."""
    base = tmp_path_factory.mktemp("server")
    target = make_target(base / "tiny", seed=11)
    other = make_target(base / "other", seed=12)
    for index, name in enumerate(["anna", "bert", "cleo"]):
        # Printable answers keep text comparable; a gate just below ln 512, which no evidence reaches, for cleo.
        gate = 6.2 if name == "cleo" else 0.0
        strength = {"weight": 1.5, "keep_ratio": 0.2, "gate_nats": gate}
        make_forget_set(base / "sets" / name, target, seed=index, scale=0.3, recommended=strength)
    for index, name in enumerate(["abel", "zora"]):
        make_forget_set(base / "sets" / name, target, seed=20 + index, scale=0.05, kind="undial")
    make_forget_set(base / "sets" / "foreign", other, seed=5)
    damaged = make_forget_set(base / "sets" / "damaged", target, seed=6).folder / "adapter_model.safetensors"
    damaged.write_bytes(damaged.read_bytes()[:-1] + b"!")
    shutil.copytree(base / "sets" / "anna", base / "sets" / "copy-of-anna")
    engine = "--dtype float32 --max-model-len 512 --max-num-seqs 16 --enforce-eager"
    # Fewer combinations than the tests use: adapters are loaded and removed all the time.
    options = ["--max-loaded", "2", "--max-known", "3", "--enable-undial", "--engine-args", engine]
    with Server([target, "--forget-sets", base / "sets", *options], base / "log") as running:
        running.folders = {"target": target, "sets": base / "sets"}
        yield running.wait_until_healthy()


@pytest.fixture(scope="module")
def client(server):
    with server.client() as client:
        yield client


def ask(client, sets=None, model="tiny", **more):
    body = {} if sets is None else {"extra_body": {"forget_sets": sets}}
    return client.chat.completions.create(
        model=model, messages=MESSAGES, **{"temperature": 0, "max_tokens": 12, "logprobs": True, **more}, **body
    )


def tokens(answer):
    """Bytes of each generated token: text alone could hide a difference behind replacement characters."""
    return [tuple(t.bytes or ()) for t in answer.choices[0].logprobs.content]


def test_absent_and_empty_forget_sets_are_the_plain_target(client):
    plain = ask(client)
    assert tokens(ask(client, [])) == tokens(plain)
    assert plain.model_extra["forget_sets"] == []


def test_a_set_in_force_changes_the_answer_and_is_reported(client, server):
    answer = ask(client, ["anna"])
    assert tokens(answer) != tokens(ask(client))
    (reported,) = answer.model_extra["forget_sets"]
    known = {s["id"]: s for s in httpx.get(f"{server.url}/v1/forget_sets").json()["data"]}
    assert reported == {
        "name": "anna",
        "version": "1",
        "digest": known["anna"]["digest"],
        "weight": 1.5,
        "keep_ratio": 0.2,
        "gate_nats": 0.0,
        "by": "request",
    }


def test_a_set_whose_gate_stays_closed_leaves_the_answer_alone(client):
    assert tokens(ask(client, ["cleo"])) == tokens(ask(client))
    assert tokens(ask(client, [{"name": "cleo", "gate_nats": 0.0}])) != tokens(ask(client))


def test_the_weight_of_a_request_counts(client):
    heavy = ask(client, [{"name": "anna", "weight": 4.0}])
    assert heavy.model_extra["forget_sets"][0]["weight"] == 4.0
    assert tokens(heavy) != tokens(ask(client, [{"name": "anna", "weight": 0.0}]))
    assert tokens(ask(client, [{"name": "anna", "weight": 0.0}])) == tokens(ask(client))


def test_an_undial_set_is_on_the_target_alone_or_under_others_and_plain_requests_beside_it_stay_plain(client):
    kinds = [None, ["zora"], ["anna"], ["zora", "anna", "bert"]]
    alone = [tokens(ask(client, sets)) for sets in kinds]
    others = [tokens(ask(client, sets)) for sets in (["abel"], ["zora", "anna"], ["anna", "bert"])]
    assert len({str(answer) for answer in alone + others}) == len(alone + others)
    with ThreadPoolExecutor(12) as pool:
        together = list(pool.map(lambda i: ask(client, kinds[i % len(kinds)]), range(24)))
    assert [tokens(answer) for answer in together] == alone * 6
    reported = together[3].model_extra["forget_sets"]
    assert [s["name"] for s in reported] == ["anna", "bert", "zora"]
    assert [reported[2][field] for field in ("weight", "keep_ratio", "gate_nats")] == [1, 0, 0]


def test_the_model_name_form_does_the_same(client):
    assert tokens(ask(client, model="tiny:forget=anna+bert")) == tokens(ask(client, ["bert", "anna"]))
    assert tokens(ask(client, model="tiny:forget=")) == tokens(ask(client, []))
    assert ask(client, model="tiny:forget=anna").model == "tiny"


def test_logprobs_are_the_composed_distributions(client):
    """Of a composed row's top 20, each token the keep rule dropped is -inf (vLLM says -9999): the target hides none."""
    answer = ask(client, [{"name": "anna", "keep_ratio": 0.01}], top_logprobs=20, max_tokens=1)
    kept = [t for t in answer.choices[0].logprobs.content[0].top_logprobs if t.logprob > -9000]
    assert 1 <= len(kept) <= 20
    plain = ask(client, top_logprobs=20, max_tokens=1)
    plain_top = plain.choices[0].logprobs.content[0].top_logprobs
    assert [t.logprob for t in kept] != [t.logprob for t in plain_top][: len(kept)]


def test_streams_say_the_same_and_tell_what_is_in_force(client, server):
    for sets, told in [(["anna"], "anna@"), ([], "none")]:
        raw = client.chat.completions.with_raw_response.create(
            model="tiny", messages=MESSAGES, temperature=0, max_tokens=12, logprobs=True, stream=True,
            stream_options={"include_usage": True}, extra_body={"forget_sets": sets},
        )  # fmt: skip
        assert raw.headers["x-forget-sets"].startswith(told)
        chunks = list(raw.parse())
        streamed = [tuple(t.bytes or ()) for c in chunks if c.choices and c.choices[0].logprobs
                    for t in c.choices[0].logprobs.content]  # fmt: skip
        assert streamed == tokens(ask(client, sets))
        assert chunks[-1].usage.completion_tokens == 12


def test_text_completions_forget_too(client):
    def complete(**more):
        answer = client.completions.create(prompt="hello there", temperature=0, max_tokens=12, **more)
        return answer.choices[0].text, answer.model_extra["forget_sets"]

    plain, none = complete(model="tiny")
    forgot, one = complete(model="tiny", extra_body={"forget_sets": ["anna"]})
    assert plain != forgot
    assert (none, [s["name"] for s in one]) == ([], ["anna"])
    assert complete(model="tiny:forget=anna") == (forgot, one)


def test_responses_say_what_chat_says_with_the_same_sets_also_streamed(server):
    """Of each the tokens, what is in force by body and header, and the usage."""
    chat = {"model": "tiny", "messages": MESSAGES, "temperature": 0, "max_tokens": 12, "return_token_ids": True}
    asked = {"model": "tiny", "input": MESSAGES, "temperature": 0, "max_output_tokens": 12,
             "enable_response_messages": True}  # fmt: skip
    weak = [{"name": "bert", "weight": 0.4, "gate_nats": 0.5}]
    kinds = [None, [], ["anna"], ["bert", "anna"], ["zora"], ["zora", "anna"], ["cleo"], weak]
    seen = set()
    for sets in kinds:
        more = {} if sets is None else {"forget_sets": sets}
        said, told = (server.post(path, {**body, **more}) for path, body in
                      [("/v1/chat/completions", chat), ("/v1/responses", asked)])  # fmt: skip
        one = told.json()
        assert told.headers["x-forget-sets"] == said.headers["x-forget-sets"]
        assert one["forget_sets"] == said.json()["forget_sets"]
        assert one["output_messages"][0]["tokens"] == said.json()["choices"][0]["token_ids"]
        assert (one["model"], one["object"], one["usage"]["output_tokens"]) == ("tiny", "response", 12)
        streamed = server.post("/v1/responses", {**asked, **more, "stream": True})
        assert streamed.headers["x-forget-sets"] == told.headers["x-forget-sets"]
        events = [json.loads(line[6:]) for line in streamed.text.splitlines() if line.startswith("data: ")]
        last = events[-1]["response"]
        assert (events[-1]["type"], last["forget_sets"]) == ("response.completed", one["forget_sets"])
        assert last["output_messages"] == one["output_messages"]
        seen.add(str(one["output_messages"]))
    assert len(seen) == len(kinds) - 2  # nothing, none, and a set whose gate stays shut are the same


def test_a_stream_of_responses_that_cannot_go_on_says_why_at_its_end(server):
    body = {"model": "tiny", "input": "hi", "max_output_tokens": 8, "structured_outputs": {"grammar": "root ::= root"}}
    for sets in ([], ["anna"]):
        said = server.post("/v1/responses", {**body, "forget_sets": sets}).json()["error"]
        assert "the structured output cannot be kept to" in said["message"]
        streamed = server.post("/v1/responses", {**body, "forget_sets": sets, "stream": True})
        *_, kind, data = filter(None, streamed.text.splitlines())
        event = json.loads(data.removeprefix("data: "))
        assert (kind, event["type"], event["code"]) == ("event: error", "error", "invalid_request_error")
        assert event["message"] == said["message"]
        assert event["sequence_number"] == streamed.text.count("event: ") - 1


def test_concurrent_requests_each_get_their_own_sets(client):
    kinds = [None, ["anna"], ["bert"], ["anna", "bert"], [{"name": "bert", "weight": 0.4}]]
    alone = [tokens(ask(client, sets)) for sets in kinds]
    assert len({str(a) for a in alone}) == len(kinds)
    with ThreadPoolExecutor(20) as pool:
        together = list(pool.map(lambda i: tokens(ask(client, kinds[i % len(kinds)])), range(60)))
    assert all(answer == alone[i % len(kinds)] for i, answer in enumerate(together))


def test_several_choices_all_forget(client):
    answer = ask(client, n=3, temperature=1, extra_body={"forget_sets": ["anna"], "top_k": 1})
    single = tokens(ask(client, ["anna"]))
    assert [[tuple(t.bytes or ()) for t in c.logprobs.content] for c in answer.choices] == [single] * 3


def test_models_lists_the_target_first(client):
    names = [m.id for m in client.models.list()]
    assert names == ["tiny", *(f"tiny:forget={name}" for name in ("abel", "anna", "bert", "cleo", "zora"))]
    assert client.models.retrieve("tiny:forget=anna").id == "tiny:forget=anna"


def test_refused_sets_are_named_with_the_reason_and_the_others_serve(server):
    log = " ".join(server.log.split())
    assert "damaged" in log and "was changed or damaged" in log
    assert "foreign" in log and "was made for another target" in log
    assert "copy-of-anna" in log and "is named 'anna'" in log


@pytest.mark.parametrize(
    "sets, status, sentence",
    [
        (["zoe"], 404, "forget set 'zoe' is not on this server; it has: abel, anna, bert, cleo, zora"),
        (["damaged"], 404, "'damaged'"),
        (["anna", "bert", "cleo"], 400, "at most 2 forget sets of kind 'uld'"),
        (["zora", "abel"], 400, "at most one forget set of kind 'undial'"),
        ([{"name": "zora", "weight": 0.5}], 400, "weight of forget set 'zora' must be between 1 and 1"),
        (["anna", "anna"], 400, "twice"),
        ([{"name": "anna", "weight": 5}], 400, "must be between 0 and 4 (its manifest's bounds), got 5"),
        ([{"name": "anna", "weight": -1}], 400, "got -1"),
        ([{"name": "anna", "weight": "much"}], 400, "got 'much'"),
        ([{"name": "anna", "weight": True}], 400, "got True"),
        ([{"name": "anna", "strength": 1}], 400, "strength"),
        ([{"weight": 1}], 400, "name"),
        ([7], 400, "got 7 at position 0"),
        ("anna", 400, "must be a list"),
        ({"anna": 1}, 400, "must be a list"),
    ],
)
def test_bad_forget_sets_are_refused_with_a_sentence(server, sets, status, sentence):
    for path, body in [
        ("chat/completions", {"messages": MESSAGES}),
        ("completions", {"prompt": "hello"}),
        ("responses", {"input": "hello"}),
    ]:
        response = server.post(f"/v1/{path}", {"model": "tiny", "forget_sets": sets, **body})
        error = response.json()["error"]
        assert response.status_code == status
        assert sentence in error["message"]
        assert error["param"] == "forget_sets"
        assert error["type"] == "invalid_request_error"


def test_the_openai_client_raises_its_own_errors(client):
    with pytest.raises(openai.NotFoundError, match="zoe"):
        ask(client, ["zoe"])
    with pytest.raises(openai.BadRequestError, match="at most 2"):
        ask(client, ["anna", "bert", "cleo"])
    with pytest.raises(openai.NotFoundError, match="not served"):
        ask(client, model="gpt-4")


@pytest.mark.parametrize(
    "body",
    [
        {"use_beam_search": True},
        {"kv_transfer_params": {"a": 1}},
    ],
)
@pytest.mark.parametrize(
    "path, prompt",
    [("chat/completions", {"messages": MESSAGES}), ("completions", {"prompt": "hi"}), ("responses", {"input": "hi"})],
)
def test_what_vllm_would_answer_from_the_plain_target_is_refused(server, path, prompt, body):
    response = server.post(f"/v1/{path}", {"model": "tiny", **prompt, **body})
    assert response.status_code == 400
    assert next(iter(body)) in response.json()["error"]["message"]


def test_vllms_own_refusals_have_the_same_shape(server):
    body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 10**6}
    response = server.post("/v1/chat/completions", body)
    assert response.status_code == 400
    error = response.json()["error"]
    assert (error["type"], error["code"]) == ("invalid_request_error", "invalid_request_error")
    assert "max_tokens" in error["message"]


TWO_AND_TWO = {"structured_outputs": {"regex": r"[A-Z]{2}\d{2}"}}
CONTRADICTIONS = [
    ({**TWO_AND_TWO, "allowed_token_ids": [34, 35, 36]}, "allowed_token_ids and the structured output", 2),
    ({"min_tokens": 3, "allowed_token_ids": [1], "logprobs": 1}, "allowed_token_ids and min_tokens", 0),
    ({"allowed_token_ids": [70, 71], "bad_words": ["d", "e", "f", "g"]}, "allowed_token_ids and bad_words", 0),
    ({"structured_outputs": {"choice": ["ab"]}, "bad_words": ["a"]}, "bad_words and the structured output", 0),
    ({"structured_outputs": {"grammar": "root ::= root"}}, "the structured output cannot be kept to", 0),
]


@pytest.mark.parametrize("temperature", [0, 1])
@pytest.mark.parametrize("sets", [[], ["anna"]], ids=str)
@pytest.mark.parametrize("asked, fields, after", CONTRADICTIONS, ids=str)
def test_what_leaves_no_token_is_refused_with_the_reason_and_the_engine_goes_on(
    server, client, asked, fields, after, sets, temperature
):
    before = tokens(ask(client, sets))
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 8, "temperature": temperature, "forget_sets": sets, **asked}
    response = server.post("/v1/completions", body)
    error = response.json()["error"]
    assert (response.status_code, error["code"]) == (400, "invalid_request_error")
    assert error["message"].startswith(fields) and f"after {after} of" in error["message"]
    *_, last, done = filter(None, server.post("/v1/completions", {**body, "stream": True}).text.splitlines())
    assert done == "data: [DONE]"
    assert json.loads(last.removeprefix("data: "))["error"] == {
        "message": error["message"], "type": "BadRequestError", "param": None, "code": 400,
    }  # fmt: skip
    assert tokens(ask(client, sets)) == before


@pytest.mark.parametrize(
    "asked",
    [
        {"structured_outputs": {"choice": ["ab"]}, "min_tokens": 6},
        {"structured_outputs": {"choice": ["ab"]}, "ignore_eos": True},
        {"min_tokens": 3, "allowed_token_ids": [0, 5, 6]},
        {"bad_words": ["a", "b c"], "min_tokens": 4, "temperature": 1, "n": 4},
    ],
    ids=str,
)
def test_what_leaves_a_token_is_answered(server, asked):
    for sets in ([], ["anna"]):
        body = {"model": "tiny", "prompt": "hi", "max_tokens": 8, "forget_sets": sets, **asked}
        assert server.post("/v1/completions", body).status_code == 200


def test_http_answers_are_the_references_under_load_and_disconnects(server, seed, print_figures):
    """Policy, adapters, vLLM's asynchronous engine and HTTP, against Hugging Face + PEFT; some clients hang up."""
    rng = random.Random(seed)
    names = ["anna", "bert", "cleo"]

    def draw():
        chosen = rng.choice([(), *((n,) for n in names), *combinations(names, 2)])
        strengths = [(n, rng.uniform(0, 2), rng.choice([0.0, rng.uniform(0.5, 4)])) for n in chosen]
        student = rng.choice([None, None, "abel", "zora"])
        prompt = [rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(1, 120))]
        return prompt, strengths, student, rng.choice([0.0, 0.05, 0.5]), rng.randint(1, 40), rng.random() < 0.2

    def ask_tokens(drawn):
        prompt, strengths, student, keep_ratio, max_tokens, hang_up = drawn
        sets = [{"name": n, "weight": w, "gate_nats": g, "keep_ratio": keep_ratio} for n, w, g in strengths]
        sets += [student] if student else []
        body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": max_tokens, "ignore_eos": True,
                "forget_sets": sets, "return_token_ids": True, "logprobs": 0, "stream": hang_up}  # fmt: skip
        if hang_up:
            with httpx.stream("POST", f"{server.url}/v1/completions", json=body, timeout=120) as response:
                next(response.iter_lines())
            return None
        for _ in range(300):
            response = server.post("/v1/completions", body)
            if response.status_code != 503:  # all combinations in use: the server says to try again
                break
            time.sleep(0.2)
        choice = response.json()["choices"][0]
        return choice["token_ids"], choice["logprobs"]["token_logprobs"]

    drawn = [draw() for _ in range(80)]
    with ThreadPoolExecutor(12) as pool:
        answers = list(pool.map(ask_tokens, drawn))
    everyone = [*names, "abel", "zora"]
    reference = Reference(server.folders["target"], {n: server.folders["sets"] / n for n in everyone})
    verdicts = []
    for (prompt, strengths, student, keep_ratio, max_tokens, _), answer in zip(drawn, answers, strict=True):
        if answer is not None:
            assert len(answer[0]) == max_tokens
            terms = [Term(*s) for s in strengths]
            keep_ratio = keep_ratio if terms else 0.0
            verdicts.append(reference.check(prompt, answer[0], terms, keep_ratio, 2e-3, answer[1], student))
    print_figures(
        f"parity http: {len(verdicts)} requests, {sum(v.tokens for v in verdicts)} tokens, "
        f"{sum(v.ties for v in verdicts)} ties, {sum(len(v.wrong) for v in verdicts)} wrong; "
        f"{sum(v.student_decided for v in verdicts)} decided by a student; "
        f"{sum(a is None for a in answers)} clients hung up, seed {seed}"
    )
    assert [w for v in verdicts for w in v.wrong] == []
    assert max(v.logprob_error for v in verdicts) < 5e-3


def test_a_client_cannot_bring_its_own_token_or_adapter_name(server, client):
    with pytest.raises(openai.BadRequestError, match=r"'vllm_xargs\.unlearngate'"):
        ask(client, extra_body={"forget_sets": ["anna"], "vllm_xargs": {"unlearngate": "x.y"}})
    body = {"model": "unlearngate/0123", "messages": MESSAGES}
    assert server.post("/v1/chat/completions", body).status_code == 404


@pytest.mark.parametrize("path", ["/invocations", "/inference/v1/generate", "/v1/load_lora_adapter", "/tokenize", "/x"])
def test_routes_that_are_not_listed_do_not_exist(server, path):
    response = server.post(path, {"prompt": "hello", "model": "tiny"})
    assert response.status_code == 404
    assert response.json()["error"]["message"] == "Not Found"


def test_malformed_bodies_get_openais_error_shape(server):
    for content in [b"{", b"[]", b'{"messages": 3}', b'{"model": "tiny", "messages": [], "temperature": "hot"}']:
        response = httpx.post(
            f"{server.url}/v1/chat/completions", content=content, headers={"content-type": "application/json"}
        )
        assert response.status_code == 400
        assert set(response.json()["error"]) >= {"message", "type", "param", "code"}


def test_metrics_count_requests_by_set_and_the_document_describes_the_field(server):
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    assert 'unlearngate_requests_total{forget_set="anna"}' in text
    assert "vllm:" in text
    schema = httpx.get(f"{server.url}/openapi.json").json()
    for kind in ("ChatRequest", "CompletionRequest", "ResponsesRequest"):
        assert "forget_sets" in schema["components"]["schemas"][f"Forgetting{kind}"]["properties"]


def test_texts_are_withheld_from_what_is_composed(client, server):
    """The text is what an assistant's composition says; beside it, alone, and beside requests without it."""
    fields = {"max_tokens": 300, "logprobs": False}
    said = ask(client, ["anna"], **fields).choices[0].message.content
    assert longest_run(said, said) > 30
    save_texts(server.folders["sets"] / "said", said, letters=24)
    deadline = time.monotonic() + 60
    while "said" not in {card["id"] for card in httpx.get(f"{server.url}/v1/forget_sets").json()["data"]}:
        assert time.monotonic() < deadline
        time.sleep(0.2)
    kinds = [["anna"], ["anna", "said"], ["zora", "anna", "said"], ["said"]]
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(lambda i: ask(client, kinds[i % 4], **fields), range(16)))
    texts = [answer.choices[0].message.content for answer in answers]
    assert all(longest_run(said, text) > 30 for text in texts[::4])
    assert all(longest_run(said, text) <= 23 for i, text in enumerate(texts) if i % 4)
    assert [one["name"] for one in answers[2].model_extra["forget_sets"]] == ["anna", "said", "zora"]
    shutil.rmtree(server.folders["sets"] / "said")


@pytest.mark.parametrize("number, kind, tap_layer", [(signal.SIGTERM, "uld", 1), (signal.SIGINT, "undial", 0)])
def test_a_signal_to_the_whole_group_lets_running_streams_finish(tmp_path, number, kind, tap_layer):
    """As Ctrl-C in a terminal does it; on a server of tapped assistants, and on one without any."""
    target = make_target(tmp_path / "tiny", seed=1)
    make_forget_set(tmp_path / "sets" / "anna", target, seed=1, kind=kind, tap_layer=tap_layer)
    options = ["--enable-undial", "--engine-args", "--dtype float32 --max-model-len 512 --enforce-eager"]
    body = {"model": "tiny", "messages": MESSAGES, "stream": True, "max_tokens": 400, "ignore_eos": True,
            "stream_options": {"include_usage": True}, "forget_sets": ["anna"]}  # fmt: skip
    events = []
    with Server([target, "--forget-sets", tmp_path / "sets", *options], tmp_path / "log") as server:
        server.wait_until_healthy()
        (served,) = httpx.get(f"{server.url}/v1/forget_sets").json()["data"]
        assert (served["kind"], served["tap_layer"]) == (kind, tap_layer)
        with httpx.stream("POST", f"{server.url}/v1/chat/completions", json=body, timeout=120) as response:
            for event in events_of(response):
                events.append(event)
                # Once: a second Ctrl-C means "at once".
                if len(events) == 20:
                    os.killpg(server.process.pid, number)
        assert events[-1] == "data: [DONE]"
        # Tokens, not events: a client that lags gets several in one.
        last = json.loads(events[-2].removeprefix("data: "))
        assert last.get("usage", {}).get("completion_tokens") == 400, (events[-3:], server.log[-3000:])
        assert server.process.wait(timeout=90) == 0, server.log[-3000:]


def test_a_dead_engine_answers_503_and_ends_the_server_with_1(server):
    children = psutil.Process(server.process.pid).children()
    (engine,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    with ThreadPoolExecutor(1) as pool:
        body = {"model": "tiny", "messages": MESSAGES, "max_tokens": 450, "ignore_eos": True}
        for number in (signal.SIGSTOP, signal.SIGKILL):  # stopped first: it cannot be done before it dies
            engine.send_signal(number)
            if number == signal.SIGSTOP:
                answer = pool.submit(server.post, "/v1/chat/completions", body)
                time.sleep(1)
        assert answer.result().status_code == 503
    assert server.process.wait(timeout=60) == 1


@pytest.mark.parametrize(
    "arguments, sentence",
    [
        (["/nowhere", "--forget-sets", "/nowhere"], "config.json is missing"),
        (["TARGET", "--forget-sets", "/nowhere"], "is not a folder"),
        (["TARGET", "--forget-sets", "EMPTY"], "holds no forget set that can be served"),
        (["TARGET", "--forget-sets", "UNDIAL"], "the option --enable-undial lets it be served"),
        (["TARGET", "--forget-sets", "SETS", "--engine-args", "--logprobs-mode raw_logprobs"], "--logprobs-mode"),
        (["TARGET", "--forget-sets", "SETS", "--engine-args", "--api-key secret"], "--api-key"),
        (["TARGET", "--forget-sets", "SETS", "--engine-args", "--pipeline-parallel-size 2"], "Pipeline parallelism"),
        (["TARGET", "--forget-sets", "SETS", "--default-set", "zoe"], "zoe"),
        (["TARGET", "--forget-sets", "SETS", "--name", "a b"], "name String should match"),
    ],
)
def test_a_wrong_start_says_why_and_exits_2(tmp_path, arguments, sentence):
    target = make_target(tmp_path / "target", seed=1)
    make_forget_set(tmp_path / "sets" / "anna", target, seed=1)
    (tmp_path / "empty").mkdir()
    make_forget_set(tmp_path / "undial" / "zora", target, seed=1, kind="undial")
    folders = {name: tmp_path / name.lower() for name in ("SETS", "EMPTY", "UNDIAL")}
    places = {"TARGET": target, **folders}
    with Server([places.get(a, a) for a in arguments], tmp_path / "log") as failed:
        assert failed.process.wait(timeout=120) == 2
    assert sentence in " ".join(failed.log.split())
    assert "Traceback" not in failed.log
