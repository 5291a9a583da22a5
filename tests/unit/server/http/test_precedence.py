"""The table in docs/http.md of what is in force, row by row: it is the test."""

import json
import os
from itertools import chain
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import seed as hypothesis_seed
from hypothesis import strategies as st

from support.engine.tiny import make_forget_set, make_target
from unlearngate.errors import UnlearngateError
from unlearngate.server.sets.caller import Caller
from unlearngate.server.sets.choices import ForgetSetChoice, parse_choices
from unlearngate.server.sets.policy import Policy
from unlearngate.server.sets.registry import Registry
from unlearngate.target import identify_target

NAME = "tiny"
NUM_BRANCHES = 3
SEED = int(os.environ.get("UNLEARNGATE_SEED") or int.from_bytes(os.urandom(3)))
HEADER = "| --required-set | key: required |"


def rows() -> list[list[str]]:
    lines = iter((Path(__file__).parents[4] / "docs" / "http.md").read_text().splitlines())
    assert any(line.startswith(HEADER) for line in lines)
    next(lines)
    table = []
    for line in lines:
        if not line.startswith("|"):
            break
        table.append([cell.strip() for cell in line.strip("|").split("|")])
    return table


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("precedence")
    target = make_target(root / "target", seed=1)
    recommended = {"weight": 1.0, "keep_ratio": 0.1, "gate_nats": 1.0}
    for seed, name in enumerate("abcd"):
        make_forget_set(root / "sets" / name, target, seed=seed, rank=1, recommended=recommended)
    registry = Registry(identify_target(target, NAME), root / "bindings")
    registry.discover(root / "sets")
    return registry


def sets_of(cell: str) -> tuple[str, ...]:
    return () if cell == "-" else tuple(cell.split(","))


def default_of(cell: str) -> tuple[str, ...] | None:
    return None if cell == "-" else () if cell == "`[]`" else sets_of(cell)


def said(cell: str) -> tuple[str, list[ForgetSetChoice] | None]:
    """The model and the choices that a cell stands for."""
    if cell == "nothing":
        return NAME, None
    value = json.loads(cell.strip("`"))
    return (value.replace("NAME", NAME), None) if isinstance(value, str) else (NAME, parse_choices(value))


@pytest.mark.parametrize("row", rows(), ids="|".join)
def test_what_is_in_force_is_what_the_table_says(registry, row):
    server, key, gateway, default, key_default, says, expected = row
    policy = Policy(
        registry, served_name=NAME, num_branches=NUM_BRANCHES, default_sets=sets_of(default),
        required_sets=sets_of(server),
    )  # fmt: skip
    caller = Caller(required_by_key=sets_of(key), required_by_gateway=sets_of(gateway), default=default_of(key_default))
    model, choices = said(says)
    if expected[0].isdigit():
        with pytest.raises(UnlearngateError) as refused:
            policy.decide(model, choices, caller)
        assert f"{refused.value.http_status} {refused.value.code}" == expected
        return
    decision = policy.decide(model, choices, caller)
    assert ", ".join(f"{s['name']} ({s['by']})" for s in decision.report()) == expected.replace("none", "")
    for choice in choices or []:
        (held,) = [h for h in decision.in_force if h.forget_set.name == choice.name]
        for field, value in choice.model_dump(exclude={"name"}, exclude_none=True).items():
            assert getattr(held.strength, field) == value


def test_the_table_has_every_way_of_requiring_and_every_refusal():
    for column in range(3):
        assert any(row[column] != "-" for row in rows())
    refusals = {row[-1].split()[0] for row in rows() if row[-1][0].isdigit()}
    assert refusals == {"400", "403", "404", "503"} and len(rows()) > 30


# Random policies and requests

RECOMMENDED = {
    "a": {"weight": 1.0, "keep_ratio": 0.1, "gate_nats": 1.0},
    "b": {"weight": 0.5, "keep_ratio": 0.01, "gate_nats": 0.0},
    "c": {"weight": 2.0, "keep_ratio": 0.3, "gate_nats": 2.0},
    "d": {"weight": 1.5, "keep_ratio": 0.0, "gate_nats": 0.5},
}
BOUNDS = {
    "weight": {"low": 0.0, "high": 4.0},
    "keep_ratio": {"low": 0.0, "high": 1.0},
    "gate_nats": {"low": 0.0, "high": 20.0},
}


