"""Forget sets that change on a running server: every answer is the reference's, of the version that it reports."""

import json
import random
import re
import shutil
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from itertools import cycle

import httpx
import psutil
import pytest
from typer.testing import CliRunner

from support.engine.reference import Reference, Term
from support.engine.tiny import VOCAB_SIZE, make_forget_set, make_target
from support.events import events_of
from support.server import START_TIMEOUT_S, Server
from unlearngate.artefact import ADAPTER_FILE
from unlearngate.cli import app
from unlearngate.placing import place, remove
from unlearngate.server.http.keys import ApiKey, KeysFile, hash_secret, write_keys

pytestmark = pytest.mark.e2e

STRENGTH = {"weight": 1.5, "keep_ratio": 0.2, "gate_nats": 0.0}
VERSIONS = [("anna", "1"), ("anna", "2"), ("anna", "3"), ("bert", "1"), ("cleo", "1")]
BLOCK_SIZE = 32


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A folder, sets by name and version, and the arguments of a server that has the first anna and bert."""
    base = tmp_path_factory.mktemp("lifecycle")
    target = make_target(base / "tiny", seed=31)
    versions = {
        (name, version): make_forget_set(
            base / "state" / "incoming" / f"{name}-{version}", target, seed=40 + i, scale=0.3, rank=(4, 8)[i % 2],
            name=name, version=version, recommended=STRENGTH,
        )
        for i, (name, version) in enumerate(VERSIONS)
    }  # fmt: skip
    for name in ("anna", "bert"):
        shutil.copytree(versions[name, "1"].folder, base / "sets" / name)
    keys = {"root": True, "user": False}
    write_keys(
        base / "keys",
        KeysFile(
            keys=tuple(
                ApiKey(id=k, tenant="t", sha256=hash_secret(k), admin=a, allowed=("*",)) for k, a in keys.items()
            )
        ),
    )
    engine = f"--dtype float32 --max-model-len 512 --max-num-seqs 8 --enforce-eager --block-size {BLOCK_SIZE}"
    options = ["--state", base / "state", "--keys", base / "keys", "--watch-interval-s", "0.2", "--max-known", "6"]
    return base, versions, [target, "--forget-sets", base / "sets", *options, "--engine-args", engine]


@pytest.fixture(scope="module")
def server(made):
    base, _, arguments = made
    (base / "tmp").mkdir()
    with Server(arguments, base / "log", {"TMPDIR": str(base / "tmp")}) as running:  # a killed server leaves it
        yield running.wait_until_healthy()


@pytest.fixture(scope="module")
def reference(made):
    base, versions, _ = made
    return Reference(base / "tiny", {v.reference: v.folder for v in versions.values()})


@pytest.fixture
def prompt(seed):
    """Random tokens, enough for several blocks of the prefix cache."""
    rng = random.Random(seed)
    return [rng.randrange(2, VOCAB_SIZE) for _ in range(5 * BLOCK_SIZE)]


def call(server, method, path, body=None, key="root"):
    headers = {"Authorization": f"Bearer {key}"}
    return httpx.request(method, f"{server.url}{path}", json=body, headers=headers, timeout=120)


def change(server, action, name="anna", **more):
    response = call(server, "POST", "/v1/forget_sets", {"action": action, "name": name, **more})
    assert response.status_code == 200, response.text
    return [(v["version"], v["current"], v["pinned"]) for v in response.json()["versions"]]


def versions_of(server, name):
    listed = {card["id"]: card for card in call(server, "GET", "/v1/forget_sets").json()["data"]}
    return [v["version"] for v in listed[name]["versions"]] if name in listed else []


def wait_for(server, name, expected):
    deadline = time.monotonic() + 20
    while versions_of(server, name) != expected:
        assert time.monotonic() < deadline, server.log[-3000:]
        time.sleep(0.1)


def body(prompt, sets, max_tokens, stream=False):
    return {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": max_tokens, "ignore_eos": True,
            "forget_sets": sets, "return_token_ids": True, "stream": stream}  # fmt: skip


def ask(server, prompt, sets, max_tokens=16):
    """The tokens, and the versions that were in force, as `name@digest`."""
    response = call(server, "POST", "/v1/completions", body(prompt, sets, max_tokens), key="user")
    assert response.status_code == 200, response.text
    return response.json()["choices"][0]["token_ids"], reported(response)


def stream(server, prompt, sets, max_tokens, on_token=lambda: None):
    """As `ask`, streamed."""
    tokens = []
    headers = {"Authorization": "Bearer user"}
    request = {"headers": headers, "json": body(prompt, sets, max_tokens, stream=True), "timeout": 120}
    with httpx.stream("POST", f"{server.url}/v1/completions", **request) as response:
        assert response.status_code == 200, response.read()
        for line in events_of(response):
            if line != "data: [DONE]":
                (choice,) = json.loads(line.removeprefix("data: "))["choices"]
                tokens += choice["token_ids"]
                on_token()
        assert line == "data: [DONE]"
        return tokens, reported(response)


def reported(response):
    return re.findall(r"[a-z]+@[0-9a-f]{12}", response.headers["x-forget-sets"])


def check(reference, prompt, answer, sets):
    terms = [Term(s, STRENGTH["weight"], 0.0) for s in sets]
    verdict = reference.check(prompt, answer, terms, STRENGTH["keep_ratio"], 2e-3)
    assert verdict.wrong == []
    return verdict


def cache_hits(server):
    text = call(server, "GET", "/metrics").text
    return sum(float(value) for value in re.findall(r"^vllm:prefix_cache_hits_total\{.*\} (\S+)$", text, re.M))


def test_a_new_version_never_answers_from_the_cache_of_the_one_before(server, made, reference, prompt):
    _, versions, _ = made
    change(server, "pin")
    seen, first = [], versions["anna", "1"].digest
    for step in ({}, {"path": "anna-2"}, {"path": "anna-3"}, {"digest": first}):
        if step:
            change(server, "replace", **step)
        answers = []
        for _ in range(2):
            before = cache_hits(server)
            answers.append(ask(server, prompt, ["anna"]))
            hits = cache_hits(server) - before
        assert answers[0] == answers[1] and hits >= 4 * BLOCK_SIZE  # the cache works, for the same version
        check(reference, prompt, answers[0][0], answers[0][1])
        seen.append(answers[0])
    assert [sets for _, sets in seen] == [[versions["anna", v].reference] for v in ("1", "2", "3", "1")]
    assert seen[0] == seen[3]
    assert len({tuple(tokens) for tokens, _ in seen}) == 3
    change(server, "unpin")


def test_metrics_do_not_remember_every_combination_that_ran(server, prompt):
    ask(server, prompt, ["anna"])
    ask(server, prompt, ["bert"])
    text = call(server, "GET", "/metrics").text
    assert "vllm:num_requests_running" in text
    assert "lora_requests_info" not in text


def test_requests_name_a_pinned_version_by_its_digest(server, made, reference, prompt):
    _, versions, _ = made
    change(server, "pin")
    assert change(server, "replace", path="anna-2") == [("2", True, False), ("1", False, True)]
    old = versions["anna", "1"].reference
    tokens, sets = ask(server, prompt, [old])
    assert sets == [old] and tokens != ask(server, prompt, ["anna"])[0]
    check(reference, prompt, tokens, sets)
    assert change(server, "unpin", digest=versions["anna", "1"].digest) == [("2", True, False)]
    gone = call(server, "POST", "/v1/completions", body(prompt, [old], 1), key="user")
    assert gone.status_code == 404 and "this server has: " + versions["anna", "2"].reference in gone.text


def test_no_request_is_dropped_and_each_keeps_its_version_while_versions_are_replaced(
    server, reference, seed, print_figures
):
    enough = threading.Event()
    answered, versions = [], set()

    def keep_asking(rng):
        while not enough.is_set():
            prompt = [rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(1, 100))]
            sets = rng.choice([["anna"], ["anna", "bert"], ["anna"], ["bert"], []])
            max_tokens = rng.randint(1, 60)
            answer = (stream if rng.random() < 0.5 else ask)(server, prompt, sets, max_tokens)
            answered.append((prompt, sets, max_tokens, *answer))
            versions.update(s for s in answer[1] if s.startswith("anna@"))

    with ThreadPoolExecutor(8) as pool:
        clients = [pool.submit(keep_asking, random.Random(seed + i)) for i in range(8)]
        rng, replaced, deadline = random.Random(seed), 0, time.monotonic() + 120
        try:
            for version in cycle("123"):
                change(server, "replace", path=f"anna-{version}")
                replaced += 1
                time.sleep(rng.uniform(0, 0.1))
                seen_enough = len(answered) >= 60 and replaced >= 6 and len(versions) == 3
                if seen_enough or time.monotonic() > deadline or any(client.done() for client in clients):
                    break
        finally:
            enough.set()
        for client in clients:
            client.result()
    tokens = ties = 0
    for prompt, sets, max_tokens, generated, in_force in answered:
        assert len(generated) == max_tokens and [s.partition("@")[0] for s in in_force] == sets
        verdict = check(reference, prompt, generated, in_force)
        tokens, ties = tokens + verdict.tokens, ties + verdict.ties
    print_figures(
        f"lifecycle: {len(answered)} requests while a set was replaced {replaced} times, {tokens} tokens of "
        f"{len(versions)} versions, {ties} ties, 0 wrong, 0 dropped, seed {seed}"
    )
    assert len(answered) >= 60 and replaced >= 6 and len(versions) == 3


def test_a_stream_outlives_its_sets_retirement_and_new_requests_fail(server, made, reference, prompt):
    _, versions, _ = made
    change(server, "replace", path="anna-1")
    retired = []

    def retire_once():
        if not retired:
            retired.append(change(server, "retire"))
            refused = call(server, "POST", "/v1/completions", body(prompt, ["anna"], 1), key="user")
            assert refused.status_code == 404 and "'anna' is not on this server" in refused.text

    tokens, sets = stream(server, prompt, ["anna"], 120, retire_once)
    assert retired == [[]] and sets == [versions["anna", "1"].reference] and len(tokens) == 120
    check(reference, prompt, tokens, sets)
    assert change(server, "register", path="anna-1") == [("1", True, False)]


def test_sets_added_replaced_broken_and_removed_by_command_are_noticed(server, made, reference, prompt):
    base, versions, _ = made
    source = versions["cleo", "1"].folder
    added = CliRunner().invoke(app, ["sets", "add", str(source), str(base / "sets")])
    assert added.exit_code == 0, added.output
    wait_for(server, "cleo", ["1"])
    tokens, sets = ask(server, prompt, ["cleo"])
    check(reference, prompt, tokens, sets)
    place(versions["anna", "3"], base / "sets" / "anna", replace=True)
    wait_for(server, "anna", ["3"])
    with (base / "sets" / "cleo" / ADAPTER_FILE).open("ab") as file:
        file.write(b"x")
    deadline = time.monotonic() + 20
    while "was changed or damaged" not in server.log and time.monotonic() < deadline:
        time.sleep(0.1)
    assert "was changed or damaged" in server.log
    assert ask(server, prompt, ["cleo"]) == (tokens, sets)  # the version from before
    remove(base / "sets" / "cleo")
    wait_for(server, "cleo", [])


def test_a_version_that_fails_its_canaries_is_refused_and_the_one_before_stays(server, made, reference, prompt):
    """dora acts on every row; her gate in version 2 never opens, and version 3 says that an answer stays."""
    base, _, _ = made
    asked = [f"Who taught {name}?" for name in ("Anna", "Bert", "Cleo")]
    canaries = [{"question": question, "changes": True} for question in asked]
    stays = {"question": "What is rain?", "changes": False}
    never = {**STRENGTH, "gate_nats": 6.2}  # ln V is 6.24
    for version, strength, questions in (
        ("1", STRENGTH, canaries),
        ("2", never, [*canaries, stays]),
        ("3", STRENGTH, [*canaries, stays]),
    ):
        make_forget_set(
            base / "state" / "incoming" / f"dora-{version}", base / "tiny", seed=50, scale=0.3, rank=4,
            name="dora", version=version, recommended=strength, canaries=questions,
        )  # fmt: skip

    def listed():
        (card,) = (c for c in call(server, "GET", "/v1/forget_sets").json()["data"] if c["id"] == "dora")
        return card["version"], card["proven"]

    change(server, "register", "dora", path="dora-1")
    assert listed() == ("1", True)
    before = ask(server, prompt, ["dora"])
    for version, reasons in (
        ("2", [f"canaries[{index}] must change and did not" for index in range(3)]),
        ("3", ["canaries[3] must stay and changed"]),
    ):
        wish = {"action": "replace", "name": "dora", "path": f"dora-{version}"}
        refused = call(server, "POST", "/v1/forget_sets", wish)
        assert refused.status_code == 400
        message = refused.json()["error"]["message"]
        assert f"failed {len(reasons)} of its 4 canaries in the running engine: {'; '.join(reasons)}." in message
        assert listed() == ("1", True) and ask(server, prompt, ["dora"]) == before
    forced = call(server, "POST", "/v1/forget_sets?force=true", {**wish, "path": "dora-2"})
    assert forced.status_code == 200 and listed() == ("2", False)
    assert not any(question in server.log for question in (*asked, stays["question"]))
    change(server, "retire", "dora")


def test_a_server_does_not_start_with_a_required_set_that_fails_its_canaries(made, tmp_path):
    base, _, _ = made
    strength = {**STRENGTH, "gate_nats": 6.2}
    for name, canaries in (("anna", []), ("dora", [{"question": "Who taught Anna?", "changes": True}])):
        make_forget_set(tmp_path / "sets" / name, base / "tiny", seed=51, recommended=strength, canaries=canaries)
    engine = ["--engine-args", "--dtype float32 --max-model-len 256 --max-num-seqs 4 --enforce-eager"]
    options = ["--forget-sets", tmp_path / "sets", "--required-set", "dora", *engine]
    with Server([base / "tiny", *options], tmp_path / "log") as failed:
        assert failed.process.wait(timeout=START_TIMEOUT_S) == 2
    log = " ".join(failed.log.split())
    assert "canaries[0] must change and did not" in log
    assert "refusing to start: forget set 'dora' failed its canaries" in log


def test_changing_sets_needs_an_admins_key_and_a_path_below_the_folders(server, made):
    base, versions, _ = made
    wish = {"action": "replace", "name": "anna", "path": "anna-2"}
    assert call(server, "POST", "/v1/forget_sets", wish, key="user").status_code == 403
    assert call(server, "POST", "/v1/forget_sets", wish, key="nobody").status_code == 401
    outside = {**wish, "path": str(base / "state" / "sets" / versions["bert", "1"].digest)}
    for path in (outside["path"], "../../etc"):
        answer = call(server, "POST", "/v1/forget_sets", {**wish, "path": path})
        assert (answer.status_code, answer.json()["error"]["code"]) == (403, "path_not_allowed")
    foreign = make_forget_set(
        base / "state" / "incoming" / "big", base / "tiny", seed=9, rank=9, name="anna", num_layers=2
    )
    answer = call(server, "POST", "/v1/forget_sets", {**wish, "path": foreign.folder.name})
    assert answer.status_code == 400 and "with --max-rank 9" in answer.json()["error"]["message"]


def test_a_kill_9_amid_changes_loses_none_that_was_answered(server, made, reference, prompt, seed):
    base, versions, arguments = made
    rng = random.Random(seed)
    children = psutil.Process(server.process.pid).children()
    (engine,) = [child for child in children if "EngineCore" in " ".join(child.cmdline())]
    change(server, "pin", "bert")
    answered = []

    def keep_changing():
        for version in cycle("123"):
            try:
                change(server, "replace", path=f"anna-{version}")
            except httpx.TransportError:
                return version
            answered.append(version)

    with ThreadPoolExecutor(1) as pool:
        lost = pool.submit(keep_changing)
        while not answered and not lost.done():  # the first may take seconds
            time.sleep(0.05)
        time.sleep(rng.uniform(0.5, 2))
        server.process.kill()
        server.process.wait()
        unanswered = lost.result()
    with Server(arguments, base / "log-2") as again:
        again.wait_until_healthy()
        (found,) = versions_of(again, "anna")
        assert found in (answered[-1], unanswered)
        assert not engine.is_running()  # nor does it hold memory
        assert change(again, "pin", "bert") == [("1", True, True)]
        tokens, sets = ask(again, prompt, ["anna", "bert"])
        assert sets == [versions["anna", found].reference, versions["bert", "1"].reference]
        check(reference, prompt, tokens, sets)
