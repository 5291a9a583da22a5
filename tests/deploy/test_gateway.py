"""What gets through a real nginx with docker/gateway's files to two real servers, and what does not."""

import socket
import ssl
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest

from support.deploy.gateway_load import Outcome, ask, reported
from support.deploy.replicas import ORIGIN
from support.server import free_port

pytestmark = pytest.mark.e2e


def completion(client, prompt, max_tokens=12, **more):
    body = {"model": "tiny", "prompt": prompt, "temperature": 0, "max_tokens": max_tokens, "ignore_eos": True,
            "return_token_ids": True, **more}  # fmt: skip
    return client.post("/v1/completions", json=body)


def in_force(response):
    assert response.status_code == 200, response.text
    return {s["name"]: s["by"] for s in response.json()["forget_sets"]}


@pytest.mark.parametrize(
    "key, host, expected",
    [
        ("client", "localhost", {"anna": "server"}),
        ("acme", "acme.localhost", {"anna": "server", "bert": "key", "cleo": "gateway"}),
        ("globex", "globex.localhost", {"anna": "server"}),
    ],
)
def test_a_key_brings_its_tenant_and_its_name_what_is_required(gateway, replicas, prompts, key, host, expected):
    with gateway.client(replicas.keys[key], host) as client:
        response = completion(client, prompts[0])
        assert in_force(response) == expected
        tokens = response.json()["choices"][0]["token_ids"]
        assert replicas.wrong_tokens(prompts[0], tokens, reported(response)) == 0
        refused = completion(client, prompts[0], forget_sets=[])
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "required_forget_set")


@pytest.mark.parametrize(
    "key, host", [("acme", "localhost"), ("acme", "globex.localhost"), ("client", "acme.localhost")]
)
def test_a_key_does_not_escape_its_requirements_by_another_name(gateway, replicas, prompts, key, host):
    with gateway.client(replicas.keys[key], host) as client:
        refused = completion(client, prompts[0])
        assert (refused.status_code, refused.json()["error"]["code"]) == (403, "tenant_mismatch")


def test_without_a_good_key_nothing_is_answered(gateway, prompts):
    for key in (None, "nobody", ""):
        with gateway.client(key) as client:
            assert completion(client, prompts[0]).json()["error"]["code"] == "invalid_api_key"
            assert client.get("/v1/models").status_code == 401


@pytest.mark.parametrize(
    "headers",
    [
        [("x-unlearngate-required", "bert")],
        [("x-unlearngate-required", "")],
        [("X-UNLEARNGATE-REQUIRED", "a"), ("x-unlearngate-required", "b")],
        [("x-unlearngate-gateway", "0" * 64), ("x-unlearngate-tenant", "globex")],
        [("x-unlearngate-tenant", "globex")],
        [("x_unlearngate_required", "bert"), ("x_unlearngate_gateway", "0" * 64)],
        [("x-unlearngate-anything", "1")],
        [("connection", "x-unlearngate-required, x-unlearngate-gateway, x-unlearngate-tenant")],
        [("connection", "close, authorization"), ("te", "trailers"), ("forwarded", "host=globex.localhost")],
        [("x-forwarded-host", "globex.localhost"), ("x-original-url", "/metrics"), ("x-rewrite-url", "/metrics")],
        [("x-accel-redirect", "/metrics"), ("x-http-method-override", "GET")],
    ],
)
def test_a_clients_own_gateway_headers_change_nothing(gateway, replicas, prompts, headers):
    with gateway.client(replicas.keys["acme"], "acme.localhost") as client:
        plain = completion(client, prompts[1])
        request = client.build_request(
            "POST", "/v1/completions", json=None, content=plain.request.content,
            headers=[("content-type", "application/json"), *headers],
        )  # fmt: skip
        spoofed = client.send(request)
        assert in_force(spoofed) == {"anna": "server", "bert": "key", "cleo": "gateway"}
        assert spoofed.json()["choices"][0]["token_ids"] == plain.json()["choices"][0]["token_ids"]


