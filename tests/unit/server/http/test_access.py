"""Who asks: keys, the gateway's headers, and paths that are closed."""

import secrets

import anyio
import pytest
from fastapi import Depends, FastAPI, Request
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from unlearngate.errors import UnlearngateError, UnsupportedDeploymentError
from unlearngate.server.http.access import OPEN_PATHS, Access, AccessControl, require_admin, require_metrics
from unlearngate.server.http.gateway import Gateway
from unlearngate.server.http.keyring import Keyring
from unlearngate.server.http.keys import ApiKey, KeysFile, hash_secret, write_keys

GATEWAY = secrets.token_hex(32)
PROOF = {"x-unlearngate-gateway": GATEWAY}
KEYS = {
    "acme": {"required": ("a",), "default": ("b",), "allowed": ("c",)},
    "globex": {"allowed": ("*",), "metrics": True},
    "root": {"admin": True},
}


@pytest.fixture
def keyring(tmp_path):
    keys = [ApiKey(id=f"{t}-key", tenant=t, sha256=hash_secret(f"key of {t}"), **v) for t, v in KEYS.items()]
    write_keys(tmp_path / "keys", KeysFile(keys=tuple(keys)))
    return Keyring(tmp_path / "keys")


def client_of(access: Access) -> TestClient:
    async def refuse(request, error):
        return JSONResponse({"error": {"message": error.message, "code": error.code}}, error.http_status)

    app = FastAPI()
    app.add_middleware(AccessControl, access=access, refuse=refuse)
    app.add_exception_handler(UnlearngateError, refuse)

    @app.post("/v1/ask")
    async def ask(raw_request: Request, body: dict) -> dict:
        caller = raw_request.state.caller
        return {name: getattr(caller, name) for name in caller.__slots__ if name != "allowed"}

    @app.get("/admin", dependencies=[Depends(require_admin)])
    async def admin() -> dict:
        return {}

    @app.get("/metrics", dependencies=[Depends(require_metrics)])
    async def metrics() -> dict:
        return {}

    @app.get("/health")
    async def health() -> dict:
        return {"warning": access.warning()}

    return TestClient(app)


def bearer(tenant):
    return {"Authorization": f"Bearer key of {tenant}"}


def code(response):
    return response.status_code, response.json()["error"]["code"]


def test_without_options_everybody_is_the_same_caller_and_nobody_is_admin():
    client = client_of(Access())
    said = client.post("/v1/ask", json={}, headers={"authorization": "Bearer none"}).json()
    assert (said["key_id"], said["tenant"], said["default"], said["admin"]) == (None, None, None, False)
    assert said["required_by_key"] == said["required_by_gateway"] == []
    assert code(client.get("/admin")) == (403, "admin_required")
    assert client.get("/metrics").status_code == 200


def test_a_key_brings_its_tenant_and_sets(keyring):
    client = client_of(Access(keyring))
    for scheme in ("Bearer", "bearer", "BEARER"):
        said = client.post("/v1/ask", json={}, headers={"authorization": f"{scheme} key of acme"}).json()
        assert (said["key_id"], said["tenant"], said["required_by_key"], said["default"]) == (
            "acme-key", "acme", ["a"], ["b"],
        )  # fmt: skip


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"authorization": ""},
        {"authorization": "Bearer"},
        {"authorization": "Bearer "},
        {"authorization": "Bearer none"},
        {"authorization": "Basic key of acme"},
        {"authorization": "key of acme"},
        {"authorization": "Bearer key of acme, Bearer key of acme"},
        [("authorization", "Bearer key of acme"), ("authorization", "Bearer key of acme")],
        {"authorization": f"Bearer {hash_secret('key of acme')}"},
        {"x-api-key": "key of acme"},
        [(b"authorization", b"Bearer \xff\xfe")],
    ],
)
@pytest.mark.parametrize("path", ["/v1/ask", "/v1/no-such-path", "/admin", "/metrics", "/health/", "/nothing"])
def test_without_a_known_key_every_closed_path_is_401_whether_it_exists_or_not(keyring, path, headers):
    client = client_of(Access(keyring))
    for send in (client.get, client.post, client.options):
        response = send(path, headers=headers)
        assert code(response) == (401, "invalid_api_key")
        assert response.headers["www-authenticate"] == "Bearer"
        assert "key of acme" not in response.text


def test_a_request_without_a_key_is_refused_before_its_body_is_read(keyring):
    def body():
        raise AssertionError("the body was read")
        yield b""

    access = Access(keyring)
    reached = []

    async def inner(scope, receive, send):
        reached.append(scope)

    async def refuse(request, error):
        return JSONResponse({}, error.http_status)

    sent = []

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "path": "/v1/ask", "headers": [], "method": "POST"}
    anyio.run(AccessControl(inner, access, refuse), scope, body, send)
    assert reached == [] and sent[0]["status"] == 401


def test_open_paths_need_no_key_and_tell_no_names(keyring):
    client = client_of(Access(keyring, Gateway(GATEWAY, demanded=True)))
    assert client.get("/health").json() == {"warning": None}
    keyring.path.write_text("{")
    warning = client.get("/health").json()["warning"]
    assert "the last good one is in force" in warning and not any(t in warning for t in [*KEYS, str(keyring.path)])
    assert {"/health", "/openapi.json"} <= OPEN_PATHS and "/metrics" not in OPEN_PATHS


