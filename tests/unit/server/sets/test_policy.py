"""Which sets a request gets, and every way of asking wrongly."""

import json
import math

import pytest

from support.engine.tiny import EOS, make_forget_set, make_target, make_tokenizer
from unlearngate.errors import (
    ArtefactError,
    ForbiddenError,
    InvalidRequestError,
    UnavailableSetError,
    UnknownForgetSetError,
    UnsupportedDeploymentError,
)
from unlearngate.sentences import Sentences
from unlearngate.server.contract.plan import Plan, Term, sign, verify
from unlearngate.server.sets.caller import Caller
from unlearngate.server.sets.choices import ForgetSetChoice, parse_choices
from unlearngate.server.sets.decision import Decision
from unlearngate.server.sets.policy import Policy
from unlearngate.server.sets.registry import Registry
from unlearngate.target import identify_target

NAME = "org/model-7b"
ANYBODY = Caller()
RECOMMENDED = {
    "anna": {"weight": 1.0, "keep_ratio": 0.01, "gate_nats": 0.0},
    "bert": {"weight": 0.75, "keep_ratio": 0.3, "gate_nats": 1.5},
    "cleo": {"weight": 2.0, "keep_ratio": 0.1, "gate_nats": 0.5},
}
BOUNDS = {
    "weight": {"low": 0.5, "high": 2.5},
    "keep_ratio": {"low": 0.01, "high": 0.5},
    "gate_nats": {"low": 0.0, "high": 3.0},
}


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    root = tmp_path_factory.mktemp("policy")
    target = make_target(root / "target", seed=1)
    for seed, (name, recommended) in enumerate(RECOMMENDED.items()):
        make_forget_set(root / "sets" / name, target, seed=seed, rank=4, recommended=recommended, bounds=BOUNDS)
    registry = Registry(identify_target(target, NAME), root / "bindings")
    registry.discover(root / "sets")
    return registry


@pytest.fixture(scope="module")
def lowering(tmp_path_factory):
    """The same names; anna and cleo lower only."""
    root = tmp_path_factory.mktemp("lowering")
    target = make_target(root / "target", seed=1)
    for seed, (name, recommended) in enumerate(RECOMMENDED.items()):
        rule = "contrast" if name == "bert" else "lower"
        values = {"recommended": recommended, "bounds": BOUNDS, "rule": rule}
        make_forget_set(root / "sets" / name, target, seed=seed, rank=4, **values)
    registry = Registry(identify_target(target, NAME), root / "bindings")
    registry.discover(root / "sets")
    return registry


@pytest.fixture
def make_policy(registry):
    def make(default_sets=(), num_branches=2):
        return Policy(registry, served_name=NAME, num_branches=num_branches, default_sets=default_sets)

    return make


def names(decision: Decision) -> list[str]:
    return [held.forget_set.name for held in decision.in_force]


def refusal(call, kind=InvalidRequestError):
    with pytest.raises(kind) as caught:
        call()
    assert isinstance(caught.value, InvalidRequestError)
    return caught.value


# Precedence


@pytest.mark.parametrize(
    "model, forget_sets, default_sets, in_force",
    [
        (None, None, [], []),
        (None, None, ["anna"], ["anna"]),
        (NAME, None, [], []),
        (NAME, None, ["anna"], ["anna"]),
        (NAME, None, ["bert", "anna"], ["anna", "bert"]),
        (NAME, [], ["anna"], []),
        (None, [], ["anna"], []),
        (NAME, ["bert"], ["anna"], ["bert"]),
        (NAME, ["bert", "anna"], [], ["anna", "bert"]),
        (None, ["cleo"], [], ["cleo"]),
        (f"{NAME}:forget=", None, ["anna"], []),
        (f"{NAME}:forget=", None, [], []),
        (f"{NAME}:forget=bert", None, ["anna"], ["bert"]),
        (f"{NAME}:forget=bert+anna", None, [], ["anna", "bert"]),
    ],
)
def test_the_request_decides_before_the_model_name_before_the_default(
    make_policy, model, forget_sets, default_sets, in_force
):
    decision = make_policy(default_sets).decide(model, forget_sets, ANYBODY)
    assert names(decision) == in_force
    assert [s.name for s in decision.sets] == in_force
    assert len(decision.plan(1 if in_force else 0).terms) == len(in_force)


