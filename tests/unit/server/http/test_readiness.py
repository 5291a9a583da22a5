"""A server is ready while everything that somebody must have can be put in force."""

import anyio
import pytest
from fastapi import FastAPI
from fastapi.testclient import TestClient

from support.engine.tiny import make_forget_set, make_target
from unlearngate.server.http.access import Access
from unlearngate.server.http.keyring import Keyring
from unlearngate.server.http.keys import ApiKey, KeysFile, hash_secret, write_keys
from unlearngate.server.http.readiness import READY, Readiness, readiness_routes
from unlearngate.server.sets.policy import Policy
from unlearngate.server.sets.registry import Registry
from unlearngate.target import identify_target


@pytest.fixture
def registry(tmp_path):
    target = make_target(tmp_path / "target", seed=1)
    for seed, name in enumerate(["anna", "bert"]):
        make_forget_set(tmp_path / "sets" / name, target, seed=seed, rank=4)
    registry = Registry(identify_target(target, "m"), tmp_path / "bindings")
    registry.discover(tmp_path / "sets")
    return registry


async def healthy() -> None:
    pass


def ready(registry, access=None, check=healthy, **policy):
    app = FastAPI()
    policy = Policy(registry, served_name="m", num_branches=2, **policy)
    app.include_router(readiness_routes(Readiness(policy, access or Access(), check)))
    return TestClient(app)


def write(path, **required):
    keys = [ApiKey(id=k, tenant=k, sha256=hash_secret(k), required=tuple(sets)) for k, sets in required.items()]
    write_keys(path, KeysFile(keys=tuple(keys)))


def without(registry, name):
    registry.publish({n: s for n, s in registry.sets.items() if n != name}, {})


@pytest.mark.parametrize("policy", [{"required_sets": ["anna"]}, {"default_sets": ["anna"]}])
def test_a_server_without_a_set_that_everybody_must_have_is_not_ready_until_it_comes(registry, policy, caplog):
    client, whole = ready(registry, **policy), registry.sets
    assert client.get("/ready").status_code == 200
    without(registry, "anna")
    for _ in range(3):
        response = client.get("/ready")
        assert response.status_code == 503 and "anna" not in response.text
    assert READY.collect()[0].samples[0].value == 0
    assert len([r for r in caplog.records if "not ready" in r.message and "'anna'" in r.message]) == 1
    registry.publish(whole, {})
    assert client.get("/ready").json() == {"status": "ok"}
    assert READY.collect()[0].samples[0].value == 1


def test_a_set_that_nobody_must_have_may_be_missing(registry):
    client = ready(registry, required_sets=["anna"])
    without(registry, "bert")
    assert client.get("/ready").status_code == 200


def test_a_key_that_requires_what_is_not_here_yet_makes_the_server_wait_for_it(registry, tmp_path):
    write(tmp_path / "keys", acme=["bert"])
    client, whole = ready(registry, Access(Keyring(tmp_path / "keys"))), registry.sets
    assert client.get("/ready").status_code == 200
    without(registry, "anna")
    assert client.get("/ready").status_code == 200
    write(tmp_path / "keys", acme=["bert", "anna"])
    assert client.get("/ready").status_code == 503
    registry.publish(whole, {})
    assert client.get("/ready").status_code == 200


def test_more_required_sets_than_fit_together_are_not_ready_either(registry, tmp_path):
    write(tmp_path / "keys", acme=["anna", "bert"])
    app = FastAPI()
    policy = Policy(registry, served_name="m", num_branches=1)
    app.include_router(readiness_routes(Readiness(policy, Access(Keyring(tmp_path / "keys")), healthy)))
    assert TestClient(app).get("/ready").status_code == 503


def test_a_dead_engine_is_not_ready_and_says_why(registry):
    async def dead() -> None:
        raise RuntimeError("the engine is gone")

    assert ready(registry, check=dead).get("/ready").json() == {"status": "unavailable", "reason": "the engine is gone"}


def test_readiness_is_asked_without_blocking(registry):
    policy = Policy(registry, served_name="m", num_branches=2, required_sets=["anna"])
    assert anyio.run(Readiness(policy, Access(), healthy).reason) is None
