"""`compose` against composition.md as tests/support/engine/composition.py has it, on whatever implementation runs here.

`make test-kernels` runs this file on the Triton kernels too: in Triton's interpreter, or compiled where there is a GPU.
"""

import math
import os

import hypothesis
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from support.engine.composition import (
    DTYPES,
    EPS32,
    MODES,
    RATIOS,
    TARGET_KINDS,
    Case,
    K,
    centred,
    check,
    composed,
    draw_case,
    draw_target_row,
    same_bits,
    strided_copy,
)
from unlearngate.kernels.compose import compose
from unlearngate.kernels.pairs import CUT, Pairs
from unlearngate.kernels.reference import compose_reference

# Rows cost much there: what needs long ones is in test_triton_compose.py.
INTERPRETED = os.environ.get("TRITON_INTERPRET") == "1"


@pytest.fixture(scope="module", autouse=True)
def one_thread():
    """Rows this small gain nothing from threads, and lose much when the cores are shared."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("num_rows", [0, 1, 9])
@pytest.mark.parametrize("vocab_size", [1, 7, 512, 4099 if INTERPRETED else 32000])  # more than one block
def test_composed_rows_are_the_formulas(seed, vocab_size, num_rows, dtype):
    for mode in MODES:
        for spread in (1.0, 5.0):
            check(draw_case(seed, num_rows, vocab_size, dtype, spread), mode)
            seed += 1


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("tau", RATIOS)
@pytest.mark.parametrize("kind", TARGET_KINDS)
def test_every_kind_of_target_row_at_every_keep_ratio(seed, kind, tau, mode):
    rng = np.random.default_rng(seed)
    t = torch.from_numpy(draw_target_row(rng, kind, 512, 2.0)).float()[None]
    case = draw_case(seed, 1, 512, torch.float32)._replace(
        target_RV=t,
        assistant_NV=torch.from_numpy(rng.normal(0, 3, (2, 512))).float(),
        row_N=torch.zeros(2, dtype=torch.int64),
        weight_N=torch.tensor([0.75, 1.5]),
        gate_nats_N=torch.zeros(2),
        keep_ratio_R=torch.tensor([tau], dtype=torch.float64),
        lowers_N=torch.from_numpy(rng.random(2) < 0.5),
        own_RV=None,
    )
    check(case, mode)


def test_only_the_row_is_written_not_what_lies_beside_it_in_memory(seed):
    case = draw_case(seed, 9, 512, torch.float32)
    target_RV = strided_copy(case.target_RV)
    case.copy(target_RV=target_RV).run()
    beside = torch.as_strided(target_RV, (9, 5), target_RV.stride(), storage_offset=0)
    after = torch.as_strided(target_RV, (9, 8), target_RV.stride(), storage_offset=5 + 512)
    assert beside.isnan().all() and after.isnan().all()


def test_tokens_tied_with_the_kth_largest_are_all_kept():
    # tau * V = 2, and three tokens share the second place; e^-1 > tau keeps nothing more by ratio.
    case = single_row([9.0, 1.0, 1.0, 1.0, 0.0, -1.0, -2.0, -3.0], tau=0.25)
    case.run()
    assert (case.target_RV[0] != CUT).tolist() == [True] * 4 + [False] * 4


def test_an_overconfident_target_still_leaves_the_top_share_to_choose_from():
    case = single_row([20.0, *range(7)], tau=0.5)
    case.run()
    assert (case.target_RV[0] != CUT).tolist() == [True, False, False, False, False, True, True, True]


def test_the_ratio_rule_keeps_more_than_the_top_share_of_a_flat_target():
    case = single_row([0.0] * 7 + [-9.0], tau=0.25)
    case.run()
    assert (case.target_RV[0] != CUT).tolist() == [True] * 7 + [False]


def test_scoring_leaves_the_targets_logit_where_a_token_is_not_kept():
    case = single_row([20.0, *range(7)], tau=0.5)
    before = case.target_RV.clone()
    case.run("scoring")
    dropped = torch.tensor([False, True, True, True, True, False, False, False])
    assert same_bits(case.target_RV[0][dropped], before[0][dropped])
    assert (case.target_RV[0][~dropped] != before[0][~dropped]).all()


def test_a_set_that_lowers_raises_no_token_and_needs_no_keep_rule():
    case = single_row([2.0, 1.0, 0.0, -1.0], tau=0.0)._replace(lowers_N=torch.tensor([True]))
    case.run()
    most = 3.0 - math.log(math.e**3 + 3) + math.log(4) / 2  # half of ln 4 is not taken
    torch.testing.assert_close(case.target_RV[0], torch.tensor([2.0 - most, 1.0, 0.0, -1.0]))


def test_the_tail_is_cut_from_what_is_composed_not_from_the_target():
    # The first token is the target's best by far, and below the others once it is lowered: ln 0.1 is -2.3.
    case = single_row([2.0, 1.0, 0.0, -1.5], tau=0.0)
    case = case._replace(lowers_N=torch.tensor([True]), weight_N=torch.tensor([8.0]), tail_ratio_R=torch.tensor([0.1]))
    case.run()
    assert case.target_RV[0].tolist() == [CUT, 1.0, 0.0, CUT]


def test_the_best_of_the_tail_is_one_that_the_keep_rule_keeps():
    # k = 2 leaves tokens 0 and 1; a contrast set has raised token 3 above both.
    case = single_row([5.0, 4.0, 3.0, -2.0], tau=0.5)
    case = case._replace(weight_N=torch.tensor([3.0]), tail_ratio_R=torch.tensor([1.0]))
    case.assistant_NV[0] = torch.tensor([0.0, 0.0, 0.0, -9.0])
    case.run()
    assert (case.target_RV[0] != CUT).tolist() == [True, False, False, False]


def test_scoring_cuts_no_tail():
    case = single_row([2.0, 1.0, 0.0, -1.0], tau=0.0)._replace(tail_ratio_R=torch.tensor([1.0]))
    case.run("scoring")
    assert (case.target_RV[0] > CUT / 2).all()


def test_what_is_kept_is_decided_before_a_client_changes_anything():
    """A bias lifts no token that is cut, a mask makes none the best: tau V = 2."""
    own_RV = torch.tensor([[3.0, 2.0, 1.0, 0.0]])
    case = single_row([-math.inf, 2.0, 101.0, 5.0], tau=0.5)._replace(own_RV=own_RV)
    case.run()
    others = 0.0 - math.log(math.e**3 + 3) + math.log(4)
    expected = [-math.inf, 2.0 - others, CUT + 100, CUT + 5]
    torch.testing.assert_close(case.target_RV[0], torch.tensor(expected))


def test_where_only_cut_tokens_are_allowed_they_are_equally_likely():
    own_RV = torch.tensor([[9.0, 8.0, 1.0, 0.0]])
    case = single_row([-math.inf, -math.inf, 1.0, 0.0], tau=0.5)._replace(own_RV=own_RV)
    case.run()
    assert case.target_RV[0].softmax(-1).tolist() == [0.0, 0.0, 0.5, 0.5]


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_own_logits_that_are_what_is_shown_change_no_bit(seed, dtype):
    case = draw_case(seed, 9, 512, dtype)._replace(own_RV=None)
    apart = case.copy(own_RV=case.target_RV.clone())
    before = apart.own_RV.clone()
    case.run()
    apart.run()
    assert torch.equal(case.target_RV, apart.target_RV)
    assert same_bits(apart.own_RV, before)


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_own_logits_that_are_not_finite_make_a_bad_row(seed, value):
    case = with_pairs(seed, torch.float32)
    case = case._replace(own_RV=torch.randn(case.target_RV.shape))
    row = int(case.row_N[0])
    case.target_RV[row] = 0.0
    case.own_RV[row, seed % 32] = value
    composed_RV = check(case)
    assert torch.isneginf(composed_RV[row]).all()


def single_row(t, tau):
    """One row, one open pair whose assistant prefers the first token."""
    a = torch.zeros(1, len(t))
    a[0, 0] = 3.0
    return Case(
        torch.tensor([t]),
        a,
        torch.zeros(1, dtype=torch.int64),
        torch.ones(1),
        torch.zeros(1),
        torch.tensor([tau], dtype=torch.float64),
    )


def test_a_batch_without_pairs_is_untouched():
    target_RV = torch.randn(3, 5)
    before = target_RV.clone()
    result = compose(target_RV, torch.zeros(0, 5), Pairs.build([], [], [], [0.5] * 3, vocab_size=5))
    assert same_bits(target_RV, before)
    assert [tuple(x.shape) for x in result] == [(0,)] * 3
    assert [x.dtype for x in result] == [torch.bool, torch.float32, torch.bool]


# What a row that cannot be composed does

BAD_VALUES = [math.nan, math.inf]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", [*BAD_VALUES, -math.inf])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_an_assistant_that_is_not_finite_is_flagged_and_its_row_says_nothing(seed, dtype, value, mode):
    case = with_pairs(seed, dtype)
    n = seed % len(case.row_N)
    case.assistant_NV[n, seed % 32] = value
    composed_RV = check(case, mode)
    assert torch.isneginf(composed_RV[case.row_N[n]]).all()


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("value", BAD_VALUES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_a_target_row_with_nan_or_infinity_is_flagged_and_says_nothing(seed, dtype, value, mode):
    case = with_pairs(seed, dtype)
    row = int(case.row_N[seed % len(case.row_N)])
    case.target_RV[row, seed % 32] = value
    composed_RV = check(case, mode)
    assert torch.isneginf(composed_RV[row]).all()


@pytest.mark.parametrize("value", BAD_VALUES)
def test_a_bad_row_is_flagged_even_if_no_gate_would_open(seed, value):
    case = with_pairs(seed, torch.float32)
    case = case._replace(weight_N=torch.zeros_like(case.weight_N))
    case.assistant_NV[0, 3] = value
    composed_RV = check(case)
    assert torch.isneginf(composed_RV[case.row_N[0]]).all()


def with_pairs(seed, dtype):
    """A case of 9 rows with at least one pair."""
    case = draw_case(seed, 9, 32, dtype)
    while len(case.row_N) == 0:
        seed += 1
        case = draw_case(seed, 9, 32, dtype)
    return case


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("field", ["target_RV", "assistant_NV", "own_RV"])
def test_finite_logits_of_any_size_never_compose_to_nan_or_plus_infinity(seed, field, dtype):
    """Else a sampler would see a token of infinite probability: a row that overflows is a bad row."""
    case = with_pairs(seed, dtype)
    case = case._replace(weight_N=torch.ones_like(case.weight_N), gate_nats_N=torch.zeros_like(case.gate_nats_N))
    case = case._replace(assistant_NV=case.assistant_NV.to(dtype))
    if field == "own_RV":
        case = case._replace(own_RV=torch.zeros_like(case.target_RV))
    rng = np.random.default_rng(seed)
    signs = torch.from_numpy(rng.choice([-1.0, 1.0], tuple(getattr(case, field).shape)))
    getattr(case, field).copy_((signs * torch.finfo(dtype).max).to(dtype))
    result = case.run()
    touched_RV = case.target_RV[case.row_N.unique()]
    assert not touched_RV.isnan().any() and not touched_RV.isposinf().any()
    assert not result.evidence_N.isnan().any()


# Properties

PAIRWISE = ("assistant_NV", "row_N", "weight_N", "gate_nats_N", "lowers_N")


def property_of(test):
    """`test` over random cases. UNLEARNGATE_SEED pins hypothesis too."""
    cases = st.builds(
        draw_case,
        seed=st.integers(0, 2**32),
        num_rows=st.integers(1, 5),
        vocab_size=st.sampled_from([1, 2, 7, 33]),
        dtype=st.sampled_from(DTYPES),
        spread=st.sampled_from([1.0, 5.0]),
    )
    examples = 12 if INTERPRETED else 60
    test = settings(deadline=None, max_examples=examples)(given(cases, st.sampled_from(MODES))(test))
    pin = os.environ.get("UNLEARNGATE_SEED")
    return hypothesis.seed(int(pin))(test) if pin else test


def assert_unchanged(case, mode):
    after = case.copy()
    after.run(mode)
    assert same_bits(after.target_RV, case.target_RV)


def assert_close(case, before, after):
    """Two outputs of one case, computed in two ways: each within tolerance of the formula, so twice that apart."""
    for row in range(len(case.target_RV)):
        expected = case.expected(row, "sampling")
        x, y = before[row].double().numpy(), after[row].double().numpy()
        decided = ~expected.undecided
        finite = decided & np.isfinite(x)
        assert np.array_equal(np.isneginf(x[decided]), np.isneginf(y[decided]))
        assert (np.abs(x[finite] - y[finite]) <= 2 * expected.tolerance[finite]).all()


@property_of
def test_random_small_cases_are_the_formulas(case, mode):
    check(case, mode)


@property_of
def test_the_reference_is_the_formula_too(case, mode):
    check(case, mode, by=compose_reference)


@property_of
def test_zero_weight_leaves_target_untouched(case, mode):
    assert_unchanged(case._replace(weight_N=torch.zeros_like(case.weight_N)), mode)


@property_of
def test_closed_gates_leave_target_untouched(case, mode):
    evidence = [centred(a)[1] for a in case.assistant_NV.double().numpy()]
    gates = torch.tensor([1.01 * e + 0.01 for e in evidence], dtype=torch.float32)
    assert_unchanged(case._replace(gate_nats_N=gates), mode)


@property_of
def test_a_gate_opens_exactly_where_the_evidence_reaches_it(case, mode):
    case = case._replace(weight_N=torch.ones_like(case.weight_N))
    evidence = case.copy().run(mode).evidence_N
    known = evidence > 0
    above = torch.nextafter(evidence, torch.tensor(math.inf))
    assert case.copy(gate_nats_N=evidence.clamp(min=0)).run(mode).open_N[known].all()
    assert not case.copy(gate_nats_N=above).run(mode).open_N[known].any()


@property_of
def test_a_gate_of_zero_is_open_however_little_the_assistant_knows(case, mode):
    # Evidence this small is all rounding, and may come out below 0.
    faint = (case.assistant_NV.float() * 1e-4).contiguous()
    case = case._replace(assistant_NV=faint, gate_nats_N=torch.zeros_like(case.gate_nats_N))
    assert torch.equal(case.copy().run(mode).open_N, case.weight_N > 0)


@property_of
def test_a_uniform_assistant_leaves_target_untouched_when_every_token_is_kept(case, mode):
    uniform = case.assistant_NV[:, :1].repeat(1, case.assistant_NV.shape[1])
    case = case._replace(
        assistant_NV=uniform,
        gate_nats_N=torch.zeros_like(case.gate_nats_N),
        keep_ratio_R=torch.zeros_like(case.keep_ratio_R),
        tail_ratio_R=None,
        own_RV=None,
    )
    assert_unchanged(case, mode)
    assert (case.copy().run(mode).evidence_N == 0).all()


@property_of
def test_a_row_without_pairs_is_untouched_even_if_it_is_nan(case, mode):
    free = torch.ones(len(case.target_RV), dtype=torch.bool)
    free[case.row_N] = False
    case.target_RV[free] = math.nan
    after = case.copy()
    after.run(mode)
    assert same_bits(after.target_RV[free], case.target_RV[free])
    assert not after.target_RV[~free].isnan().any()


@property_of
def test_a_constant_added_to_an_assistant_row_changes_nothing(case, mode):
    # Multiples of 1/8 below 64: the sum is exact, so what is left is compose's own rounding.
    coarse = (case.assistant_NV.float() * 8).round().clamp(-100, 100) / 8
    case = case._replace(assistant_NV=coarse, gate_nats_N=torch.zeros_like(case.gate_nats_N))
    shifts = torch.arange(len(coarse))[:, None] * 7.0 - 21.0
    before, after = case.copy(), case.copy(assistant_NV=coarse + shifts)
    before.run()
    after.run()
    assert_close(case, before.target_RV, after.target_RV)


@property_of
def test_the_order_of_pairs_does_not_matter(case, mode):
    order = torch.arange(len(case.row_N)).flip(0)
    before = case.copy()
    after = case.copy(**{f: getattr(case, f)[order] for f in PAIRWISE})
    first, second = before.run(), after.run()
    assert_close(case, before.target_RV, after.target_RV)
    assert torch.equal(first.open_N[order], second.open_N)


@property_of
def test_a_pair_split_into_two_of_half_weight_does_the_same(case, mode):
    before = case.copy()
    twice = {f: torch.cat([getattr(case, f)] * 2) for f in PAIRWISE if f != "weight_N"}
    after = case.copy(**twice, weight_N=torch.cat([case.weight_N / 4, case.weight_N * 3 / 4]))
    before.run()
    after.run()
    assert_close(case, before.target_RV, after.target_RV)


@property_of
def test_a_row_does_not_depend_on_its_batch(case, mode):
    whole = case.copy()
    whole.run()
    for row in range(len(case.target_RV)):
        of_row = case.row_N == row
        alone = Case(
            case.target_RV[row : row + 1].clone(),
            case.assistant_NV[of_row],
            torch.zeros(int(of_row.sum()), dtype=torch.int64),
            case.weight_N[of_row],
            case.gate_nats_N[of_row],
            case.keep_ratio_R[row : row + 1],
            case.lowers_N[of_row],
            case.tail_ratio_R[row : row + 1],
            None if case.own_RV is None else case.own_RV[row : row + 1],
        )
        alone.run()
        assert_close(alone._replace(target_RV=case.target_RV[row : row + 1]), whole.target_RV[[row]], alone.target_RV)


@property_of
def test_a_masked_token_stays_masked(case, mode):
    masked = torch.isneginf(case.target_RV)
    after = case.copy()
    after.run(mode)
    assert torch.isneginf(after.target_RV[masked]).all()
    assert not after.target_RV.isnan().any()


@property_of
def test_only_a_client_makes_a_token_impossible(case, mode):
    after = case.copy()
    after.run(mode)
    assert torch.equal(torch.isneginf(after.target_RV), torch.isneginf(case.target_RV))


@property_of
def test_evidence_is_the_divergence_from_uniform(case, mode):
    found = case.copy().run(mode).evidence_N
    log_p = case.assistant_NV.double().log_softmax(dim=-1)
    uniform = torch.full_like(log_p, 1 / log_p.shape[-1])
    divergence = torch.nn.functional.kl_div(uniform.log(), log_p, reduction="none", log_target=True).sum(dim=-1)
    bound = K * EPS32 * (1 + (log_p - uniform.log()).abs().amax(dim=-1))
    assert ((found.double() - divergence).abs() <= bound).all()


# What is refused

VALID = {"row_N": [0, 1, 1], "weight_N": [1.0] * 3, "gate_nats_N": [0.0] * 3, "keep_ratio_R": [0.1, 0.2]}


@pytest.mark.parametrize(
    "name, value, sentence",
    [
        ("row_N", [0, 1, 2], "row_N[2] must be a row of the batch, 0 to 1, got 2"),
        ("row_N", [-1, 1, 1], "row_N[0] must be a row of the batch, 0 to 1, got -1"),
        ("weight_N", [1.0, math.nan, 1.0], "weight_N[1] must be a finite fp32 number >= 0, got nan"),
        ("weight_N", [1.0, 1.0, math.inf], "weight_N[2] must be a finite fp32 number >= 0, got inf"),
        ("weight_N", [1.0, 1e39, 1.0], "weight_N[1] must be a finite fp32 number >= 0, got 1e+39"),
        ("weight_N", [-0.5, 1.0, 1.0], "weight_N[0] must be a finite fp32 number >= 0, got -0.5"),
        ("weight_N", [1.0], "weight_N must have one value per pair, 3, got 1"),
        ("gate_nats_N", [0.0, -1.0, 0.0], "gate_nats_N[1] must be >= 0, got -1.0"),
        ("gate_nats_N", [0.0, math.nan, 0.0], "gate_nats_N[1] must be >= 0, got nan"),
        ("gate_nats_N", [], "gate_nats_N must have one value per pair, 3, got 0"),
        ("keep_ratio_R", [0.1, 1.1], "keep_ratio_R[1] must be in [0, 1], got 1.1"),
        ("keep_ratio_R", [math.nan, 1], "keep_ratio_R[0] must be in [0, 1], got nan"),
        ("lowers_N", [True], "lowers_N must have one value per pair, 3, got 1"),
        ("tail_ratio_R", [0.1], "tail_ratio_R must have one value per row, 2, got 1"),
        ("tail_ratio_R", [0.1, -0.1], "tail_ratio_R[1] must be in [0, 1], got -0.1"),
        ("capacity", 2, "3 pairs do not fit in a capacity of 2"),
    ],
)
def test_a_wrong_pair_is_named_with_what_was_expected_and_got(name, value, sentence):
    with pytest.raises(ValueError) as caught:
        Pairs.build(**{**VALID, name: value}, vocab_size=4)
    assert str(caught.value) == sentence


def refusal(target_RV=None, assistant_NV=None, mode="sampling", own_RV=None):
    target_RV = torch.zeros(2, 4) if target_RV is None else target_RV
    assistant_NV = torch.zeros(3, 4) if assistant_NV is None else assistant_NV
    with pytest.raises(ValueError) as caught:
        compose(target_RV, assistant_NV, Pairs.build(**VALID, vocab_size=4), mode=mode, own_RV=own_RV)
    return str(caught.value)


@pytest.mark.parametrize(
    "name, value, expected",
    [
        ("target_RV", torch.zeros(4), "(2, 4)"),
        ("target_RV", torch.zeros(1, 2, 4), "(2, 4)"),
        ("target_RV", torch.zeros(3, 4), "(2, 4)"),
        ("target_RV", torch.zeros(2, 5), "(2, 4)"),
        ("target_RV", torch.zeros(2, 4, dtype=torch.float64), "fp32, bf16 or fp16"),
        ("target_RV", torch.zeros(2, 4, dtype=torch.int64), "fp32, bf16 or fp16"),
        ("own_RV", torch.zeros(1, 4), "(2, 4)"),
        ("own_RV", torch.zeros(2, 4, dtype=torch.float64), "fp32, bf16 or fp16"),
        ("assistant_NV", torch.zeros(3, 5), "(3, 4)"),
        ("assistant_NV", torch.zeros(2, 4), "(3, 4)"),
        ("assistant_NV", torch.zeros(3), "(3, 4)"),
        ("assistant_NV", torch.zeros(3, 4, dtype=torch.int64), "fp32, bf16 or fp16"),
    ],
)
def test_wrong_logits_are_named_with_what_was_expected_and_got(name, value, expected):
    message = refusal(**{name: value})
    assert message.startswith(f"{name} must be")
    assert expected in message.partition(", got ")[0]
    assert message.endswith(f"got {tuple(value.shape)} {value.dtype}")


@pytest.mark.parametrize("name, shape", [("target_RV", (4, 2)), ("own_RV", (4, 2)), ("assistant_NV", (4, 3))])
def test_rows_that_are_not_contiguous_are_refused(name, shape):
    assert "must have contiguous rows" in refusal(**{name: torch.zeros(shape).T})


@pytest.mark.parametrize("name, value", [("target_RV", torch.zeros(2, 4)), ("assistant_NV", torch.zeros(3, 4))])
def test_a_tensor_on_another_device_is_named_with_both_devices(name, value):
    assert refusal(**{name: value.to("meta")}).startswith(f"{name} is on meta, the pairs on cpu")


def test_an_unknown_mode_is_refused_with_the_known_ones():
    message = refusal(mode="greedy")
    assert "'sampling'" in message and "'scoring'" in message and "'greedy'" in message


def test_scoring_takes_no_own_logits():
    assert refusal(mode="scoring", own_RV=torch.zeros(2, 4)).startswith(
        "own_RV goes with mode 'sampling', got 'scoring'"
    )


def test_a_refused_call_writes_nothing():
    target_RV = torch.randn(2, 4)
    before = target_RV.clone()
    refusal(target_RV=target_RV, assistant_NV=torch.zeros(1, 4))
    assert same_bits(target_RV, before)


# Padding, for CUDA graphs


@property_of
def test_padding_does_nothing(case, mode):
    num_pairs = len(case.row_N)
    padded = case.pairs(capacity=num_pairs + 3)
    wide_NV = torch.full((num_pairs + 3, case.target_RV.shape[1]), math.nan, dtype=case.assistant_NV.dtype)
    wide_NV[:num_pairs] = case.assistant_NV
    plain, other = case.copy(), case.copy()
    expected = plain.run(mode)
    result = composed(other.target_RV, wide_NV, padded, mode, own_RV=case.own(mode))
    assert same_bits(plain.target_RV, other.target_RV)
    for found, wanted in zip(result, expected, strict=True):
        assert torch.equal(found[:num_pairs], wanted)
        assert not found[num_pairs:].any()


@property_of
def test_pairs_can_be_replaced_at_the_same_addresses(case, mode):
    capacity = len(case.row_N) + 2
    held = Pairs.build([], [], [], [0.0] * len(case.target_RV), vocab_size=case.target_RV.shape[1], capacity=capacity)
    addresses = [x.data_ptr() for x in held.tensors()]
    held.copy_(case.pairs(capacity=capacity))
    assert [x.data_ptr() for x in held.tensors()] == addresses
    for mine, theirs in zip(held.tensors(), case.pairs(capacity=capacity).tensors(), strict=True):
        assert torch.equal(mine, theirs)


@pytest.mark.parametrize("capacity, num_rows, vocab_size", [(4, 2, 4), (5, 3, 4), (5, 2, 8)])
def test_pairs_of_other_sizes_cannot_take_their_place(capacity, num_rows, vocab_size):
    held = Pairs.build(**VALID, vocab_size=4, capacity=5)
    with pytest.raises(ValueError, match="pairs"):
        held.copy_(Pairs.build([], [], [], [0.0] * num_rows, vocab_size=vocab_size, capacity=capacity))