@pytest.mark.parametrize("sets", ["", "anna", "anna+bert"])
@pytest.mark.parametrize("forget_sets", [[], ["anna"], [ForgetSetChoice(name="bert")]])
def test_naming_sets_in_two_places_is_refused_even_if_they_agree(make_policy, sets, forget_sets):
    error = refusal(lambda: make_policy().decide(f"{NAME}:forget={sets}", forget_sets, ANYBODY))
    assert (error.http_status, error.param) == (400, "forget_sets")
    assert f"{NAME}:forget={sets}" in error.message and "one place" in error.message


def test_no_sets_is_the_plain_target(make_policy):
    decision = make_policy().decide(NAME, [], ANYBODY)
    assert decision == Decision(()) and decision.plan(0) == Plan()
    assert decision.header() == "none" and decision.report() == []


# Model names


@pytest.mark.parametrize(
    "model",
    ["other", "", "org", f"{NAME}:forget", f"{NAME}:anna", f"{NAME} ", f"{NAME.upper()}:forget=anna", ":forget=anna"],
)
def test_a_model_that_is_not_served_is_refused_with_the_one_that_is(make_policy, model):
    error = refusal(lambda: make_policy().decide(model, None, ANYBODY))
    assert (error.http_status, error.code, error.param) == (404, "model_not_found", "model")
    assert repr(model) in error.message and f"{NAME!r}" in error.message and f"{NAME}:forget=A+B" in error.message


@pytest.mark.parametrize(
    "sets, unknown",
    [
        ("dora", "dora"),
        ("anna+dora", "dora"),
        ("anna+", ""),
        ("+anna", ""),
        ("+", None),
        ("Anna", "Anna"),
        ("anna,bert", "anna,bert"),
        ("anna:forget=bert", "anna:forget=bert"),
        (" anna", " anna"),
        ("../anna", "../anna"),
    ],
)
def test_a_model_name_with_a_set_that_is_not_here_is_refused(make_policy, sets, unknown):
    error = refusal(lambda: make_policy().decide(f"{NAME}:forget={sets}", None, ANYBODY))
    if unknown is None:
        assert error.http_status == 400  # '' and '': named twice
        return
    assert isinstance(error, UnknownForgetSetError)
    assert repr(unknown) in error.message


def test_model_names_that_mean_the_same_decide_the_same(make_policy):
    policy = make_policy()
    assert policy.decide(f"{NAME}:forget=bert+anna", None, ANYBODY) == policy.decide(NAME, ["anna", "bert"], ANYBODY)


# Counts and names


def test_an_unknown_set_is_not_found_and_the_known_ones_are_named(make_policy):
    error = refusal(lambda: make_policy().decide(NAME, ["dora"], ANYBODY), UnknownForgetSetError)
    assert (error.http_status, error.code, error.param) == (404, "forget_set_not_found", "forget_sets")
    assert "'dora'" in error.message and "anna, bert, cleo" in error.message


@pytest.mark.parametrize("choices", [["anna", "anna"], ["anna", ForgetSetChoice(name="anna", weight=2.0)]])
def test_a_set_named_twice_is_refused(make_policy, choices):
    error = refusal(lambda: make_policy().decide(NAME, choices, ANYBODY))
    assert error.http_status == 400 and "twice" in error.message and "anna, anna" in error.message


def test_more_sets_than_branches_are_refused_with_what_would_allow_them(make_policy):
    error = refusal(lambda: make_policy().decide(NAME, ["anna", "bert", "cleo"], ANYBODY))
    assert (error.http_status, error.param) == (400, "forget_sets")
    assert "at most 2" in error.message and "got 3" in error.message
    assert "--max-sets-per-request 3" in error.message
    assert names(make_policy(num_branches=3).decide(NAME, ["anna", "bert", "cleo"], ANYBODY)) == [
        "anna",
        "bert",
        "cleo",
    ]


def test_an_unknown_set_is_reported_before_the_count(make_policy):
    refusal(lambda: make_policy(num_branches=1).decide(NAME, ["anna", "dora"], ANYBODY), UnknownForgetSetError)


@pytest.mark.parametrize("option", ["default_sets", "required_sets"])
@pytest.mark.parametrize("sets", [["dora"], ["anna", "dora"], ["anna", "bert", "cleo"], [""]])
def test_what_cannot_be_put_in_force_is_refused_at_start_up(registry, option, sets):
    policy = Policy(registry, served_name=NAME, num_branches=2, **{option: sets})
    with pytest.raises(UnsupportedDeploymentError, match="refusing to start"):
        policy.refuse_impossible([ANYBODY])