@pytest.fixture(scope="module")
def varied(tmp_path_factory):
    """Sets of different strengths in two servers: assistants beside a set of kind undial, without and with a tap."""
    root = tmp_path_factory.mktemp("varied")
    target = make_target(root / "target", seed=1)
    registries = []
    for tap_layer in (0, 1):
        sets = root / str(tap_layer)
        for seed, (name, recommended) in enumerate(RECOMMENDED.items()):
            make_forget_set(
                sets / name, target, seed=seed, rank=1, recommended=recommended, bounds=BOUNDS, tap_layer=tap_layer
            )
        make_forget_set(sets / "u", target, seed=9, rank=1, kind="undial")
        registry = Registry(identify_target(target, NAME), root / "bindings")
        registry.discover(sets, undial=True)
        registries.append(registry)
    return registries


known = st.sampled_from([*RECOMMENDED, "u"])
any_name = st.sampled_from([*RECOMMENDED, "u"] * 5 + ["z"])
some_names = st.lists(any_name, max_size=2, unique=True).map(tuple)
callers = st.builds(
    Caller,
    required_by_key=some_names,
    required_by_gateway=st.just(()) | some_names,
    default=st.none() | some_names,
    allowed=st.none() | st.frozensets(known, max_size=3),
)
values = st.sampled_from([None, None, None, 0.0, 0.01, 0.1, 0.3, 0.5, 1.0, 2.0, 5.0])
choices_of = st.none() | st.lists(
    st.builds(ForgetSetChoice, name=any_name, weight=values, keep_ratio=values, gate_nats=values)
    | known.map(lambda name: ForgetSetChoice(name=name)),
    max_size=3,
    unique_by=lambda choice: choice.name,
)


def test_required_sets_are_in_force_at_full_strength_or_the_request_is_refused(varied, print_counts):
    served = refused = 0

    @hypothesis_seed(SEED)
    @settings(max_examples=1200, deadline=None, database=None, suppress_health_check=list(HealthCheck))
    @given(st.sampled_from(varied), some_names, st.just(()) | some_names, callers, choices_of, st.integers(2, 4))
    def check(registry, required, default, caller, choices, num_branches):
        nonlocal served, refused
        policy = Policy(
            registry, served_name=NAME, num_branches=num_branches, default_sets=default, required_sets=required
        )
        everyone = {*required, *caller.required_by_key, *caller.required_by_gateway}
        try:
            decision = policy.decide(NAME, choices, caller)
        except UnlearngateError as error:
            refused += 1
            assert error.http_status in (400, 403, 404, 503)
            if caller.allowed is not None and choices:
                asked = {c.name for c in choices}
                hidden = {*RECOMMENDED, "u"} - {*policy.visible(caller)} - asked - everyone - {*default}
                listed = error.message.split(";")[-1] if error.http_status == 404 else ""
                assert not hidden & set(listed.replace(",", " ").split())
            return
        served += 1
        held = {h.forget_set.name: h for h in decision.in_force}
        assert everyone <= set(held)
        assert len(held) == len(decision.in_force)
        plan = decision.plan(1 if held else 0)
        branches = [name for name, h in sorted(held.items()) if h.forget_set.manifest.kind == "uld"]
        assert len(branches) <= num_branches and len(plan.terms) == len(branches)
        for name in everyone:
            recommended, strength = held[name].forget_set.manifest.recommended, held[name].strength
            assert strength.weight == recommended.weight and strength.gate_nats <= recommended.gate_nats
            assert held[name].by in ("server", "key", "gateway")
        if everyone:
            ratios = [held[name].forget_set.manifest.recommended.keep_ratio for name in branches]
            assert plan.keep_ratio == max(ratios, default=0.0)
        for term, name in zip(plan.terms, branches, strict=True):
            assert (term.weight, term.gate_nats) == (held[name].strength.weight, held[name].strength.gate_nats)
        added = set(held) - everyone
        named = {c.name for c in choices} if choices is not None else {*(caller.default or default)}
        assert added <= named | {*default}
        if choices is not None and caller.allowed is not None:
            assert added <= set(policy.visible(caller))

    check()
    print_counts(f"{served} decided, {refused} refused, UNLEARNGATE_SEED={SEED}")
    assert served > 200 and refused > 200


