"""`POST /v1/forget_sets`: who may use it, what it takes, and where sets may come from."""

import os
import shutil

import pytest
from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from fastapi.testclient import TestClient

from support.engine.tiny import make_forget_set, make_target
from unlearngate.artefact import ADAPTER_FILE
from unlearngate.errors import AuditUnavailableError, UnlearngateError
from unlearngate.server.http.admin import admin_routes
from unlearngate.server.http.cards import set_cards
from unlearngate.server.sets.caller import Caller
from unlearngate.server.sets.lifecycle import Lifecycle
from unlearngate.server.sets.policy import Policy
from unlearngate.server.sets.registry import Registry
from unlearngate.server.sets.store import Store
from unlearngate.target import identify_target

ADMIN = Caller(key_id="root", admin=True)


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A target, and versions 1 to 3 of anna."""
    root = tmp_path_factory.mktemp("made")
    target = make_target(root / "target", seed=1)
    return target, {
        i: make_forget_set(root / f"v{i}", target, seed=i, rank=1, name="anna", version=str(i)) for i in (1, 2, 3)
    }


@pytest.fixture
def lifecycle(made, tmp_path):
    """A server's sets: anna at version 1 in the watched folder, version 2 in STATE/incoming, version 3 outside."""
    target, versions = made
    shutil.copytree(versions[1].folder, tmp_path / "sets" / "anna")
    store = Store(tmp_path / "state")
    shutil.copytree(versions[2].folder, store.incoming / "anna-2")
    shutil.copytree(versions[3].folder, tmp_path / "outside" / "anna-3")
    lifecycle = Lifecycle(Registry(identify_target(target), tmp_path / "bindings"), tmp_path / "sets", store)
    lifecycle.start()
    yield lifecycle
    store.close()


def client_of(lifecycle, caller=ADMIN):
    async def refuse(request, error):
        return JSONResponse(
            {"error": {"message": error.message, "code": error.code, "param": error.param}}, error.http_status
        )

    async def malformed(request, error):
        return JSONResponse({"error": {"message": str(error.errors()[0]["msg"]), "code": "malformed"}}, 400)

    app = FastAPI()
    app.state.max_body_bytes = 2**20
    app.add_exception_handler(UnlearngateError, refuse)
    app.add_exception_handler(RequestValidationError, malformed)

    @app.middleware("http")
    async def identify(request: Request, call_next):
        request.state.caller = caller
        return await call_next(request)

    app.include_router(admin_routes(lifecycle))
    return TestClient(app)


def change(client, action, name="anna", **more):
    return client.post("/v1/forget_sets", json={"action": action, "name": name, **more})


def shown(response):
    """Version, current, pinned of every version that the answer names."""
    assert response.status_code == 200, response.text
    return [(v["version"], v["current"], v["pinned"]) for v in response.json()["versions"]]


def error(response):
    body = response.json()["error"]
    return response.status_code, body["code"], body["message"]


def test_every_action_answers_with_the_versions_there_are_then(lifecycle, made):
    client = client_of(lifecycle)
    first = made[1][1].digest
    assert shown(change(client, "pin")) == [("1", True, True)]
    assert shown(change(client, "replace", path="anna-2")) == [("2", True, False), ("1", False, True)]
    assert shown(change(client, "replace", digest=first[:8])) == [("1", True, True)]
    assert shown(change(client, "unpin", digest=first)) == [("1", True, False)]
    assert shown(change(client, "retire")) == []
    assert shown(change(client, "register", path="anna")) == [("1", True, False)]
    assert lifecycle.registry.get("anna").digest == first


def test_only_an_admin_changes_sets_or_is_told_their_versions(lifecycle):
    for caller in (Caller(), Caller(key_id="acme", tenant="acme", metrics=True)):
        assert error(change(client_of(lifecycle, caller), "retire"))[:2] == (403, "admin_required")
    assert lifecycle.registry.versions("anna")
    policy = Policy(lifecycle.registry, served_name="tiny", num_branches=2)
    assert "versions" not in set_cards(policy, Caller())[0]
    assert [v["version"] for v in set_cards(policy, ADMIN)[0]["versions"]] == ["1"]