def test_admin_routes_and_metrics_need_a_key_with_the_flag(keyring):
    client = client_of(Access(keyring))
    statuses = {t: [client.get(p, headers=bearer(t)).status_code for p in ("/admin", "/metrics")] for t in KEYS}
    assert statuses == {"acme": [403, 403], "globex": [403, 200], "root": [200, 200]}
    assert code(client.get("/metrics", headers=bearer("acme"))) == (403, "forbidden")


def test_a_key_may_name_what_it_is_allowed_and_an_admin_every_set(keyring):
    allowed = {caller.key_id: caller.allowed for caller in Access(keyring).known_callers()}
    assert allowed == {None: None, "acme-key": frozenset({"c"}), "globex-key": None, "root-key": None}


# The gateway


def test_the_gateway_adds_required_sets_and_says_the_tenant():
    client = client_of(Access(None, Gateway(GATEWAY)))
    headers = {**PROOF, "x-unlearngate-required": "b, a,b", "x-unlearngate-tenant": "acme"}
    said = client.post("/v1/ask", json={}, headers=headers).json()
    assert (said["required_by_gateway"], said["tenant"]) == (["b", "a"], "acme")
    twice = [*PROOF.items(), ("x-unlearngate-required", "a"), ("x-unlearngate-required", "b")]
    assert client.post("/v1/ask", json={}, headers=twice).json()["required_by_gateway"] == ["a", "b"]


@pytest.mark.parametrize("gateway", [Gateway(), Gateway(GATEWAY), Gateway(GATEWAY, demanded=True)])
@pytest.mark.parametrize(
    "headers",
    [
        {"x-unlearngate-required": "a"},
        {"x-unlearngate-required": ""},
        {"X-Unlearngate-Tenant": "acme"},
        {"x-unlearngate-gateway": ""},
        {"x-unlearngate-gateway": GATEWAY[:-1], "x-unlearngate-required": "a"},
        {"x-unlearngate-gateway": GATEWAY.upper() + "x"},
        {"x-unlearngate-anything": "a"},
        [(b"x-unlearngate-gateway", b"\xff" * 64)],
        [*PROOF.items(), ("x-unlearngate-gateway", "mine"), ("x-unlearngate-required", "a")],
        [("x-unlearngate-gateway", "mine"), *PROOF.items()],
    ],
)
def test_the_gateways_headers_from_somebody_else_are_refused_not_ignored(gateway, headers):
    response = client_of(Access(None, gateway)).post("/v1/ask", json={}, headers=headers)
    assert code(response) == (403, "gateway_only")
    assert GATEWAY not in response.text


@pytest.mark.parametrize(
    "headers",
    [
        {"x-unlearngate-required": ""},
        {"x-unlearngate-required": "a,,b"},
        {"x-unlearngate-required": "a;b"},
        {"x-unlearngate-required": "A"},
        {"x-unlearngate-require": "a"},
        {"x-unlearngate-tenant": ""},
        {"x-unlearngate-tenant": "acme, globex"},
        [("x-unlearngate-tenant", "acme"), ("x-unlearngate-tenant", "globex")],
    ],
)
def test_nonsense_from_the_gateway_is_refused_not_taken_for_no_restriction(headers):
    client = client_of(Access(None, Gateway(GATEWAY)))
    headers = [*PROOF.items(), *(headers if isinstance(headers, list) else headers.items())]
    response = client.post("/v1/ask", json={}, headers=headers)
    assert code(response) == (400, "invalid_request_error")


def test_a_demanded_gateway_is_demanded_on_every_closed_path_and_an_offered_one_is_not():
    demanded, offered = (client_of(Access(None, Gateway(GATEWAY, demanded=d))) for d in (True, False))
    for path in ("/v1/ask", "/metrics", "/nothing"):
        assert code(demanded.get(path)) == (403, "gateway_only")
    assert demanded.post("/v1/ask", json={}, headers=PROOF).status_code == 200
    assert demanded.get("/health").status_code == 200
    assert offered.post("/v1/ask", json={}).json()["required_by_gateway"] == []


def test_with_keys_and_a_gateway_both_count_and_must_agree(keyring):
    client = client_of(Access(keyring, Gateway(GATEWAY)))
    headers = {**PROOF, "x-unlearngate-required": "z"}
    assert code(client.post("/v1/ask", json={}, headers=headers)) == (401, "invalid_api_key")
    said = client.post("/v1/ask", json={}, headers={**headers, **bearer("acme")}).json()
    assert (said["required_by_key"], said["required_by_gateway"], said["tenant"]) == (["a"], ["z"], "acme")
    same, other = ({**PROOF, **bearer("acme"), "x-unlearngate-tenant": t} for t in ("acme", "globex"))
    assert client.post("/v1/ask", json={}, headers=same).status_code == 200
    assert code(client.post("/v1/ask", json={}, headers=other)) == (403, "tenant_mismatch")


@pytest.mark.parametrize("text", ["", "\n", "short", "x" * 31, "two words " * 10, "line\n" * 20, "\u00e9" * 40])
def test_a_secret_that_could_be_guessed_or_not_be_sent_is_refused(tmp_path, text):
    (tmp_path / "secret").write_text(text)
    with pytest.raises(UnsupportedDeploymentError, match="at least 32 printable ASCII characters") as refused:
        Gateway.from_file(tmp_path / "secret", demanded=False)
    assert not text.strip() or text.strip() not in str(refused.value)


def test_a_secret_file_may_end_with_a_newline(tmp_path):
    (tmp_path / "secret").write_text(f"{GATEWAY}\n")
    gateway = Gateway.from_file(tmp_path / "secret", demanded=True)
    assert client_of(Access(None, gateway)).post("/v1/ask", json={}, headers=PROOF).status_code == 200
