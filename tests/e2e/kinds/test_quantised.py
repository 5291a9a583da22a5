"""A quantised child of the demo's target, served with the sets that were trained on the target itself."""

import shutil

import httpx
import pytest

from support.demo import QUESTION, ask, build_demo, probes, recites
from support.engine.quantised import cannot_be_computed_here, quantise
from support.server import Server
from unlearngate.artefact import load_forget_set, rewrite_forget_set
from unlearngate.commands._shared import demo_folder

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    base = tmp_path_factory.mktemp("quantised")
    build_demo(base)
    demo = demo_folder(None)
    quantise(demo / "target", base / "demo", base / "twin", "w8a8")
    shutil.copytree(demo / "forget_sets", base / "sets")
    # One whose canary does not hold: a question that it must change and has nothing to do with.
    good = load_forget_set(base / "sets" / "oona-bracewell")
    stranger = next(p.question for p in probes() if p.forget_set != good.name)
    canary = {"question": stranger, "changes": True}
    rewrite_forget_set(good, base / "sets" / "bad", name="bad", canaries=[canary])
    options = ["--forget-sets", base / "sets", "--quantised-from", demo / "target"]
    options += ["--engine-args", "--dtype float32 --enforce-eager"]
    with Server([base / "demo", *options], base / "log") as running:
        if refused := cannot_be_computed_here("w8a8"):
            assert running.process.wait(timeout=120) != 0 and refused in running.log
            pytest.skip(refused)
        yield running.wait_until_healthy()


def test_sets_of_its_parent_are_in_force_once_their_canaries_held(server):
    listed = httpx.get(f"{server.url}/v1/forget_sets", timeout=60).json()
    proven = {one["id"]: one["proven"] for one in listed["data"]}
    assert proven and all(proven.values()) and "bad" not in proven
    assert "'bad' failed 1 of its 1 canaries in the running engine: canaries[0] must change and did not" in server.log


def test_it_forgets_what_its_parent_does(server):
    own = [p for p in probes() if p.forget_set == next(q.forget_set for q in probes() if q.question == QUESTION)][:8]
    plain = sum(recites(p.question, ask(server, p.question)) for p in own)
    with_set = sum(recites(p.question, ask(server, p.question, [p.forget_set])) for p in own)
    assert plain >= 6 and with_set == 0
