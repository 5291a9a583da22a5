"""Forget sets that change on two servers under load: docs/deployment.md's orders of doing it, and the wrong one."""

import shutil
import threading
import time
from contextlib import contextmanager

import httpx
import pytest

from support.deploy.gateway_load import Load
from unlearngate.placing import place
from unlearngate.server.http.keys import KeysFile, read_keys, write_keys

pytestmark = pytest.mark.e2e


def wait_until(condition, timeout_s=60):
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline
        time.sleep(0.05)


def judged(replicas, load, prompts):
    """Failed requests, and tokens that are not those of the sets that their answer reports."""
    answered = [o for o in load.outcomes if not o.failed]
    wrong = sum(replicas.wrong_tokens(prompts[o.prompt], o.tokens, o.sets) for o in answered)
    return [o for o in load.outcomes if o.failed], answered, wrong


def test_a_version_is_replaced_server_by_server_without_a_request_that_has_none(
    replicas, gateway, prompts, print_figures
):
    old, new = replicas.reference_of("anna", "1"), replicas.reference_of("anna", "2")
    load = Load(gateway, replicas.keys["acme"], "acme.localhost", prompts, max_tokens=24, threads=6)
    with load.running():
        load.wait_for(25)
        for node in ("a", "b"):
            version = replicas.versions["anna", "2"]
            place(version, replicas.base / node / "sets" / "anna", replace=True)
            wait_until(lambda node=node, digest=version.digest: replicas.served_version(node, "anna") == digest)
            load.wait_for(25)
        done_at = time.monotonic()
        load.wait_for(25)
    failed, answered, wrong = judged(replicas, load, prompts)
    others = [o for o in answered if o.sets[0] not in (old, new) or len(o.sets) != 3]
    late = [o for o in answered if o.began > done_at and o.sets[0] != new]
    count = {v: sum(o.sets[0] == r for o in answered) for v, r in (("old", old), ("new", new))}
    print_figures(
        f"rolling replacement: {len(load.outcomes)} requests, {count['old']} by the old version, {count['new']} by the "
        f"new: {len(failed)} failed, {len(others)} without the required set, {len(late)} old ones afterwards, "
        f"{wrong} wrong tokens"
    )
    assert failed == others == late == [] and wrong == 0 and min(count.values()) > 0


@contextmanager
def orchestrated(replicas, gateway):
    """What Kubernetes does with a readiness probe: who is not ready gets no requests. Yields what it saw."""
    stop, seen = threading.Event(), []

    def follow():
        before = ["a", "b"]
        while not stop.is_set():
            ready = [node for node in ("a", "b") if replicas.ready(node)]
            if ready != before and ready:
                gateway.use(replicas.addresses(*ready))
            if ready != before:
                seen.append(ready)
            before = ready
            stop.wait(0.1)

    thread = threading.Thread(target=follow)
    thread.start()
    try:
        yield seen
    finally:
        stop.set()
        thread.join(timeout=30)
        gateway.use(replicas.addresses())


@pytest.fixture
def keys_requiring_dora(replicas):
    """Gives a node a keys file in which acme's key requires dora too; afterwards all is as before."""
    old = read_keys(replicas.site / "keys.json")
    keys = [
        key.model_copy(update={"required": (*key.required, "dora")}) if key.id == "acme" else key for key in old.keys
    ]

    yield lambda node: write_keys(replicas.base / node / "keys.json", KeysFile(keys=tuple(keys)))
    for node in ("a", "b"):
        write_keys(replicas.base / node / "keys.json", old)
        shutil.rmtree(replicas.base / node / "sets" / "dora", ignore_errors=True)
        wait_until(lambda node=node: replicas.served_version(node, "dora") is None)


def dora_in(outcome):
    return any(reference.startswith("dora@") for reference in outcome.sets)


def test_a_set_that_becomes_required_set_first_then_key_fails_no_request(
    replicas, gateway, prompts, keys_requiring_dora, print_figures
):
    load = Load(gateway, replicas.keys["acme"], "acme.localhost", prompts, max_tokens=24, threads=6)
    dora = replicas.versions["dora", "1"]
    with load.running(), orchestrated(replicas, gateway) as seen:
        load.wait_for(20)
        for node in ("a", "b"):
            place(dora, replicas.base / node / "sets" / "dora")
        for node in ("a", "b"):
            wait_until(lambda node=node: replicas.served_version(node, "dora") == dora.digest)
        for node in ("a", "b"):
            keys_requiring_dora(node)
        required_at = time.monotonic()
        load.wait_for(40)
    failed, answered, wrong = judged(replicas, load, prompts)
    without = [o for o in answered if o.began > required_at and not dora_in(o)]
    print_figures(
        f"newly required, set first: {len(load.outcomes)} requests, {len(failed)} failed, {len(without)} without it "
        f"once it was required, {wrong} wrong tokens; readiness changed {len(seen)} times"
    )
    assert failed == without == seen == [] and wrong == 0


def test_a_server_that_lacks_what_became_required_is_left_out_until_it_has_it(
    replicas, gateway, prompts, keys_requiring_dora, print_figures
):
    """The wrong order: the key's requirement is everywhere before the set is on server a."""
    load = Load(gateway, replicas.keys["acme"], "acme.localhost", prompts, max_tokens=24, threads=6)
    dora = replicas.versions["dora", "1"]
    with load.running(), orchestrated(replicas, gateway) as seen:
        load.wait_for(20)
        place(dora, replicas.base / "b" / "sets" / "dora")
        wait_until(lambda: replicas.served_version("b", "dora") == dora.digest)
        for node in ("a", "b"):
            keys_requiring_dora(node)
        required_at = time.monotonic()
        wait_until(lambda: ["b"] in seen)
        left_out_at = time.monotonic()
        assert httpx.get(f"{replicas.servers['a'].url}/health").status_code == 200  # nobody should start it again
        load.wait_for(30)
        place(dora, replicas.base / "a" / "sets" / "dora")
        wait_until(lambda: seen and seen[-1] == ["a", "b"])
        load.wait_for(30)
    failed, answered, wrong = judged(replicas, load, prompts)
    without = [o for o in answered if o.began > required_at and not dora_in(o)]
    late = [o for o in failed if o.began > left_out_at + 0.5]
    print_figures(
        f"newly required, key first: {len(load.outcomes)} requests, {len(failed)} refused "
        f"({sorted({str(o.code) for o in failed})}) in the {left_out_at - required_at:.2f} s until the server was left "
        f"out, {len(late)} later; {len(without)} answered without it, {wrong} wrong tokens"
    )
    assert without == late == [] and wrong == 0
    assert {o.code for o in failed} <= {"forget_set_unavailable"}
