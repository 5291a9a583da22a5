"""Plans and the tokens that carry them: what was signed arrives, anything else is refused."""

import base64
import json
import math
import os

import hypothesis
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from unlearngate.server.contract.plan import KEY_VARIABLE, Plan, Term, ensure_key, sign, verify

strengths = st.floats(min_value=0, max_value=1e6)
sentences = st.lists(st.integers(0, 2**20), max_size=128).map(tuple)
terms = st.builds(
    Term, branch=st.integers(0, 7), weight=strengths, gate_nats=strengths, lowers=st.booleans(), sentence=sentences
)
plans = st.one_of(
    st.builds(Plan, keep_ratio=st.floats(0, 1)),
    st.builds(
        Plan,
        adapter_id=st.integers(1, 2**31),
        keep_ratio=st.floats(0, 1),
        tail_ratio=st.floats(0, 1),
        terms=st.lists(terms, max_size=8).map(tuple),
        adapts_target=st.booleans(),
    ),
)
PLAN = Plan(3, 0.25, (Term(0, 1.5, 0.0), Term(1, 0.75, 2.0)))


@pytest.fixture(scope="module", autouse=True)
def key():
    """A key of this module's own."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(KEY_VARIABLE, os.urandom(16).hex())
        yield


def property_of(*strategies):
    """A test over random inputs. UNLEARNGATE_SEED pins hypothesis too."""
    pin = os.environ.get("UNLEARNGATE_SEED")
    pinned = hypothesis.seed(int(pin)) if pin else lambda test: test
    return lambda test: pinned(settings(deadline=None)(given(*strategies)(test)))


@property_of(plans)
def test_what_was_signed_arrives_unchanged(plan):
    assert verify(sign(plan)) == plan


@property_of(plans)
def test_a_token_is_plain_text_that_json_keeps(plan):
    token = sign(plan)
    assert token.isascii() and token.isprintable()
    assert json.loads(json.dumps(token)) == token


@property_of(plans, st.integers(0, 10_000), st.characters())
def test_one_changed_character_is_refused(plan, position, character):
    token = sign(plan)
    position %= len(token)
    changed = token[:position] + character + token[position + 1 :]
    if changed != token:
        with pytest.raises(ValueError):
            verify(changed)


def test_every_flipped_bit_is_refused():
    token = sign(PLAN)
    for position, character in enumerate(token):
        for bit in range(7):
            changed = token[:position] + chr(ord(character) ^ 1 << bit) + token[position + 1 :]
            with pytest.raises(ValueError):
                verify(changed)


@property_of(plans, plans)
def test_a_signature_fits_no_other_plan(plan, other):
    payload, _, _ = sign(plan).partition(".")
    _, _, mac = sign(other).partition(".")
    if plan != other:
        with pytest.raises(ValueError, match="not signed by this server"):
            verify(f"{payload}.{mac}")


@pytest.mark.parametrize(
    "change",
    [
        lambda t: t + "0",
        lambda t: t[:-1],
        lambda t: " " + t,
        lambda t: t + "\n",
        lambda t: t.upper(),
        lambda t: f"{t}.{t}",
        lambda t: t.partition(".")[0] + ".",
        lambda t: "." + t.partition(".")[2],
        lambda t: ".",
        lambda t: t.replace(".", ""),
        lambda t: t.partition(".")[0] + ".\u00e9",
        lambda t: "\ud800" + t,
    ],
)
def test_a_token_that_was_cut_or_added_to_is_refused(change):
    with pytest.raises(ValueError):
        verify(change(sign(PLAN)))


def test_a_payload_without_a_signature_is_refused():
    payload = base64.urlsafe_b64encode(json.dumps({"adapter_id": 0, "keep_ratio": 0.0, "terms": []}).encode()).decode()
    for token in (payload, f"{payload}.", f"{payload}.{'0' * 64}"):
        with pytest.raises(ValueError):
            verify(token)


@pytest.mark.parametrize("token", [None, "", 1, 1.5, True, b"a.b", [], ["a.b"], {}, {"token": "a.b"}, Plan()], ids=repr)
def test_what_is_no_token_is_refused_with_where_to_go(token):
    with pytest.raises(ValueError, match="carries no composition token; send it to unlearngate's own HTTP API"):
        verify(token)


def test_another_servers_token_is_refused(monkeypatch):
    token = sign(PLAN)
    monkeypatch.setenv(KEY_VARIABLE, os.urandom(16).hex())
    with pytest.raises(ValueError, match="not signed by this server"):
        verify(token)


@pytest.mark.parametrize("empty", [False, True])
def test_without_a_key_nothing_is_signed_or_accepted(monkeypatch, empty):
    token = sign(PLAN)
    monkeypatch.setenv(KEY_VARIABLE, "") if empty else monkeypatch.delenv(KEY_VARIABLE)
    for call in (lambda: sign(PLAN), lambda: verify(token)):
        with pytest.raises(ValueError, match=f"{KEY_VARIABLE} is not set"):
            call()


def test_a_launch_makes_its_own_key_once(monkeypatch):
    keys = set()
    for _ in range(2):
        monkeypatch.delenv(KEY_VARIABLE)
        ensure_key()
        key = os.environ[KEY_VARIABLE]
        ensure_key()
        assert os.environ[KEY_VARIABLE] == key
        keys.add(key)
    assert len(keys) == 2 and all(len(key) >= 64 for key in keys)


def test_an_empty_key_in_the_environment_is_replaced(monkeypatch):
    monkeypatch.setenv(KEY_VARIABLE, "")
    ensure_key()
    assert verify(sign(PLAN)) == PLAN


# What no plan may say


@pytest.mark.parametrize("adapter_id, with_terms", [(0, True), (-1, True), (-1, False)])
def test_terms_without_an_adapter_are_refused(adapter_id, with_terms):
    with pytest.raises(ValueError, match="needs the adapter that computes their assistants"):
        Plan(adapter_id, 0.0, PLAN.terms if with_terms else ())


@pytest.mark.parametrize("name", ["keep_ratio", "tail_ratio"])
@pytest.mark.parametrize("ratio", [-0.1, 1.1, math.nan, math.inf, -math.inf])
def test_a_ratio_that_is_no_share_is_refused(name, ratio):
    for terms_ in ((), PLAN.terms):
        with pytest.raises(ValueError, match=f"{name} must be in"):
            Plan(1 if terms_ else 0, terms=terms_, **{name: ratio})


@pytest.mark.parametrize("value", [-1.0, math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("field", ["weight", "gate_nats"])
def test_a_strength_that_is_not_finite_or_below_zero_is_refused(field, value):
    fields = {"weight": 1.0, "gate_nats": 0.0, field: value}
    with pytest.raises(ValueError, match="must be finite and >= 0"):
        Plan(1, 0.0, (Term(0, 1.0, 0.0), Term(1, **fields)))


def test_a_weight_that_is_finite_only_in_double_precision_is_refused():
    """The worker holds weights in fp32, where 1e39 is infinite: infinity times zero is NaN."""
    with pytest.raises(ValueError, match="must be finite"):
        Plan(1, 0.0, (Term(0, 1e39, 0.0),))


def test_a_branch_below_zero_is_refused():
    with pytest.raises(ValueError, match="branch"):
        Plan(1, 0.0, (Term(-1, 1.0, 0.0),))


def test_a_plan_cannot_be_changed():
    with pytest.raises(AttributeError):
        PLAN.adapter_id = 0
    with pytest.raises(AttributeError):
        PLAN.terms[0].weight = 0.0


def test_a_speechless_plan_composes_the_same():
    speaking = Plan(3, 0.25, (Term(0, 1.5, 0.0, sentence=(5, 1)), Term(1, 0.75, 2.0)), ticket=4, lease=5)
    assert speaking.speaks and not PLAN.speaks
    assert speaking.speechless() == Plan(3, 0.25, PLAN.terms, ticket=4, lease=5)