@pytest.mark.parametrize("option", ["default_sets", "required_sets"])
def test_a_deployments_set_named_twice_is_refused(registry, option):
    flag = "--" + option.removesuffix("s").replace("_", "-")
    error = refusal(lambda: Policy(registry, served_name=NAME, num_branches=2, **{option: ["anna", "anna"]}))
    assert error.message == f"{flag} names a set twice: anna, anna"


# Sets of kind undial


@pytest.fixture(scope="module")
def mixed(tmp_path_factory):
    """The same target with two undial sets beside two uld sets; and one whose assistants tap it."""
    root = tmp_path_factory.mktemp("mixed")
    target = make_target(root / "target", seed=1)
    mixed = {}
    for tap_layer in (0, 1):
        sets = root / f"tap-{tap_layer}"
        for seed, (name, kind) in enumerate({"anna": "uld", "bert": "uld", "abel": "undial", "zora": "undial"}.items()):
            where = {"tap_layer": tap_layer} if kind == "uld" else {}
            make_forget_set(sets / name, target, seed=seed, rank=1, kind=kind, **where)
        mixed[tap_layer] = Registry(identify_target(target, NAME), root / "bindings")
        mixed[tap_layer].discover(sets, undial=True)
    return mixed


def policy_of(registry, num_branches=2):
    return Policy(registry, served_name=NAME, num_branches=num_branches, default_sets=())


def test_an_undial_set_alone_needs_its_adapter_and_composes_nothing(mixed):
    for registry in mixed.values():
        decision = policy_of(registry).decide(NAME, ["zora"], ANYBODY)
        assert decision.plan(5) == Plan(5, 0.0, (), adapts_target=True)
        assert decision.header() == f"{registry.get('zora').reference};weight=1;by=request"


@pytest.mark.parametrize("undial", ["abel", "zora"])
def test_an_undial_set_takes_no_branch_wherever_its_name_sorts(mixed, undial):
    keep = ForgetSetChoice(name="bert", keep_ratio=0.4, weight=0.5)
    decision = policy_of(mixed[0]).decide(NAME, [undial, keep, "anna"], ANYBODY)
    assert decision.plan(5) == Plan(5, 0.4, (Term(0, 1.0, 0.0), Term(1, 0.5, 0.0)), adapts_target=True)
    assert names(decision) == sorted(["anna", "bert", undial])


def test_two_undial_sets_in_one_request_are_refused_with_the_reason(mixed):
    error = refusal(lambda: policy_of(mixed[0]).decide(NAME, ["zora", "abel"], ANYBODY))
    assert (error.http_status, error.param) == (400, "forget_sets")
    assert "at most one forget set of kind 'undial'" in error.message and "got 2: abel, zora" in error.message
    assert "each was trained as the only change to the target" in error.message


def test_the_count_of_branches_is_about_uld_sets_only(mixed):
    policy = policy_of(mixed[0], num_branches=1)
    assert names(policy.decide(NAME, ["zora", "anna"], ANYBODY)) == ["anna", "zora"]
    error = refusal(lambda: policy.decide(NAME, ["zora", "anna", "bert"], ANYBODY))
    assert "at most 1 forget sets of kind 'uld'" in error.message and "got 2: anna, bert" in error.message


def test_an_undial_set_with_an_assistant_that_taps_the_target_is_refused(mixed):
    error = refusal(lambda: policy_of(mixed[1]).decide(NAME, ["zora", "anna"], ANYBODY))
    assert error.http_status == 400
    assert "'zora' of kind 'undial' changes what the assistant of 'anna' starts from" in error.message


@pytest.mark.parametrize("changes", [{"weight": 0.5}, {"weight": 0.0}, {"keep_ratio": 0.1}, {"gate_nats": 1.0}])
def test_an_undial_set_has_no_strength_to_override(mixed, changes):
    error = refusal(lambda: policy_of(mixed[0]).decide(NAME, [ForgetSetChoice(name="zora", **changes)], ANYBODY))
    (field,) = changes
    assert f"{field} of forget set 'zora' must be between" in error.message


# Strength


def test_what_is_left_out_is_the_sets_recommendation(make_policy):
    decision = make_policy().decide(NAME, ["bert", ForgetSetChoice(name="anna", weight=2.0)], ANYBODY)
    strength = {held.forget_set.name: held.strength.model_dump() for held in decision.in_force}
    assert strength == {"anna": {**RECOMMENDED["anna"], "weight": 2.0}, "bert": RECOMMENDED["bert"]}