@pytest.mark.parametrize(
    "fields, status, code, sentence",
    [
        ({"action": "register", "path": "anna-2"}, 409, "conflict", "is there already, as anna@"),
        ({"action": "replace", "name": "bert", "path": "anna-2"}, 404, "forget_set_not_found", "the action 'register'"),
        ({"action": "register", "name": "bert", "path": "anna-2"}, 400, "invalid_artefact", "holds forget set 'anna'"),
        ({"action": "retire", "name": "bert"}, 404, "forget_set_not_found", "there is nothing to retire"),
        ({"action": "pin", "digest": "0" * 8}, 404, "forget_set_not_found", "there are: anna@"),
        ({"action": "replace", "digest": "0" * 64}, 404, "forget_set_not_found", "there are: anna@"),
        ({"action": "replace", "path": "nowhere"}, 404, "path_not_found", "there is no such folder below"),
        ({"action": "replace"}, 400, "malformed", "takes a name and path or digest, got no more"),
        ({"action": "replace", "path": "a", "digest": "0" * 8}, 400, "malformed", "got path+digest"),
        ({"action": "retire", "path": "anna"}, 400, "malformed", "takes a name and nothing more or digest, got path"),
        ({"action": "register", "digest": "0" * 8}, 400, "malformed", "takes a name and path, got digest"),
        ({"action": "purged"}, 400, "malformed", "takes a name and case, got no more"),
        ({"action": "purged", "case": "0" * 8}, 400, "malformed", "should match pattern"),
        ({"action": "pin", "case": "0" * 64}, 400, "malformed", "takes a name and nothing more or digest, got case"),
        ({"action": "purged", "case": "0" * 64}, 409, "conflict", "there is no audit log"),
        ({"action": "pin", "digest": "0" * 7}, 400, "malformed", "should match pattern"),
        ({"action": "pin", "name": "../anna"}, 400, "malformed", "should match pattern"),
        ({"action": "pin", "force": True}, 400, "malformed", "Extra inputs"),
        ({"action": 1}, 400, "malformed", "'register', 'replace'"),
    ],
)
def test_a_change_that_cannot_be_made_says_why_and_changes_nothing(lifecycle, fields, status, code, sentence):
    before = lifecycle.registry.get("anna")
    response = client_of(lifecycle).post("/v1/forget_sets", json={"name": "anna", **fields})
    found = error(response)
    assert found[:2] == (status, code) and sentence in found[2]
    assert lifecycle.registry.versions("anna") == [before]


def test_a_broken_set_is_refused_with_the_reason_and_the_old_version_stays(lifecycle):
    with (lifecycle.store.incoming / "anna-2" / ADAPTER_FILE).open("ab") as file:
        file.write(b"x")
    status, code, message = error(change(client_of(lifecycle), "replace", path="anna-2"))
    assert (status, code) == (400, "invalid_artefact") and "was changed or damaged" in message
    assert lifecycle.registry.get("anna").manifest.version == "1"


# Where sets may come from


def paths_outside(root):
    return [
        str(root / "outside" / "anna-3"),
        "../outside/anna-3",
        "anna/../../outside/anna-3",
        str(root / "sets" / ".." / "outside" / "anna-3"),
        str(root / "state" / "incoming" / ".." / ".." / "outside" / "anna-3"),
        str(root / "sets-of-another" / "anna-3"),
        str(root / "state" / "sets"),
        str(root / "sets"),
        "/",
        "/etc",
        ".",
        "anna\0",
    ]


def test_a_path_outside_of_the_folders_is_refused_without_a_look_at_it(lifecycle, tmp_path):
    shutil.copytree(tmp_path / "outside", tmp_path / "sets-of-another")
    client = client_of(lifecycle)
    for path in paths_outside(tmp_path):
        status, code, message = error(change(client, "replace", path=path))
        assert (status, code) == (403, "path_not_allowed") and "is not below" in message, path
        # The same, whether there is such a folder or not.
        gone = error(change(client, "replace", path=path.replace("anna-3", "gone")))
        assert gone[:2] == (status, code)
    assert lifecycle.registry.get("anna").manifest.version == "1"


@pytest.mark.parametrize("place", ["sets", "state/incoming"])
@pytest.mark.parametrize("shape", ["folder", "parent", "chain", "loop"])
def test_a_path_through_a_link_is_refused(lifecycle, tmp_path, place, shape):
    root = tmp_path / place
    if shape == "folder":
        (root / "link").symlink_to(tmp_path / "outside" / "anna-3")
    elif shape == "parent":
        (root / "link").symlink_to(tmp_path / "outside")
    elif shape == "chain":
        (root / "first").symlink_to(tmp_path / "outside" / "anna-3")
        (root / "link").symlink_to("first")
    else:
        (root / "link").symlink_to("link")
    path = "link/anna-3" if shape == "parent" else "link"
    for named in (path, str(root / path)):
        status, code, message = error(change(client_of(lifecycle), "replace", path=named))
        assert (status, code) == (403, "path_not_allowed") and "goes through the link" in message
    assert lifecycle.registry.get("anna").manifest.version == "1"


