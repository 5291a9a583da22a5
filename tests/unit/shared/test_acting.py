"""Which forget sets take nothing away, as their manifests tell, and which of them an operator has forced."""

import math

import pytest

from support.engine.tiny import VOCAB_SIZE, make_forget_set, make_target
from unlearngate.acting import FORCED_FILE, force, forced_digests, refuse_idle, why_idle
from unlearngate.errors import ArtefactError

LN_V = math.log(VOCAB_SIZE)


@pytest.fixture(scope="module")
def forget_set(tmp_path_factory):
    root = tmp_path_factory.mktemp("acting")
    return make_forget_set(root / "anna", make_target(root / "target", seed=1), seed=1, rank=1)


def changed(forget_set, metrics=None, **strength):
    """The set with another recommended strength and other metrics."""
    manifest = forget_set.manifest
    recommended = manifest.recommended.model_copy(update=strength)
    return forget_set._replace(
        manifest=manifest.model_copy(update={"recommended": recommended, "metrics": metrics or {}})
    )


@pytest.mark.parametrize(
    "strength, metrics, sentence",
    [
        ({"weight": 0.0}, {}, "its recommended weight is 0: below 0.05"),
        ({"weight": 1e-9}, {}, "its recommended weight is 1e-09: below 0.05"),
        ({"weight": 0.049}, {}, "its recommended weight is 0.049"),
        ({"gate_nats": LN_V + 0.01}, {}, f"there are at most ln V = {LN_V:.2f} (V = {VOCAB_SIZE})"),
        ({"gate_nats": 1e30}, {}, "its gate opens at 1e+30 nats"),
        ({}, {"forget_gate_open": 0.007}, "was open at 0.7% of the forget set's tokens when it was trained, and"),
        (
            {"gate_nats": 5.0},
            {"forget_gate_open": 0.4999, "forget_evidence_median": 4.0, "retain_evidence_median": 4.5},
            "its gate of 5 nats was open at 50.0% of the forget set's tokens when it was trained "
            "(median evidence in nats: forget 4.00, retain 4.50), and at least 50% are needed; train it longer",
        ),
        ({}, {"forget_gate_open": math.nan}, "was open at nan%"),
    ],
)
def test_a_set_that_takes_nothing_away_says_why_and_what_to_do(forget_set, strength, metrics, sentence):
    idle = changed(forget_set, metrics, **strength)
    assert sentence in why_idle(idle.manifest)
    with pytest.raises(ArtefactError) as refused:
        refuse_idle(idle)
    assert sentence in refused.value.message and "`unlearngate sets add --force`" in refused.value.message
    assert refused.value.path == forget_set.folder


@pytest.mark.parametrize(
    "strength, metrics",
    [
        ({}, {}),
        ({"weight": 0.05}, {}),
        ({"gate_nats": LN_V}, {}),
        ({}, {"forget_gate_open": 0.5}),
        ({}, {"forget_gate_open": 1.0, "forget_evidence_median": 0.0}),
    ],
)
def test_a_set_that_can_act_is_let_through(forget_set, strength, metrics):
    assert why_idle(changed(forget_set, metrics, **strength).manifest) is None


def test_a_weight_at_the_limit_does_not_halve_a_probability_in_a_large_vocabulary():
    """c is at most ln V (docs/composition.md), for an assistant that is sure of one token."""
    for vocab_size in (VOCAB_SIZE, 32_000, 128_256, 262_144):
        assert math.exp(-0.05 * math.log(vocab_size)) > 0.5


def test_a_set_of_kind_undial_acts_always(forget_set, tmp_path):
    target = make_target(tmp_path / "target", seed=2)
    undial = make_forget_set(tmp_path / "zora", target, seed=2, rank=1, kind="undial")
    assert why_idle(undial.manifest) is None


def test_what_an_operator_forces_is_kept_with_the_folder(tmp_path):
    assert forced_digests(tmp_path) == frozenset()
    force(tmp_path, "b" * 64)
    force(tmp_path, "a" * 64)
    force(tmp_path, "b" * 64)
    assert forced_digests(tmp_path) == {"a" * 64, "b" * 64}
    assert (tmp_path / FORCED_FILE).read_text().split() == ["a" * 64, "b" * 64]
