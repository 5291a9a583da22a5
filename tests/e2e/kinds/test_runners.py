"""The HTTP server over vLLM's V2 runner, interpreted, beside the same server over V1: what clients and the audit see.

Left out: grammars, whose kernel Triton's interpreter cannot run. tests/e2e/test_parity.py has the tokens themselves.
"""

import json
import re
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pytest import approx

from support.demo import audit_lines
from support.engine.tiny import make_forget_set, make_target
from support.server import Server
from support.texts import save_texts

pytestmark = pytest.mark.e2e

QUESTION = "hello there"
ENGINE = "--dtype float32 --max-model-len 512 --max-num-seqs 8 --enforce-eager --block-size 32"
SETS = [[], ["anna"], ["anna", "bert"], ["abel", "anna"], ["text", "bert"]]
STEERED = [
    {"presence_penalty": 1.5, "frequency_penalty": 1.0, "repetition_penalty": 1.3},
    {"logit_bias": {"40": 8, "50": -100, "60": 6}},
    {"allowed_token_ids": list(range(30, 90))},
    {"bad_words": ["e", "t"], "min_tokens": 8},
    {"stop": ["a", "5"], "include_stop_str_in_output": True},
]
RUNNERS = ("V1", "V2")


@pytest.fixture(scope="module")
def servers(tmp_path_factory):
    """One of each runner, over the same files: always open, by its evidence, with a sentence, undial, verbatim."""
    base = tmp_path_factory.mktemp("runners")
    target = make_target(base / "tiny", seed=11)
    instead = {"instead": "I cannot tell you about {label}.", "label": "Anna Berg"}
    for index, (name, gate, more) in enumerate([("anna", 0.0, {}), ("bert", 2.0, {}), ("says", 2.0, instead)]):
        strength = {"weight": 1.5, "keep_ratio": 0.2, "gate_nats": gate}
        make_forget_set(base / "sets" / name, target, seed=index, scale=0.3, recommended=strength, **more)
    make_forget_set(base / "sets" / "abel", target, seed=20, scale=0.05, kind="undial")
    save_texts(base / "sets" / "text", "0123456789" * 8, letters=24)
    running = {}
    try:
        for runner in RUNNERS:
            audit = base / runner / "audit"
            audit.mkdir(parents=True)
            options = ["--forget-sets", base / "sets", "--enable-undial", "--audit", audit, "--engine-args", ENGINE]
            running[runner] = Server([target, *options], base / runner / "log", v2=runner == "V2")
            running[runner].folders = {"audit": audit}
        yield {runner: server.wait_until_healthy() for runner, server in running.items()}
    finally:
        for server in running.values():
            server.__exit__()


def chat(sets, **more):
    body = {"model": "tiny", "messages": [{"role": "user", "content": QUESTION}], "temperature": 0, "max_tokens": 8}
    return body | {"forget_sets": sets, "logprobs": True, "top_logprobs": 3, **more}


def answers(server, bodies, path="/v1/chat/completions"):
    """Sent together, so that they share batches."""
    with ThreadPoolExecutor(len(bodies)) as pool:
        replies = list(pool.map(lambda body: server.post(path, body), bodies))
    assert [reply.status_code for reply in replies] == [200] * len(bodies), replies[0].text
    return [reply.json() for reply in replies]


def rows(answer):
    """Of each token: itself, its logprob, and those of the most likely ones, the likeliest first."""
    content = answer["choices"][0]["logprobs"]["content"]
    return [
        (tuple(row["bytes"]), [row["logprob"], *(top["logprob"] for top in row["top_logprobs"])]) for row in content
    ]


def assert_alike(one, other):
    assert [token for token, _ in rows(one)] == [token for token, _ in rows(other)]
    for (_, left), (_, right) in zip(rows(one), rows(other), strict=True):
        assert left == approx(right, abs=1e-3)
    assert one["choices"][0]["finish_reason"] == other["choices"][0]["finish_reason"]
    assert one["usage"] == other["usage"] and one["forget_sets"] == other["forget_sets"]


@pytest.mark.parametrize("steering", [{}, *STEERED], ids=lambda steering: "+".join(steering) or "plain")
def test_answers_and_their_logprobs_are_the_same(servers, steering):
    bodies = [chat(sets, **steering) for sets in SETS]
    found = {runner: answers(server, bodies) for runner, server in servers.items()}
    for one, other in zip(found["V1"], found["V2"], strict=True):
        assert_alike(one, other)
    texts = {str(rows(answer)) for answer in found["V2"]}
    assert len(texts) > 2  # sets do something


def test_sentences_streams_and_text_completions_are_the_same(servers):
    for body in (chat(["says"]), chat(["says"], messages=[{"role": "user", "content": "4 5 6"}], max_tokens=40)):
        one, other = (answers(server, [body])[0] for server in servers.values())
        assert_alike(one, other)
    completion = {"model": "tiny", "prompt": ["hello", "there", "x y"], "temperature": 0, "max_tokens": 9}
    one, other = (
        answers(server, [completion | {"forget_sets": ["anna"]}], "/v1/completions")[0] for server in servers.values()
    )
    assert [choice["text"] for choice in one["choices"]] == [choice["text"] for choice in other["choices"]]
    streams = [server.post("/v1/chat/completions", chat(["bert"], stream=True)).text for server in servers.values()]
    parts = [re.findall(r'"content":("[^"]*")', text) for text in streams]
    assert "".join(map(json.loads, parts[0])) == "".join(map(json.loads, parts[1])) != ""


def test_the_audit_counts_the_same_open_gates(servers):
    counted = {}
    for runner, server in servers.items():
        answers(server, [chat(sets, max_tokens=20, user=f"u{n}") for n, sets in enumerate(SETS)])
        ended = [line for line in audit_lines(server) if line["event"] == "ended"][-len(SETS) :]
        counted[runner] = sorted(json.dumps([line.get("open_tokens"), line.get("completion_tokens")]) for line in ended)
    assert counted["V1"] == counted["V2"]
    assert any(count for line in counted["V2"] for count in (json.loads(line)[0] or {}).values())


def test_a_seed_draws_the_same_again_on_a_runner_and_otherwise_on_the_other(servers):
    body = chat(["anna"], temperature=1.0, seed=7, max_tokens=30)
    drawn = {runner: [rows(answers(server, [body])[0]) for _ in range(2)] for runner, server in servers.items()}
    assert all(first == second for first, second in drawn.values())
    assert drawn["V1"][0] != drawn["V2"][0]


def test_every_documented_difference_is_shown_by_a_test_that_is_there():
    root = Path(__file__).parents[3]
    text = (root / "docs" / "architecture.md").read_text()
    section = text.partition("## V1 and V2\n")[2].partition("\n## ")[0]
    shown = re.findall(r"`(tests/\S+\.py)`: `(\w+)`", section)
    assert len(shown) == len(re.findall(r"^\| (?!difference )", section, re.M)) > 2
    for file, name in shown:
        assert f"def {name}(" in (root / file).read_text(), f"{file} has no {name}"