def test_a_link_inside_of_a_set_is_refused(lifecycle, made):
    adapter = lifecycle.store.incoming / "anna-2" / ADAPTER_FILE
    adapter.unlink()
    adapter.symlink_to(made[1][2].folder / ADAPTER_FILE)
    status, code, message = error(change(client_of(lifecycle), "replace", path="anna-2"))
    assert (status, code) == (400, "invalid_artefact") and "leads out of the folder" in message


def test_a_folder_of_sets_that_is_itself_behind_a_link_can_be_named_both_ways(made, tmp_path):
    target, versions = made
    shutil.copytree(versions[1].folder, tmp_path / "real" / "anna")
    os.symlink(tmp_path / "real", tmp_path / "sets")
    store = Store(tmp_path / "state")
    lifecycle = Lifecycle(Registry(identify_target(target), tmp_path / "bindings"), tmp_path / "sets", store)
    lifecycle.start()
    client = client_of(lifecycle)
    for path in ("anna", str(tmp_path / "sets" / "anna"), str(tmp_path / "real" / "anna")):
        assert shown(change(client, "replace", path=path)) == [("1", True, False)]
    store.close()


def test_a_change_and_what_is_in_force_after_it_are_written_down(lifecycle, made):
    """What the audit log gets; a line that could not be written is tried again, and nothing is written twice."""
    _, versions = made
    lines, full = [], [True]

    def write_event(event, **fields):
        if full:
            raise AuditUnavailableError("the disk is full")
        lines.append((event, fields))

    lifecycle.write_event = write_event
    with pytest.raises(AuditUnavailableError):
        lifecycle.publish()
    full.clear()
    for _ in range(2):
        lifecycle.publish()
    client_of(lifecycle).post("/v1/forget_sets", json={"action": "pin", "name": "anna"}).raise_for_status()
    wish = {"action": "replace", "name": "anna", "path": "anna-2"}
    client_of(lifecycle).post("/v1/forget_sets", json=wish).raise_for_status()
    first, second = versions[1].digest, versions[2].digest
    assert lines == [
        ("sets", {"current": {"anna": first}, "pinned": {}, "forced": [], "canaries": {}}),
        ("change", {"key": ADMIN.key_id, "action": "pin", "name": "anna"}),
        ("sets", {"current": {"anna": first}, "pinned": {"anna": [first]}, "forced": [], "canaries": {}}),
        ("change", {"key": ADMIN.key_id, **wish}),
        ("sets", {"current": {"anna": second}, "pinned": {"anna": [first]}, "forced": [], "canaries": {}}),
    ]
    assert client_of(lifecycle).post("/v1/forget_sets", json={**wish, "path": "nowhere"}).status_code == 404
    assert len(lines) == 5


# What cannot act


@pytest.fixture
def idle(made, lifecycle):
    """Versions 4 to 6 of anna in STATE/incoming, none of which takes anything away."""
    target, _ = made
    fields = {
        4: {"recommended": {"weight": 0.0, "keep_ratio": 0.1, "gate_nats": 0.0}},
        5: {"recommended": {"weight": 1.0, "keep_ratio": 0.1, "gate_nats": 7.0}},
        6: {"metrics": {"forget_gate_open": 0.007}},
    }
    return {
        i: make_forget_set(
            lifecycle.store.incoming / f"anna-{i}", target, seed=i, rank=1, name="anna", version=str(i), **more
        )
        for i, more in fields.items()
    }


def test_a_purge_is_noted_in_the_audit_log_and_changes_nothing(lifecycle):
    before, lines = lifecycle.registry.versions("anna"), []
    lifecycle.publish()
    lifecycle.write_event = lambda event, **fields: lines.append((event, fields))
    wish = {"action": "purged", "case": "5e" * 32}
    assert shown(change(client_of(lifecycle), **wish)) == [("1", True, False)]
    assert shown(change(client_of(lifecycle), name="never-passed", **wish)) == []
    named = ("anna", "never-passed")
    assert lines == [("change", {"key": ADMIN.key_id, "name": name, **wish}) for name in named]
    assert lifecycle.registry.versions("anna") == before