def test_the_servers_answer_nobody_who_comes_past_the_gateway(replicas, prompts):
    for node in ("a", "b"):
        with httpx.Client(base_url=replicas.servers[node].url) as client:
            client.headers["authorization"] = f"Bearer {replicas.keys['admin']}"
            for response in (completion(client, prompts[0]), client.get("/metrics"), client.get("/v1/models")):
                assert (response.status_code, response.json()["error"]["code"]) == (403, "gateway_only")


@pytest.mark.parametrize(
    "path",
    ["/metrics", "//metrics", "/v1/../metrics", "/v1/models/../../metrics", "/metrics/", "/%6detrics", "/METRICS",
     "/v1/models%2f..%2f..%2fmetrics", "/ready", "/health", "/docs", "/openapi.json", "/", "/v1/unknown",
     "/v1/chat/completions/", "/gateway/../metrics", "/v1/models/..;/metrics"],
)  # fmt: skip
def test_what_is_for_the_inside_is_closed_to_an_admin_too(gateway, replicas, path):
    """Raw, because a client would tidy the path up first."""
    key = replicas.keys["admin"]
    head = f"GET {path} HTTP/1.1\r\nhost: localhost\r\nauthorization: Bearer {key}\r\nconnection: close\r\n\r\n"
    context = ssl.create_default_context(cafile=replicas.site / "tls" / "cert.pem")
    with (
        socket.create_connection(("127.0.0.1", gateway.port)) as plain,
        context.wrap_socket(plain, server_hostname="localhost") as connection,
    ):
        connection.sendall(head.encode())
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.split(b" ")[1] == b"404", answer
    assert b"unlearngate_requests" not in answer and b'"code"' in answer


@pytest.mark.parametrize(
    "method, path",
    [("POST", "/v1/forget_sets"), ("DELETE", "/v1/forget_sets"), ("GET", "/v1/completions"), ("PUT", "/v1/models")],
)
def test_admin_routes_and_other_methods_are_closed(gateway, replicas, method, path):
    with gateway.client(replicas.keys["admin"]) as client:
        wish = {"action": "retire", "name": "bert"}
        refused = client.request(method, path, json=wish)
        assert (refused.status_code, refused.json()["error"]["code"]) == (405, "method_not_allowed")
        listed = client.get("/v1/forget_sets").json()["data"]
    assert "bert" in [card["id"] for card in listed]


def test_a_page_of_an_allowed_origin_may_ask_through_it_and_no_other_page(gateway, replicas, prompts):
    asks = {"access-control-request-method": "POST", "access-control-request-headers": "authorization,content-type"}
    for origin, allowed in [(ORIGIN, ORIGIN), ("https://evil.example", None)]:
        with gateway.client(None) as client:
            preflight = client.options("/v1/completions", headers={"origin": origin, **asks})
        with gateway.client(replicas.keys["client"]) as client:
            client.headers["origin"] = origin
            answer = completion(client, prompts[0])
        assert (preflight.status_code, answer.status_code) == (200 if allowed else 400, 200)
        for response in (preflight, answer):
            assert response.headers.get("access-control-allow-origin") == allowed


def test_a_stream_arrives_token_by_token_and_tells_what_is_in_force(gateway, replicas, prompts):
    with gateway.client(replicas.keys["acme"], "acme.localhost") as client:
        whole = completion(client, prompts[2], 200)
        body = {"model": "tiny", "prompt": prompts[2], "temperature": 0, "max_tokens": 200, "ignore_eos": True}
        arrivals, text = [], ""
        with client.stream("POST", "/v1/completions", json={**body, "stream": True}) as response:
            assert response.headers["x-forget-sets"] == whole.headers["x-forget-sets"]
            for piece in response.iter_bytes():
                arrivals.append(time.monotonic())
                text += piece.decode()
    assert text.endswith("data: [DONE]\n\n") and text.count("\ndata: ") > 100
    assert len(arrivals) > 50 and arrivals[-1] - arrivals[0] > 0.1


