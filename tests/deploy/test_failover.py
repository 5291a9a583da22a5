"""One of two servers is killed under load, and comes back: who notices, and that nobody gets other sets."""

import time

import pytest

from support.deploy.gateway_load import Load

pytestmark = pytest.mark.e2e


def test_a_server_that_is_killed_costs_the_requests_it_had_and_no_other(replicas, gateway, prompts, print_figures):
    host, key = "acme.localhost", replicas.keys["acme"]
    load = Load(gateway, key, host, prompts, max_tokens=24, threads=8)
    with load.running():
        load.wait_for(40)
        killed_at = time.monotonic()
        replicas.servers["a"].process.kill()
        replicas.servers["a"].process.wait()
        load.wait_for(60)
    failed = [o for o in load.outcomes if o.failed]
    running = [o for o in load.outcomes if o.began <= killed_at <= o.ended]
    later = [o for o in failed if o.began > killed_at + 0.5]
    wrong_sets, wrong = judged(replicas, load, prompts)
    print_figures(
        f"failover: {len(load.outcomes)} requests, one of two servers killed: {len(failed)} failed of {len(running)} "
        f"that were running then, {len(later)} later; {wrong_sets} with other sets, {wrong} wrong tokens"
    )
    assert wrong_sets == wrong == 0
    assert later == [] and len(failed) <= len(running)
    assert {(o.status, o.code) for o in failed} <= {(503, "unavailable")}


def test_a_server_that_comes_back_gets_its_share(replicas, gateway, prompts, print_figures):
    replicas.servers["a"].stop()
    replicas.servers["a"] = replicas.start("a")
    replicas.servers["a"].wait_until_healthy()
    assert replicas.ready("a")
    gateway.use(replicas.addresses())
    load = Load(gateway, replicas.keys["acme"], "acme.localhost", prompts, max_tokens=24, threads=8)
    with load.running():
        load.wait_for(40)
    wrong_sets, wrong = judged(replicas, load, prompts)
    shares = [gateway.log.count(f'"servers":"{address}"') for address in replicas.addresses()]
    print_figures(
        f"back again: {len(load.outcomes)} requests, {sum(o.failed for o in load.outcomes)} failed, {wrong_sets} with "
        f"other sets, {wrong} wrong tokens; {shares[0]} by the server that came back"
    )
    assert not any(o.failed for o in load.outcomes) and wrong_sets == wrong == 0 and shares[0] > 0


def judged(replicas, load, prompts):
    """Answers with other sets than the required ones, and tokens that are not those sets'."""
    expected = tuple(replicas.reference_of(name) for name in ("anna", "bert", "cleo"))
    answered = [o for o in load.outcomes if not o.failed]
    wrong = sum(replicas.wrong_tokens(prompts[o.prompt], o.tokens, o.sets) for o in answered)
    return sum(o.sets != expected for o in answered), wrong
