"""Sets of kind `verbatim` in the registry and the policy: no branch, no adapter, one strength."""

from pathlib import Path
from types import SimpleNamespace

import pytest

from support.engine.tiny import make_forget_set, make_target
from support.texts import save_texts
from unlearngate.artefact import load_forget_set
from unlearngate.errors import ArtefactError, ForbiddenError, InvalidRequestError, SentenceError, UnavailableSetError
from unlearngate.server.contract.plan import Plan, Term, VerbatimSet, sign, verify
from unlearngate.server.sets.caller import Caller
from unlearngate.server.sets.choices import parse_choices
from unlearngate.server.sets.lifecycle import Lifecycle
from unlearngate.server.sets.policy import MOST_VERBATIM, Policy
from unlearngate.server.sets.registry import Registry
from unlearngate.server.sets.store import Store
from unlearngate.target import identify_target

TEXT = "It was the age of wisdom, it was the age of foolishness, it was the epoch of belief."
ANYBODY = Caller()


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """Two uld sets, and two texts whose names sort before and between them."""
    root = tmp_path_factory.mktemp("verbatim")
    make_target(root / "target", seed=1)
    for seed, name in enumerate(["bert", "cleo"]):
        make_forget_set(root / "sets" / name, root / "target", seed=seed, rank=4)
    for name in ("age", "c"):
        save_texts(root / "sets" / name, TEXT + name)
    save_texts(root / "alone" / "age", TEXT)
    return root


def registry_of(root, folder="sets"):
    registry = Registry(identify_target(root / "target"), root / "bindings")
    registry.discover(root / folder)
    assert registry.refused == {}
    return registry


def policy_of(registry, **more):
    return Policy(registry, served_name="m", num_branches=1, **more)


def test_they_need_no_branch_and_count_against_none(root):
    registry = registry_of(root)
    decision = policy_of(registry).decide("m", ["c", "age", "cleo"], ANYBODY)
    assert [one.name for one in decision.sets] == ["age", "c", "cleo"]
    assert [one.name for one in decision.bound] == ["cleo"]
    named = tuple(VerbatimSet(registry.get(n).digest, str(registry.get(n).folder)) for n in ("age", "c"))
    plan = decision.plan(7)
    assert plan == Plan(7, 0.1, (Term(0, 1.0, 0.0),), verbatim=named)
    assert verify(sign(plan)) == plan


def test_alone_they_need_no_adapter(root):
    decision = policy_of(registry_of(root)).decide("m:forget=age", None, ANYBODY)
    assert decision.bound == [] and len(decision.plan(0).verbatim) == 1
    assert decision.report()[0]["weight"] == 1.0


def test_a_server_with_no_other_kind_has_no_branch_and_no_lora(root):
    registry = registry_of(root, "alone")
    branches = registry.branches(2)
    assert (branches.num_branches, branches.adapted_layers, branches.lora_target_modules()) == (0, 0, [])
    registry.limit(branches, registry.max_rank())
    registry.check(registry.get("age"))
    anna = make_forget_set(root / "anna", root / "target", seed=9, num_layers=registry.num_layers)
    with pytest.raises(ArtefactError, match="the engine was started without assistants"):
        registry.check(anna)


def test_they_fit_any_target(root, tmp_path):
    other = make_target(tmp_path / "other", seed=2)
    registry = Registry(identify_target(other), tmp_path / "bindings")
    registry.discover(root / "alone")
    assert list(registry.sets) == ["age"]


@pytest.mark.parametrize("changes", [{"weight": 0.5}, {"keep_ratio": 0.1}, {"gate_nats": 1}])
def test_there_is_no_strength_to_override(root, changes):
    with pytest.raises(InvalidRequestError, match="must be between"):
        policy_of(registry_of(root)).decide("m", parse_choices([{"name": "age", **changes}]), ANYBODY)


def test_a_required_one_stays_and_one_that_is_gone_fails_closed(root):
    policy = policy_of(registry_of(root), required_sets=["age"])
    assert [one.name for one in policy.decide("m", ["cleo"], ANYBODY).sets] == ["age", "cleo"]
    with pytest.raises(ForbiddenError):
        policy.decide("m", [], ANYBODY)
    policy.registry.publish({}, {})
    with pytest.raises(UnavailableSetError):
        policy.decide("m", None, ANYBODY)


def test_it_says_nothing_instead(root):
    registry = registry_of(root)
    assert registry.sentence(registry.get("age")) == ()
    with pytest.raises(SentenceError, match="kind 'verbatim'"):
        registry.sentence(registry.get("age"), "No.")


def test_a_request_has_at_most_so_many(root):
    policy = policy_of(registry_of(root))
    one = policy.registry.get("age").manifest
    many = [SimpleNamespace(name=f"s{n}", manifest=one) for n in range(MOST_VERBATIM + 1)]
    assert policy._misfit(many[:-1]) is None
    assert f"at most {MOST_VERBATIM} forget sets of kind 'verbatim'" in policy._misfit(many)


def test_versions_come_and_go_live_and_are_pinned(root, tmp_path):
    save_texts(tmp_path / "sets" / "age", TEXT)
    registry, store = Registry(identify_target(root / "target"), tmp_path / "b"), Store(tmp_path / "s")
    lifecycle = Lifecycle(registry, tmp_path / "sets", store)
    lifecycle.start()
    first = lifecycle.registry.get("age")
    assert (tmp_path / "s" / "sets" / first.digest) == first.folder
    lifecycle.pin("age")
    second = save_texts(tmp_path / "new" / "age", TEXT, TEXT[::-1])
    lifecycle.replace("age", second.folder)
    lifecycle.publish()
    policy = policy_of(lifecycle.registry)
    for reference, digest in (("age", second.digest), (f"age@{first.digest[:12]}", first.digest)):
        (named,) = policy.decide("m", [reference], ANYBODY).plan(0).verbatim
        assert named.digest == digest and load_forget_set(Path(named.folder)).name == "age"
    lifecycle.retire("age")
    lifecycle.publish()
    with pytest.raises(InvalidRequestError):
        policy.decide("m", ["age"], ANYBODY)
    store.close()