def test_the_openai_client_works_through_it(gateway, replicas):
    http = gateway.client(host="acme.localhost")
    with openai.OpenAI(
        base_url=f"https://127.0.0.1:{gateway.port}/v1", api_key=replicas.keys["acme"], http_client=http, max_retries=0
    ) as client:
        messages = [{"role": "user", "content": "hello"}]
        answer = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, temperature=0)
        assert {s["name"] for s in answer.model_extra["forget_sets"]} == {"anna", "bert", "cleo"}
        stream = client.chat.completions.create(model="tiny", messages=messages, max_tokens=8, stream=True)
        assert len(list(stream)) > 1
        assert next(iter(client.models.list())).id == "tiny"


def test_a_body_that_is_too_large_ends_at_the_gateway(gateway, replicas, prompts):
    before = [replicas.servers[node].log.count("413") for node in ("a", "b")]
    with gateway.client(replicas.keys["client"]) as client:
        refused = completion(client, "x" * (5 * 2**20))
        assert (refused.status_code, refused.json()["error"]["code"]) == (413, "body_too_large")
        assert completion(client, prompts[0]).status_code == 200
    assert [replicas.servers[node].log.count("413") for node in ("a", "b")] == before


def test_a_name_that_is_nobodys_gets_no_handshake(gateway, replicas, prompts):
    with gateway.client(replicas.keys["client"], "other.localhost") as client, pytest.raises(httpx.ConnectError):
        completion(client, prompts[0])
    with gateway.client(replicas.keys["client"]) as client:
        assert client.get("/v1/models", headers={"host": "other.localhost"}).status_code == 421


def test_too_many_requests_with_one_key_are_429_and_leave_other_keys_alone(replicas, prompts):
    with replicas.gateway("limited", shipped_limits=True) as limited:
        with limited.client(replicas.keys["client"]) as client, ThreadPoolExecutor(16) as pool:
            answers = list(pool.map(lambda _: client.get("/v1/models"), range(150)))
        with limited.client(replicas.keys["globex"], "globex.localhost") as client:
            assert completion(client, prompts[0]).status_code == 200
    refused = [a for a in answers if a.status_code == 429]
    assert len(refused) > 50 and {a.status_code for a in answers} == {200, 429}
    assert refused[0].json()["error"]["code"] == "rate_limit_exceeded" and refused[0].headers["retry-after"] == "1"


class Swallower:
    """A peer that takes every request and answers none: it closes when the request is there."""

    def __init__(self):
        self.requests: list[bytes] = []
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.address = f"127.0.0.1:{self._listener.getsockname()[1]}"
        threading.Thread(target=self._swallow, daemon=True).start()

    def _swallow(self):
        while True:
            connection, _ = self._listener.accept()
            self.requests.append(connection.recv(65536))
            connection.close()


def test_a_post_that_was_sent_is_never_sent_again_and_one_that_could_not_be_is(replicas, prompts):
    swallower, (real, _) = Swallower(), replicas.addresses()
    with replicas.gateway("retries", [swallower.address, real]) as gateway:
        with gateway.client(replicas.keys["client"]) as client:
            answers = [completion(client, prompts[0]) for _ in range(4)]
    lost = [a for a in answers if a.status_code != 200]
    assert {(a.status_code, a.json()["error"]["code"]) for a in lost} == {(503, "unavailable")}
    assert len(lost) == len([r for r in swallower.requests if r.startswith(b"POST")]) >= 1
    assert sum(f'"servers":"{swallower.address}, ' in line for line in gateway.log.splitlines()) == 0
    with replicas.gateway("refused", [f"127.0.0.1:{free_port()}", real]) as gateway:
        with gateway.client(replicas.keys["client"]) as client:
            for _ in range(4):
                outcome = Outcome(0, 0)
                ask(client, prompts[0], 4, outcome)
                assert outcome.status == 200


def test_the_log_has_no_key_and_no_secret(gateway, replicas, prompts):
    with gateway.client(replicas.keys["acme"], "acme.localhost") as client:
        completion(client, "a very secret prompt")
    log = gateway.log
    assert '"tenant":"acme"' in log and '"forget_sets":"anna@' in log
    for secret in (*replicas.keys.values(), (replicas.site / "gateway-secret").read_text(), "very secret"):
        assert secret not in log
