"""The rule picks what going through everything by hand picks, and refuses with what was found and what to do."""

import itertools
import random

import pytest

from unlearngate.assistant_training.calibrate.selection import best_of, choose_setting
from unlearngate.assistant_training.calibrate.settings import Limits
from unlearngate.assistant_training.calibrate.sweep import FileFigures, Grid, Setting
from unlearngate.errors import CalibrationError
from unlearngate.manifest import Strength, StrengthBounds

GRID = Grid((0.5, 1.0, 1.5, 2.0), (0.01, 0.02, 0.1), (0.0, 0.5, 1.0, 2.0))
NOTHING = FileFigures(*[0.0] * len(FileFigures._fields))


def setting(strength, p=0.0, served=0.0, recited=0.0, told=None, untouched=1.0, answers=1.0, lost=0.0):
    forget = NOTHING._replace(probability=p, probability_served=served, recited=recited, facts_told=told)
    return Setting(strength, forget, NOTHING._replace(untouched=untouched, untouched_answers=answers, lost=lost))


def random_sweep(rng):
    """Figures of which each is inside its limit mostly."""
    return [
        setting(
            strength,
            p=rng.choice([0.0, 0.02, 0.04, 0.9]),
            served=rng.choice([0.0, 0.01, 0.01, 0.06]),
            recited=rng.choice([0.0, 0.0, 0.0, 0.04]),
            told=rng.choice([None, 0.0, 0.01, 0.01, 0.02, 0.03]),
            untouched=rng.choice([1.0, 0.995, 0.99, 0.98]),
            answers=rng.choice([1.0, 0.98, 0.97, 0.97, 0.96]),
            lost=rng.choice([-0.1, 0.0, 0.0, 0.02]),
        )
        for strength in GRID.strengths()
    ]


def passes(s, share):
    within = max(s.forget.probability, s.forget.probability_served) <= 0.05 * share and s.forget.recited <= 0.05 * share
    told = s.forget.facts_told is None or s.forget.facts_told <= 0.02 * share
    kept = s.retain.untouched >= 0.99 and s.retain.untouched_answers >= 0.97
    return within and told and kept and s.retain.lost <= 0.01


def by_hand(settings):
    """The rule, by sorting and by trying every box."""
    fit = [s.strength for s in settings if passes(s, 0.5)]
    if not fit:
        return None
    fit = [s for s in fit if s.weight == min(s.weight for s in fit)]
    gates = sorted({s.gate_nats for s in fit})
    gate = gates[len(gates) // 2] if len(gates) % 2 else gates[len(gates) // 2 - 1]
    ratios = sorted(s.keep_ratio for s in fit if s.gate_nats == gate)
    ratio = ratios[len(ratios) // 2] if len(ratios) % 2 else ratios[len(ratios) // 2 - 1]
    chosen = next(s for s in fit if (s.gate_nats, s.keep_ratio) == (gate, ratio))
    most = 0
    for ends in itertools.product(*(itertools.combinations_with_replacement(axis, 2) for axis in GRID)):
        inside = [s for s in settings if is_inside(s.strength, ends)]
        if is_inside(chosen, ends) and all(passes(s, 1.0) for s in inside):
            most = max(most, len(inside))
    return chosen, most


def is_inside(strength, ends):
    values = (strength.weight, strength.keep_ratio, strength.gate_nats)
    return all(low <= value <= high for value, (low, high) in zip(values, ends, strict=True))


def ends_of(bounds: StrengthBounds):
    return [(b.low, b.high) for b in (bounds.weight, bounds.keep_ratio, bounds.gate_nats)]


def test_the_rule_picks_what_is_picked_by_hand(seed):
    rng = random.Random(seed)
    refused = 0
    for _ in range(40):
        settings = random_sweep(rng)
        expected = by_hand(settings)
        if expected is None:
            refused += 1
            continue
        choice = choose_setting(settings, GRID, Limits())
        assert choice.setting.strength == expected[0]
        inside = [s for s in settings if is_inside(s.strength, ends_of(choice.bounds))]
        assert len(inside) == expected[1]
        assert all(passes(s, 1.0) for s in inside)
        assert is_inside(choice.setting.strength, ends_of(choice.bounds))
    assert refused < 40


def test_when_all_pass_the_smallest_weight_and_the_lower_middle_are_chosen_and_the_bounds_are_all():
    choice = choose_setting([setting(s) for s in GRID.strengths()], GRID, Limits())
    assert tuple(choice.setting.strength.model_dump().values()) == (0.5, 0.02, 0.5)
    assert ends_of(choice.bounds) == [(0.5, 2.0), (0.01, 0.1), (0.0, 2.0)]


def test_the_margin_moves_the_choice_and_not_the_bounds():
    settings = [setting(s, p=0.06 - 0.02 * s.weight) for s in GRID.strengths()]  # 0.05, 0.04, 0.03, 0.02
    choice = choose_setting(settings, GRID, Limits())
    assert choice.setting.strength.weight == 2.0
    assert choice.bounds.weight.low == 0.5
    assert choose_setting(settings, GRID, Limits(margin=1.0)).setting.strength.weight == 0.5


def test_a_refusal_for_lack_of_forgetting_names_what_forgets_most():
    settings = [
        setting(s, p=0.9 - 0.1 * s.weight, untouched=0.5 if s.gate_nats == 0 else 1.0) for s in GRID.strengths()
    ]
    with pytest.raises(CalibrationError, match=r"the nearest is weight 2, .* forget probability 0\.7, .* larger --w"):
        choose_setting(settings, GRID, Limits())


def test_a_refusal_for_its_cost_names_what_spares_most():
    settings = [setting(s, untouched=0.9 + 0.02 * s.gate_nats) for s in GRID.strengths()]
    with pytest.raises(CalibrationError, match=r"nearest is .* gate 2 nats: .* tokens 94\.00%.* higher --gates"):
        choose_setting(settings, GRID, Limits())


@pytest.mark.parametrize(
    ("figures", "sentence"),
    [({"answers": 0.96}, r"spares the retain data: expected at least 97\.00%"), ({"told": 0.03}, "facts told 3.0%")],
)
def test_whole_answers_and_facts_are_limited_too(figures, sentence):
    with pytest.raises(CalibrationError, match=sentence):
        choose_setting([setting(s, **figures) for s in GRID.strengths()], GRID, Limits())


def test_the_best_of_what_does_not_pass_exceeds_the_limits_least_and_is_all_that_its_bounds_allow():
    settings = [
        # Forgets more with a larger weight, and costs more: 0.4 + 0.1, 0.2 + 0.2, 0.1 + 0.4, 0 + 0.8 above the limits.
        setting(s, p=0.025 + dict(zip(GRID.weights, (0.4, 0.2, 0.1, 0.0), strict=True))[s.weight],
                answers=0.97 - dict(zip(GRID.weights, (0.1, 0.2, 0.4, 0.8), strict=True))[s.weight])
        for s in GRID.strengths()
    ]  # fmt: skip
    choice = best_of(settings, Limits())
    assert choice.setting.strength == Strength(weight=1.0, keep_ratio=0.01, gate_nats=0.0)
    assert ends_of(choice.bounds) == [(1.0, 1.0), (0.01, 0.01), (0.0, 0.0)]


@pytest.mark.parametrize("wrong", [{"forget_probability": 1.5}, {"retain_untouched": -0.1}, {"margin": 0.0}])
def test_a_limit_that_is_no_share_is_refused(wrong):
    with pytest.raises(CalibrationError, match=f"{next(iter(wrong))} must be"):
        Limits(**wrong)