@pytest.mark.parametrize("number, sentence", [(4, "weight is 0"), (5, "at 7 nats"), (6, "at 0.7% of the forget")])
@pytest.mark.parametrize("action", ["replace", "register"])
def test_a_version_that_cannot_act_takes_no_place_unless_it_is_forced(lifecycle, idle, action, number, sentence):
    client, lines = client_of(lifecycle), []
    if action == "register":
        change(client, "retire")
    before = lifecycle.registry.versions("anna")
    lifecycle.write_event = lambda event, **fields: lines.append((event, fields))
    wish = {"action": action, "name": "anna", "path": f"anna-{number}"}
    for query in ({}, {"force": "false"}):
        status, code, message = error(client.post("/v1/forget_sets", json=wish, params=query))
        assert (status, code) == (400, "invalid_artefact")
        assert "would be in force and do nothing" in message and sentence in message and "?force=true" in message
    assert lifecycle.registry.versions("anna") == before and lines == []
    forced = client.post("/v1/forget_sets", json=wish, params={"force": "true"})
    assert shown(forced) == [(str(number), True, False)]
    assert lines == [
        ("change", {"key": ADMIN.key_id, **wish, "forced": True}),
        ("sets", {"current": {"anna": idle[number].digest}, "pinned": {}, "forced": ["anna"], "canaries": {}}),
    ]


def test_going_back_to_a_pinned_version_that_cannot_act_must_be_forced_again(lifecycle, idle):
    client = client_of(lifecycle)
    wish = {"action": "replace", "name": "anna", "path": "anna-4"}
    client.post("/v1/forget_sets", json=wish, params={"force": "1"}).raise_for_status()
    change(client, "pin").raise_for_status()
    assert shown(change(client, "replace", path="anna-2")) == [("2", True, False), ("4", False, True)]
    assert error(change(client, "replace", digest=idle[4].digest))[:2] == (400, "invalid_artefact")
    assert shown(change(client, "unpin", digest=idle[4].digest)) == [("2", True, False)]


def test_only_taking_a_version_in_can_be_forced(lifecycle):
    for action in ("retire", "pin", "unpin"):
        wish = {"action": action, "name": "anna"}
        response = client_of(lifecycle).post("/v1/forget_sets", json=wish, params={"force": "true"})
        assert error(response) == (400, "invalid_request_error", f"the action {action!r} has nothing to force")


# Paths that no file system takes


@pytest.mark.parametrize(
    "path, status, code",
    [
        ("a" * 5000, 400, "malformed"),
        ("a/" * 2000 + "a" * 200, 400, "malformed"),
        ("a" * 4096, 404, "path_not_found"),
        ("a" * 256, 404, "path_not_found"),
        ("anna/" + "b" * 300, 404, "path_not_found"),
        ("a/" * 2000, 404, "path_not_found"),
        ("\u00e9" * 200, 404, "path_not_found"),
        ("anna\0" * 100, 403, "path_not_allowed"),
        ("\0", 403, "path_not_allowed"),
        ("/" + "a" * 4000, 403, "path_not_allowed"),
        ("../" * 1300, 403, "path_not_allowed"),
        (".", 403, "path_not_allowed"),
        ("", 400, "malformed"),
    ],
    ids=lambda value: str(value)[:8].replace("\0", "NUL"),
)
@pytest.mark.parametrize("action", ["register", "replace"])
def test_a_path_that_no_file_can_have_is_an_error_of_the_request(lifecycle, action, path, status, code):
    found = error(change(client_of(lifecycle), action, path=path))
    assert found[:2] == (status, code) and len(found[2]) < 1000


def test_half_of_a_surrogate_pair_is_an_error_of_the_request(lifecycle):
    for field in ("path", "name", "action"):
        body = b'{"action": "replace", "name": "anna", "path": "anna", "%s": "\\ud800"}' % field.encode()
        headers = {"content-type": "application/json"}
        assert client_of(lifecycle).post("/v1/forget_sets", content=body, headers=headers).status_code == 400


def test_a_folder_that_cannot_be_read_is_an_error_of_the_request(lifecycle, monkeypatch):
    def denied(self):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("pathlib.Path.is_dir", denied)
    status, code, message = error(change(client_of(lifecycle), "replace", path="anna-2"))
    assert (status, code) == (404, "path_not_found") and "(Permission denied)" in message