def test_the_plan_says_what_is_in_force(make_policy):
    decision = make_policy().decide(NAME, [ForgetSetChoice(name="bert", gate_nats=2.0), "anna"], ANYBODY)
    plan = decision.plan(7)
    assert plan.terms == (Term(0, 1.0, 0.0), Term(1, 0.75, 2.0))
    assert plan.keep_ratio == 0.3  # the strictest of 0.01 and 0.3
    assert plan.adapter_id == 7
    assert verify(sign(plan)) == plan


def test_each_rule_has_a_ratio_of_its_own(lowering):
    policy = Policy(lowering, served_name=NAME, num_branches=3)
    plan = policy.decide(NAME, ["anna", "bert", "cleo"], ANYBODY).plan(7)
    assert [term.lowers for term in plan.terms] == [True, False, True]
    assert (plan.keep_ratio, plan.tail_ratio) == (0.3, 0.1)
    alone = policy.decide(NAME, ["anna"], ANYBODY).plan(7)
    assert (alone.keep_ratio, alone.tail_ratio) == (0.0, 0.01)


@pytest.mark.parametrize(
    "name, keep_ratio, sentence",
    [
        ("anna", 0.02, None),  # required, and cuts more
        ("anna", 0.01, None),
        ("cleo", 0.01, None),  # not required: anna's counts if it is larger
        ("bert", 0.4, "keep_ratio of forget set 'bert' must stay 0.3"),
    ],
)
def test_the_tail_cut_of_a_required_set_may_only_grow(lowering, name, keep_ratio, sentence):
    policy = Policy(lowering, served_name=NAME, num_branches=2, required_sets=["anna"])
    choices = [ForgetSetChoice(name=name, keep_ratio=keep_ratio)]
    if sentence:
        with pytest.raises(ForbiddenError, match=sentence):
            policy.decide(NAME, choices, ANYBODY)
    else:
        assert policy.decide(NAME, choices, ANYBODY).plan(1).tail_ratio >= 0.01


def test_less_of_a_required_tail_cut_is_refused(lowering):
    policy = Policy(lowering, served_name=NAME, num_branches=2, required_sets=["cleo"])
    with pytest.raises(ForbiddenError, match="less of the answers' tail would be cut") as caught:
        policy.decide(NAME, [ForgetSetChoice(name="cleo", keep_ratio=0.05)], ANYBODY)
    assert caught.value.code == "required_forget_set"


def test_strengths_stay_with_their_set_whatever_the_order(make_policy):
    choices = [ForgetSetChoice(name="cleo", weight=2.25), ForgetSetChoice(name="anna", weight=1.25)]
    policy = make_policy()
    one, other = policy.decide(NAME, choices, ANYBODY), policy.decide(NAME, choices[::-1], ANYBODY)
    assert one == other
    assert [term.weight for term in one.plan(1).terms] == [1.25, 2.25]


def test_both_orders_of_two_sets_come_in_one_branch_order(make_policy):
    policy = make_policy()
    one, other = policy.decide(NAME, ["anna", "bert"], ANYBODY), policy.decide(NAME, ["bert", "anna"], ANYBODY)
    assert one.sets == other.sets


@pytest.mark.parametrize("field", BOUNDS)
@pytest.mark.parametrize("edge", ["low", "high"])
def test_the_bounds_themselves_are_allowed(make_policy, field, edge):
    value = BOUNDS[field][edge]
    decision = make_policy().decide(NAME, [ForgetSetChoice(name="anna", **{field: value})], ANYBODY)
    assert getattr(decision.in_force[0].strength, field) == value


@pytest.mark.parametrize("field", BOUNDS)
@pytest.mark.parametrize("value", ["below", "above", math.nan, math.inf, -math.inf, -1.0, 1e39])
def test_a_strength_out_of_bounds_is_refused_with_the_bounds(make_policy, field, value):
    low, high = BOUNDS[field]["low"], BOUNDS[field]["high"]
    value = {"below": low - 0.001, "above": high + 0.001}.get(value, value)
    error = refusal(lambda: make_policy().decide(NAME, [ForgetSetChoice(name="anna", **{field: value})], ANYBODY))
    assert (error.http_status, error.param) == (400, "forget_sets")
    assert f"{field} of forget set 'anna'" in error.message
    assert f"between {low:g} and {high:g}" in error.message and f"got {value:g}" in error.message