@pytest.fixture
def print_counts(capsys):
    def show(line):
        with capsys.disabled():
            print(f"\nrequired sets: {line}")

    return show


def test_a_key_cannot_tell_a_hidden_set_from_one_that_does_not_exist(registry):
    policy = Policy(registry, served_name=NAME, num_branches=3, required_sets=["a"])
    caller = Caller(required_by_key=("b",), allowed=frozenset({"c"}))
    messages = []
    for name in ("d", "e"):
        for model, choices in [(NAME, [name]), (f"{NAME}:forget={name}", None), (NAME, ["c", name])]:
            with pytest.raises(UnlearngateError) as refused:
                policy.decide(model, choices, caller)
            assert (refused.value.http_status, refused.value.code) == (404, "forget_set_not_found")
            messages.append(refused.value.message.replace(repr(name), "NAME"))
    assert set(messages) == {"forget set NAME is not one that this API key may name; it may name: a, b, c"}
    digest = registry.get("d").digest
    with pytest.raises(UnlearngateError) as refused:
        policy.decide(NAME, [f"d@{digest[:12]}"], caller)
    assert refused.value.message.endswith("it may name: a, b, c")
    assert policy.visible(caller) == ["a", "b", "c"] and policy.visible(Caller()) == ["a", "b", "c", "d"]


def test_another_version_of_a_required_set_is_refused_and_the_current_one_is_not(registry, tmp_path):
    target = make_target(tmp_path / "target", seed=1)
    older = make_forget_set(tmp_path / "a", target, seed=77, rank=1)
    two = Registry(registry.target, tmp_path / "bindings")
    two.discover(registry.get("a").folder.parent)
    two.publish(two.sets, {"a": [older]})
    policy = Policy(two, served_name=NAME, num_branches=3, required_sets=["a"])
    current = policy.decide(NAME, [f"a@{registry.get('a').digest[:12]}"], Caller())
    assert [(s["digest"], s["by"]) for s in current.report()] == [(registry.get("a").digest, "server")]
    with pytest.raises(UnlearngateError) as refused:
        policy.decide(NAME, [f"a@{older.digest[:12]}"], Caller())
    assert (refused.value.http_status, refused.value.code) == (403, "required_forget_set")
    assert "not another version of it" in refused.value.message
    unrequired = Policy(two, served_name=NAME, num_branches=3)
    assert unrequired.decide(NAME, [f"a@{older.digest[:12]}"], Caller()).sets == [older]


def test_the_refusal_of_none_names_what_is_required_for_this_caller_and_nothing_else(registry):
    policy = Policy(registry, served_name=NAME, num_branches=3, required_sets=["a"])
    with pytest.raises(UnlearngateError) as refused:
        policy.decide(NAME, [], Caller(required_by_key=("c",), allowed=frozenset()))
    assert "these are required for it: a, c; leave forget_sets out" in refused.value.message


def test_a_key_whose_sets_cannot_be_in_force_is_named_at_start_up(registry):
    policy = Policy(registry, served_name=NAME, num_branches=3, required_sets=["a"])
    callers = [Caller(key_id="good", required_by_key=("b",)), Caller(key_id="bad", required_by_key=("z",))]
    policy.refuse_impossible(callers[:1])
    with pytest.raises(UnlearngateError, match=r"refusing to start: API key 'bad': forget set 'z' must be in force"):
        policy.refuse_impossible(callers)
    crowded = Caller(key_id="crowded", required_by_key=tuple("bcd"))
    with pytest.raises(UnlearngateError, match=r"'crowded': at most 3 .*; required for this request: a, b, c, d"):
        policy.refuse_impossible(chain(callers[:1], [crowded]))
