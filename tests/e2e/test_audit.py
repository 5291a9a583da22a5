"""The audit log and the metrics of a running server, against what its clients saw and the Hugging Face reference."""

import json
import os
import random
import signal
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import combinations

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from typer.testing import CliRunner

from support.engine.reference import Reference, Term
from support.engine.tiny import VOCAB_SIZE, make_forget_set, make_target
from support.server import Server
from unlearngate.cli import app

pytestmark = pytest.mark.e2e

NAMES = ["anna", "bert", "cleo"]
SECRET = "nobody may find this sentence in the log"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """Chunked prefill, preemption and eviction all the time; a log below FOLDER/audit."""
    base = tmp_path_factory.mktemp("audit")
    target = make_target(base / "tiny", seed=31)
    for index, name in enumerate(NAMES):
        make_forget_set(base / "sets" / name, target, seed=index, scale=0.3)
    make_forget_set(base / "sets" / "zora", target, seed=9, scale=0.05, kind="undial")
    (base / "audit").mkdir()
    engine = "--dtype float32 --max-model-len 256 --max-num-seqs 6 --enforce-eager --max-num-batched-tokens 32"
    engine += " --block-size 32 --num-gpu-blocks-override 11"
    options = ["--audit", base / "audit", "--max-known", "3", "--enable-undial", "--engine-args", engine]
    with Server([target, "--forget-sets", base / "sets", *options], base / "log") as running:
        running.folders = {"target": target, "sets": base / "sets", "audit": base / "audit"}
        yield running.wait_until_healthy()


def lines(server, request_id):
    """The request's lines, once it has ended; `show` must agree that the log is whole."""
    for _ in range(100):
        text = "".join(file.read_text() for file in server.folders["audit"].iterdir())
        found = [line for line in map(json.loads, text.splitlines()) if line.get("client_request") == request_id]
        if found and found[-1]["event"] != "admitted":
            return found
        time.sleep(0.1)
    raise AssertionError(f"no end of {request_id}: {found}")


def post(server, request_id, body, path="completions"):
    for _ in range(300):
        response = httpx.post(f"{server.url}/v1/{path}", json=body, headers={"x-request-id": request_id}, timeout=120)
        if response.status_code != 503:
            return response
        time.sleep(0.1)
    raise AssertionError(response.text)


def audit(server, *arguments):
    return CliRunner().invoke(app, ["audit", *arguments, str(server.folders["audit"])])


def figures(server):
    """All of our metrics: (name, labels) -> value."""
    text = httpx.get(f"{server.url}/metrics", timeout=60).text
    samples = [s for family in text_string_to_metric_families(text) for s in family.samples]
    return {(s.name, *s.labels.values()): s.value for s in samples if s.name.startswith("unlearngate_")}