def test_nan_from_a_json_body_is_refused(make_policy):
    choices = parse_choices(json.loads('[{"name": "anna", "weight": NaN}]'))
    assert "got nan" in refusal(lambda: make_policy().decide(NAME, choices, ANYBODY)).message


def test_an_integer_too_large_for_a_float_is_refused(make_policy):
    body = json.loads('[{"name": "anna", "weight": 1' + "0" * 400 + "}]")
    refusal(lambda: make_policy().decide(NAME, parse_choices(body), ANYBODY))


# What the response says


def test_the_report_says_every_set_with_its_digest_and_strength(make_policy, registry):
    report = make_policy().decide(NAME, ["bert", ForgetSetChoice(name="anna", weight=2.0)], ANYBODY).report()
    assert report == [
        {
            "name": name,
            "version": "1",
            "digest": registry.get(name).digest,
            **RECOMMENDED[name],
            **changes,
            "by": "request",
        }
        for name, changes in [("anna", {"weight": 2.0}), ("bert", {})]
    ]
    assert json.loads(json.dumps(report)) == report


def test_the_header_names_every_set_its_digest_and_weight(make_policy, registry):
    header = make_policy().decide(NAME, ["cleo", "bert"], ANYBODY).header()
    digests = {name: registry.get(name).digest[:12] for name in RECOMMENDED}
    assert header == f"bert@{digests['bert']};weight=0.75;by=request, cleo@{digests['cleo']};weight=2;by=request"
    assert header.isascii() and "\n" not in header


# The request field


@pytest.mark.parametrize(
    "value, expected",
    [
        (None, None),
        ([], []),
        (["anna"], [ForgetSetChoice(name="anna")]),
        ([{"name": "anna"}], [ForgetSetChoice(name="anna")]),
        ([{"name": "anna", "weight": None}], [ForgetSetChoice(name="anna")]),
        ([{"name": "anna", "weight": 1}], [ForgetSetChoice(name="anna", weight=1.0)]),
        (
            ["bert", {"name": "anna", "weight": 1.5, "keep_ratio": 0.0, "gate_nats": 2}],
            [ForgetSetChoice(name="bert"), ForgetSetChoice(name="anna", weight=1.5, keep_ratio=0.0, gate_nats=2.0)],
        ),
    ],
)
def test_names_and_objects_are_read(value, expected):
    assert parse_choices(value) == expected


def test_choices_that_were_read_are_read_again_unchanged():
    choices = [ForgetSetChoice(name="anna", weight=1.5)]
    assert parse_choices(choices) == choices


@pytest.mark.parametrize(
    "value, expected, got",
    [
        ("anna", "must be a list", "got 'anna'"),
        (True, "must be a list", "got True"),
        (False, "must be a list", "got False"),
        (0, "must be a list", "got 0"),
        ({}, "must be a list", "got {}"),
        ({"name": "anna"}, "must be a list", "got {'name': 'anna'}"),
        ("", "must be a list", "got ''"),
        ([None], "must be a list of names or of objects", "got None at position 0"),
        (["anna", 7], "must be a list of names or of objects", "got 7 at position 1"),
        ([True], "must be a list of names or of objects", "got True at position 0"),
        ([["anna"]], "must be a list of names or of objects", "got ['anna'] at position 0"),
        ([{}], "forget_sets[0].name is missing", "got {}"),
        (["anna", {"weight": 1.0}], "forget_sets[1].name is missing", "got {'weight': 1.0}"),
        (
            [{"strength": 1}],
            "forget_sets[0].name is missing: forget_sets must be a list of names or of objects",
            "got {'strength': 1}",
        ),
        ([{"name": None}], "forget_sets[0].name must be a string", "got None"),
        ([{"name": 7}], "forget_sets[0].name must be a string", "got 7"),
        ([{"name": ["anna"]}], "forget_sets[0].name must be a string", "got ['anna']"),
        ([{"name": "anna", "weight": True}], "forget_sets[0].weight must be a number", "got True"),
        ([{"name": "anna", "weight": "1"}], "forget_sets[0].weight must be a number", "got '1'"),
        ([{"name": "anna", "weight": [1]}], "forget_sets[0].weight must be a number", "got [1]"),
        ([{"name": "anna", "keep_ratio": {}}], "forget_sets[0].keep_ratio must be a number", "got {}"),
        ([{"name": "anna", "gate_nats": ""}], "forget_sets[0].gate_nats must be a number", "got ''"),
        (
            [{"name": "anna", "wieght": 1.0}],
            "forget_sets[0].wieght is no field of a forget set, which has name, weight",
            "got 1.0",
        ),
    ],
    ids=repr,
)
def test_a_wrong_type_is_refused_with_what_was_expected_and_got(value, expected, got):
    error = refusal(lambda: parse_choices(value))
    assert (error.http_status, error.param, error.code) == (400, "forget_sets", "invalid_request_error")
    assert expected in error.message and error.message.endswith(got)


