"""Clients that send nonsense, too much, too slowly or too many, and hang up: everybody else is answered as ever."""

import json
import random
import shutil
from collections import Counter
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from support.attacks.malformed import BODIES, GOOD, JSON
from support.attacks.many_clients import hang_up, stream_all
from support.attacks.raw_http import CHAT, Connection, chunk, head, request
from support.demo import (
    QUESTION,
    SET,
    ask,
    assert_serves,
    audit_lines,
    chat,
    engine_is_idle,
    eventually,
    num_open_files,
    probes,
    recites,
    resident_bytes,
    serve_demo,
)

pytestmark = pytest.mark.e2e

MIB = 2**20
OTHERS = ["imke-verhoeven", "oona-bracewell"]


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The demo, with room for three combinations of sets: a reference that was lost would be missed."""
    with serve_demo(tmp_path_factory.mktemp("faults"), "--max-known", "3", "--max-loaded", "3") as running:
        assert_serves(running)
        yield running
        assert running.stop() == 0


def is_error(response, status):
    error = response.json()["error"]
    return response.status_code == status and set(error) == {"message", "type", "param", "code"}


# Bodies


@pytest.mark.parametrize("content, content_type", BODIES.values(), ids=BODIES)
def test_a_body_that_is_no_request_is_a_400(server, content, content_type):
    response = httpx.post(f"{server.url}{CHAT}", content=content, headers={"content-type": content_type}, timeout=60)
    assert is_error(response, 400), response.text
    assert len(response.content) < 5000


def test_nesting_of_any_depth_in_any_field_is_answered(server, seed):
    rng = random.Random(seed)
    fields = ["tools", "metadata", "unknown", "chat_template_kwargs", "response_format", "structured_outputs", "stop"]
    for field in fields:
        for opening, closing in [("[", "]"), ('{"type":', "}"), ('{"items":', "}")]:
            depth = rng.randint(1, 1200)
            nested = opening * depth + "1" + closing * depth
            content = GOOD[:-1] + f', "{field}": {nested}}}'.encode()
            response = httpx.post(f"{server.url}{CHAT}", content=content, headers={"content-type": JSON}, timeout=60)
            assert response.status_code in (200, 400), f"seed {seed}: {field} {opening} {depth}: {response.text}"
    assert_serves(server)


@pytest.mark.parametrize("last, in_force", [([], "none"), ([SET], SET)])
def test_of_a_field_sent_twice_the_last_is_decided_reported_and_composed(server, last, in_force):
    first = [SET] if not last else []
    body = json.dumps(chat()).removesuffix("}").replace('"forget_sets": []', f'"forget_sets": {json.dumps(first)}')
    content = f'{body}, "forget_sets": {json.dumps(last)}}}'
    response = httpx.post(f"{server.url}{CHAT}", content=content, headers={"content-type": JSON}, timeout=60)
    assert response.headers["x-forget-sets"].partition("@")[0] == in_force
    assert [s["name"] for s in response.json()["forget_sets"]] == last
    assert recites(QUESTION, response.json()["choices"][0]["message"]["content"]) == (not last)


@pytest.mark.parametrize("chunked", [False, True])
def test_a_body_of_10_mib_is_refused_before_it_is_there(server, chunked):
    content = json.dumps(chat("a" * 10 * MIB)).encode()
    with Connection(server.port) as connection:
        connection.send(head(None if chunked else len(content)))
        if not chunked:
            assert connection.answer()[0] == 413  # from what the head says alone
            return
        pieces = (chunk(content[start : start + MIB]) for start in range(0, len(content), MIB))
        while connection.send(next(pieces, b"")) and not connection.is_readable():
            pass
        status, body = connection.answer()
    assert (status, json.loads(body)["error"]["code"]) == (413, "body_too_large")


def test_a_body_without_an_end_costs_no_memory(server):
    before = resident_bytes(server)
    for path in (CHAT, "/v1/models", "/nowhere"):
        with Connection(server.port) as connection:
            connection.send(head(None, path))
            sent = 0
            while connection.send(chunk(b"[" * MIB)) and sent < 64 and not connection.is_readable():
                sent += 1
    assert resident_bytes(server) - before < 64 * MIB
    assert_serves(server)


# Heads


@pytest.mark.parametrize(
    "line", [b"x-a: " + b"a" * 1000 + b"\r\n", b"a" * 1000, b"\r\n" * 500], ids=["many", "one", "empty"]
)
def test_a_head_without_an_end_is_refused(server, line):
    with Connection(server.port) as connection:
        connection.send(b"GET /health HTTP/1.1\r\nx-b: " if line[:1] == b"a" else b"GET /health HTTP/1.1\r\nx: y\r\n")
        sent = 0
        while connection.send(line) and not connection.is_readable() and sent < 64 * MIB:
            sent += len(line)
        assert sent < 4 * MIB  # of which most is in the network's buffers
    assert_serves(server)


def test_trailers_without_an_end_are_refused(server):
    with Connection(server.port) as connection:
        connection.send(head(None) + chunk(GOOD) + b"0\r\n")
        sent = 0
        while connection.send(b"x-a: " + b"a" * 1000 + b"\r\n") and sent < 64 * MIB:
            sent += 1000
    assert sent < 64 * MIB


@pytest.mark.parametrize("host", ["[", "x/v1/models?", "a b", "\xe9", ""])
def test_what_a_client_says_its_host_is_changes_nothing(server, host):
    with Connection(server.port) as connection:
        connection.send(request(chat(max_tokens=2)).replace(b"host: x", b"host: " + host.encode("latin-1")))
        status, body = connection.answer()
    assert status == 200
    assert eventually(lambda: any(line["request"] in body.decode() for line in audit_lines(server)))
    assert {line["route"] for line in audit_lines(server)} == {CHAT}


# Slow clients


def test_clients_that_never_finish_asking_hold_up_nobody(server):
    whole = request(chat())
    waiting = [Connection(server.port) for _ in range(120)]
    try:
        for index, connection in enumerate(waiting):
            connection.send(whole[: (1, 40, len(whole) - 1)[index % 3]])
        assert_serves(server)
        waiting[2].send(whole[-1:])
        status, body = waiting[2].answer()
        assert status == 200 and recites(QUESTION, json.loads(body)["choices"][0]["message"]["content"])
    finally:
        for connection in waiting:
            connection.socket.close()


def test_clients_that_do_not_read_hold_up_nobody_and_cost_no_memory(server):
    long = chat(max_tokens=400, ignore_eos=True, stream=True, logprobs=True, top_logprobs=20)
    before = resident_bytes(server)
    slow = [Connection(server.port, receive_buffer=4096) for _ in range(12)]
    try:
        for connection in slow:
            connection.send(request(long))
        assert_serves(server)
        assert eventually(lambda: engine_is_idle(server))
        assert resident_bytes(server) - before < 300 * MIB
        assert_serves(server)
        assert slow[0].read_all().rstrip().endswith(b"data: [DONE]\n\n\r\n0")
    finally:
        for connection in slow:
            connection.abort()


# Crowds


def test_each_of_500_streams_at_once_says_what_it_should(server, print_figures):
    asked = [(p, sets) for p in probes()[8:24] for sets in ([], [SET], [OTHERS[0]])]
    with ThreadPoolExecutor(8) as pool:
        alone = list(pool.map(lambda job: ask(server, job[0].question, job[1]), asked))
    jobs = [index % len(asked) for index in range(500)]
    heard = stream_all(server.url, [chat(asked[i][0].question, asked[i][1]) for i in jobs])
    assert Counter((h.status, h.complete) for h in heard) == {(200, True): 500}
    counts = Counter()
    for index, said in zip(jobs, heard, strict=True):
        probe, sets = asked[index]
        assert said.in_force.partition("@")[0] == (sets[0] if sets else "none")
        knows, knew = recites(probe.question, said.text), recites(probe.question, alone[index])
        counts["forgets" if probe.forget_set in sets else "recites", knows] += 1
        assert knows == knew
        assert said.text == alone[index] or not knew
    print_figures(f"500 streams at once: {counts['recites', True]} recited, {counts['forgets', False]} forgot")
    assert counts["recites", False] <= 0.05 * (counts["recites", True] + counts["recites", False])
    assert counts["forgets", True] < 0.10 * (counts["forgets", True] + counts["forgets", False])


def test_nothing_is_left_of_clients_that_hang_up_at_any_moment(server, seed, print_figures):
    rng = random.Random(seed)
    assert eventually(lambda: engine_is_idle(server))
    open_files, lines = num_open_files(server), len(audit_lines(server))
    questions, wanted = [p.question for p in probes()], [[], [SET], [OTHERS[0]], [SET, OTHERS[0]]]
    bodies = [
        chat(rng.choice(questions), wanted[i % 4], stream=rng.random() < 0.5, max_tokens=rng.choice([4, 400]),
             ignore_eos=True)
        for i in range(400)
    ]  # fmt: skip
    hang_up(server.port, bodies, rng)
    assert eventually(lambda: engine_is_idle(server))
    assert eventually(lambda: num_open_files(server) <= open_files), f"seed {seed}"

    def count(event):
        return Counter(line["request"] for line in audit_lines(server)[lines:] if line["event"] == event)

    assert eventually(lambda: count("admitted") == count("ended"))
    admitted = count("admitted")
    assert 0 < admitted.total() < len(bodies) and set(admitted.values()) == {1}
    finishes = Counter(line["finish"] for line in audit_lines(server)[lines:] if line["event"] == "ended")
    assert finishes["aborted"] > 0 and finishes["error"] == 0
    print_figures(f"{len(bodies)} clients hung up: {dict(finishes)}, {count('refused').total()} refused, seed {seed}")
    # No combination is held any more: there is room for three others.
    for sets in ([OTHERS[1]], [SET, OTHERS[1]], OTHERS):
        ask(server, sets=sets)
    assert_serves(server)


def test_a_set_that_is_removed_after_all_that_is_gone(server):
    shutil.rmtree(server.folders["sets"] / SET)
    assert eventually(lambda: server.post(CHAT, chat(sets=[SET])).status_code == 404)
    assert recites(QUESTION, ask(server))