def test_open_gates_are_those_of_the_reference(server, seed, print_figures):
    """Under load, with prompts in parts, preemption, several prompts and choices per request."""
    rng = random.Random(seed)

    def draw(number):
        chosen = rng.choice([*((n,) for n in NAMES), *combinations(NAMES, 2)])
        strengths = [
            (n, rng.choice([0.0, rng.uniform(0.1, 2)]), rng.choice([0.0, rng.uniform(0.5, 5)])) for n in chosen
        ]
        prompts = [[rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(1, 100))] for _ in range(rng.randint(1, 2))]
        return f"load-{seed}-{number}", prompts, strengths, rng.randint(1, 60), rng.choice([1, 1, 3])

    def ask(drawn):
        request_id, prompts, strengths, max_tokens, n = drawn
        sets = [{"name": s, "weight": w, "gate_nats": g, "keep_ratio": 0.05} for s, w, g in strengths]
        body = {"model": "tiny", "prompt": prompts, "max_tokens": max_tokens, "n": n, "temperature": 1,
                "forget_sets": sets, "return_token_ids": True}  # fmt: skip
        return post(server, request_id, body).json()

    drawn = [draw(number) for number in range(16)]
    before = figures(server)
    with ThreadPoolExecutor(8) as pool:
        answers = list(pool.map(ask, drawn))
    reference = Reference(server.folders["target"], {n: server.folders["sets"] / n for n in NAMES})
    tokens = opened = uncertain = 0
    for (request_id, prompts, strengths, _, n), answer in zip(drawn, answers, strict=True):
        *_, admitted, ended = lines(server, request_id)  # before them, when all adapters were in use: refused
        assert answer["id"] == admitted["request"] == ended["request"]
        assert admitted["sets"] == ended["sets"] == answer["forget_sets"]
        choices = [(prompts[c["index"] // n], c["token_ids"]) for c in answer["choices"]]
        assert ended["prompt_tokens"] == answer["usage"]["prompt_tokens"]
        assert ended["completion_tokens"] == sum(len(ids) for _, ids in choices)
        assert set(ended["open_tokens"]) == {name for name, _, _ in strengths}
        for name, weight, gate in strengths:
            low, high = (
                sum(reference.check(p, ids, [Term(name, weight, g)], 0.05, 2e-3).open_gates for p, ids in choices)
                for g in ((gate + 2e-3, gate - 2e-3) if gate else (0.0, 0.0))
            )
            assert low <= ended["open_tokens"][name] <= high, f"seed {seed}: {request_id}, {name}"
            opened, uncertain = opened + low, uncertain + high - low
            tokens += ended["completion_tokens"]
    after = figures(server)
    metrics = httpx.get(f"{server.url}/metrics", timeout=60).text
    preemptions = metrics.partition("vllm:num_preemptions_total{")[2].split("\n")[0]
    print_figures(
        f"audit: {len(drawn)} requests, {tokens} (token, set) pairs, {opened} open, {uncertain} too close to say; "
        f"preemptions {preemptions.rpartition(' ')[2]}, seed {seed}"
    )
    gained = {key: value - before.get(key, 0) for key, value in after.items()}
    assert sum(v for k, v in gained.items() if k[0] == "unlearngate_gate_tokens_total") == tokens
    assert not [k for k, v in gained.items() if "unknown" in k and v]
    assert gained["unlearngate_compose_steps_total",] > 0
    assert gained["unlearngate_compose_seconds_total",] > 0
    assert gained["unlearngate_adapter_evictions_total",] > 0


def test_every_kind_of_request_leaves_its_lines_and_none_of_its_text(server):
    chat = {"model": "tiny", "messages": [{"role": "user", "content": SECRET}], "max_tokens": 8, "ignore_eos": True}
    plain = post(server, "k-plain", chat, "chat/completions")
    admitted, ended = lines(server, "k-plain")
    assert admitted["request"] == plain.json()["id"] == "chatcmpl-k-plain"
    assert (ended["finish"], ended["status"], ended["completion_tokens"]) == ("completed", 200, 8)
    assert (ended["sets"], ended["open_tokens"], ended["route"]) == ([], {}, "/v1/chat/completions")

    post(server, "k-undial", {**chat, "forget_sets": ["zora"]}, "chat/completions")
    assert lines(server, "k-undial")[-1]["open_tokens"] == {}

    streamed = post(server, "k-stream", {**chat, "stream": True, "forget_sets": ["anna"]}, "chat/completions")
    assert streamed.text.endswith("data: [DONE]\n\n")
    assert lines(server, "k-stream")[-1]["open_tokens"] == {"anna": 8}
    assert lines(server, "k-stream")[-1]["finish"] == "completed"

    with httpx.stream(
        "POST", f"{server.url}/v1/chat/completions", headers={"x-request-id": "k-aborted"}, timeout=60,
        json={**chat, "max_tokens": 200, "n": 16, "stream": True, "forget_sets": ["anna"]},  # one is done too soon
    ) as response:  # fmt: skip
        next(response.iter_lines())
    admitted, ended = lines(server, "k-aborted")
    assert (admitted["event"], ended["event"], ended["finish"]) == ("admitted", "ended", "aborted")
    assert 1 <= ended["open_tokens"]["anna"] == ended["completion_tokens"] < 16 * 200

    with pytest.raises(httpx.ReadTimeout):
        body = {"model": "tiny", "prompt": [3] * 50, "max_tokens": 200, "ignore_eos": True, "forget_sets": ["anna"]}
        body["n"] = 16  # seconds of work
        httpx.post(f"{server.url}/v1/completions", headers={"x-request-id": "k-gone"}, json=body, timeout=0.3)
    assert (lines(server, "k-gone")[-1]["finish"], lines(server, "k-gone")[-1]["status"]) == ("aborted", None)

    asked = {"model": "tiny", "input": SECRET, "max_output_tokens": 8, "ignore_eos": True, "forget_sets": ["anna"]}
    answer = post(server, "k-response", asked, "responses").json()
    admitted, ended = lines(server, "k-response")
    assert admitted["request"] == ended["request"] == answer["id"]
    assert (ended["route"], ended["sets"], ended["finish"]) == ("/v1/responses", answer["forget_sets"], "completed")
    assert (ended["completion_tokens"], ended["open_tokens"]) == (8, {"anna": 8})
    post(server, "k-events", {**asked, "stream": True, "max_output_tokens": 9}, "responses")
    assert (lines(server, "k-events")[-1]["finish"], lines(server, "k-events")[-1]["open_tokens"]) == (
        "completed",
        {"anna": 9},
    )
    with httpx.stream(
        "POST", f"{server.url}/v1/responses", headers={"x-request-id": "k-left"}, timeout=60,
        json={**asked, "max_output_tokens": 200, "stream": True},
    ) as response:  # fmt: skip
        next(response.iter_lines())
    assert lines(server, "k-left")[-1]["finish"] == "aborted"
    assert post(server, "k-long", {**asked, "request_id": "a" * 257}, "responses").status_code == 400

    assert post(server, "k-refused", {**chat, "forget_sets": ["zoe"]}, "chat/completions").status_code == 404
    (refused,) = lines(server, "k-refused")
    assert (refused["event"], refused["status"], refused["code"]) == ("refused", 404, "forget_set_not_found")

    assert post(server, "k-vllm", {**chat, "max_tokens": 10**6}, "chat/completions").status_code == 400
    assert [line.get("status") for line in lines(server, "k-vllm")] == [None, 400]

    assert post(server, "k" * 257, chat, "chat/completions").status_code == 400
    assert SECRET not in "".join(file.read_text() for file in server.folders["audit"].iterdir())


def test_metrics_add_up_with_the_log(server):
    text = "".join(file.read_text() for file in server.folders["audit"].iterdir())
    log = [json.loads(line) for line in text.splitlines()]
    ended = [line for line in log if line["event"] == "ended"]
    found = figures(server)
    assert found["unlearngate_audit_lines_total",] == len(log)
    for finish in ("completed", "aborted", "error"):
        assert found["unlearngate_endings_total", finish] == sum(line["finish"] == finish for line in ended)
    for name in [*NAMES, "zora", "none"]:
        with_it = [e for e in ended if name in ([s["name"] for s in e["sets"]] or ["none"])]
        assert found["unlearngate_requests_total", name] == len(with_it)
        assert found["unlearngate_tokens_total", name] == sum(e["completion_tokens"] for e in with_it)
        if name in NAMES:
            opened = found.get(("unlearngate_gate_tokens_total", name, "open"), 0)
            assert opened == sum(e["open_tokens"][name] for e in with_it)
    refused = [line["code"] for line in log if line["event"] == "refused"]
    assert found["unlearngate_refusals_total", "forget_set_not_found"] == refused.count("forget_set_not_found")
    assert found["unlearngate_bad_rows_total",] == 0


def test_the_command_proves_what_was_in_force(server):
    shown = audit(server, "show", "chatcmpl-k-stream")
    assert shown.exit_code == 0, shown.stderr
    assert '"name": "anna"' in shown.stdout
    assert "whole: " in shown.stderr
    assert audit(server, "verify").exit_code == 0


def test_a_log_that_cannot_be_written_refuses_requests_until_it_can(server):
    body = {"model": "tiny", "prompt": "hi", "max_tokens": 2}
    folder = server.folders["audit"]
    folder.rename(folder.with_name("away"))
    try:
        response = server.post("/v1/completions", body)
        assert (response.status_code, response.json()["error"]["code"]) == (503, "audit_unavailable")
        health = httpx.get(f"{server.url}/health")
        assert (health.status_code, "audit log" in health.json()["reason"]) == (503, True)
        assert figures(server)["unlearngate_audit_failures_total",] >= 1
    finally:
        folder.with_name("away").rename(folder)
    assert httpx.get(f"{server.url}/health").status_code == 200
    assert server.post("/v1/completions", body).status_code == 200
    assert audit(server, "verify").exit_code == 0


def test_a_killed_server_leaves_a_trace_of_what_it_was_doing(server):
    # Six answers that do not fit beside each other: seconds of work, so that the end can't be in the socket already.
    body = {"model": "tiny", "prompt": "hi", "n": 6, "max_tokens": 250, "ignore_eos": True, "stream": True,
            "forget_sets": ["bert"]}  # fmt: skip
    with (
        pytest.raises(httpx.TransportError),
        httpx.stream(
            "POST", f"{server.url}/v1/completions", json=body, headers={"x-request-id": "killed"}, timeout=60
        ) as response,
    ):
        for _ in response.iter_lines():
            if server.process.poll() is None:
                os.kill(server.process.pid, signal.SIGKILL)
    shown = audit(server, "show", "killed")
    assert shown.exit_code == 0, shown.stderr
    assert '"event": "admitted"' in shown.stdout and '"name": "bert"' in shown.stdout
    assert "admitted without an end (running, or the server was killed): 1" in shown.stderr