def test_a_refusal_does_not_repeat_a_long_input_in_full():
    assert len(refusal(lambda: parse_choices("x" * 10_000)).message) < 300
    assert len(refusal(lambda: parse_choices([{"name": "anna", "weight": "1" * 10_000}])).message) < 300


# What is said instead


@pytest.fixture(scope="module")
def speaking(tmp_path_factory):
    """anna says something, bert nothing; zora is on the target itself."""
    root = tmp_path_factory.mktemp("speaking")
    target = make_target(root / "target", seed=1)
    make_forget_set(root / "sets" / "anna", target, seed=1, rank=1, instead="No {label}.", label="Anna")
    make_forget_set(root / "sets" / "bert", target, seed=2, rank=1)
    make_forget_set(root / "sets" / "long", target, seed=3, rank=1, instead="a" * 128)
    make_forget_set(root / "sets" / "zora", target, seed=4, kind="undial")
    registry = Registry(identify_target(target, NAME), root / "bindings", Sentences(target))
    registry.discover(root / "sets", undial=True)
    return registry


def said(decision: Decision) -> list[str | None]:
    tokenizer = make_tokenizer()
    sentences = [term.sentence for term in decision.plan(1).terms]
    assert all(sentence[-1] == EOS for sentence in sentences if sentence)
    return [tokenizer.decode(sentence[:-1]) if sentence else None for sentence in sentences]


def test_the_plan_has_what_each_set_says(speaking):
    policy = policy_of(speaking)
    assert said(policy.decide(None, ["bert", "anna"], ANYBODY)) == ["No Anna.", None]
    assert said(policy.decide(None, ["anna", "zora"], ANYBODY)) == ["No Anna."]
    assert policy.decide(None, ["bert", "anna"], ANYBODY).speaking == ["anna"]


def test_a_keys_sentence_takes_the_place_of_the_sets_own_also_where_it_has_none(speaking):
    caller = Caller(
        key_id="acme", required_by_key=("anna",), instead={"anna": "Ask us on {label}.", "bert": "{label}?"}
    )
    policy = policy_of(speaking)
    assert said(policy.decide(None, None, caller)) == ["Ask us on Anna."]
    assert said(policy.decide(None, ["bert"], caller)) == ["Ask us on Anna.", "bert?"]
    assert said(policy.decide(None, ["anna"], Caller(instead={"bert": "No."}))) == ["No Anna."]


@pytest.mark.parametrize(
    "name, text, reason", [("anna", "a" * 128, "at most 128"), ("zora", "No.", "of kind 'undial'")]
)
def test_a_keys_sentence_that_cannot_be_said_is_told_to_the_operator(speaking, name, text, reason):
    caller = Caller(key_id="acme", required_by_key=(name,), instead={name: text})
    policy = policy_of(speaking)
    with pytest.raises(UnavailableSetError, match=f"'acme'.*{reason}"):
        policy.decide(None, None, caller)
    with pytest.raises(UnsupportedDeploymentError, match="acme"):
        policy.refuse_impossible([caller])
    policy.decide(None, ["bert"], Caller(instead={name: text}))


def test_a_set_whose_sentence_cannot_be_said_is_not_served(speaking, registry):
    assert "long" not in speaking.sets
    assert any("cannot say its `instead`" in reason and "at most 128" in reason for reason in speaking.refused.values())
    with pytest.raises(ArtefactError, match="no tokenizer"):
        registry.check(speaking.sets["anna"])


def test_what_was_said_is_reported_of_the_sets_that_say_something(speaking):
    decision = policy_of(speaking).decide(None, ["anna", "bert"], ANYBODY)
    for value in (True, False, None):
        report = decision.report({"anna": value})
        assert report[0]["instead"] is value and "instead" not in report[1]
        marks = [one.endswith(";instead") for one in decision.header({"anna": value}).split(", ")]
        assert marks == [value is True, False]
    assert all("instead" not in one for one in decision.report())
