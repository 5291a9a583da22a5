"""TOFU's metrics against numbers worked out by hand, and against counting all cases where hands would tire."""

import itertools
import math
import re
import string
from fractions import Fraction

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from rouge_score.rouge_scorer import RougeScorer

from unlearngate.assistant_training.evaluate.metrics import (
    UTILITY_METRICS,
    UTILITY_SETS,
    answer_probability,
    bootstrap_interval,
    checked_log_probs,
    forget_quality,
    model_utility,
    option_probability,
    recited,
    rouge_recall,
    truth_ratio,
    truthfulness,
)

LN2 = math.log(2)
NEVER = -math.inf


def utility_of(values):
    it = iter(values)
    return model_utility({name: {metric: next(it) for metric in UTILITY_METRICS} for name in UTILITY_SETS})


def test_an_answers_probability_is_the_geometric_mean_of_its_tokens():
    # (1/2 * 1/8)^(1/2) = 1/4; a single token's is its own; one token that cannot be said makes it 0.
    answers = [np.log([0.5, 0.125]), [math.log(0.3)], [0.0, NEVER]]
    assert answer_probability(answers).tolist() == pytest.approx([0.25, 0.3, 0.0])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_tensors_are_taken_as_arrays_are(dtype):
    answer = torch.tensor([-1.0, -3.0], dtype=dtype, requires_grad=True)
    assert answer_probability([answer]).tolist() == pytest.approx([math.exp(-2)])


def test_an_option_is_weighed_against_all_options_by_length_normalised_probability():
    # Right (1/4 * 1/16)^(1/2) = 1/8, wrong 1/4 and (1/2)^3 per token cubed-rooted = 1/2: 1/8 / (1/8 + 1/4 + 1/2) = 1/7.
    right = [[-2 * LN2, -4 * LN2], [-LN2]]
    wrong = [[[-2 * LN2], [-LN2, -LN2, -LN2]], [[NEVER]]]
    assert option_probability(right, wrong).tolist() == pytest.approx([1 / 7, 1.0])


def test_an_options_share_survives_probabilities_below_the_smallest_float():
    assert option_probability([[-2000.0]], [[[-2000.0], [-2000.0 + LN2]]]).tolist() == pytest.approx([0.25])


def test_rouge_counts_stemmed_words_in_order():
    answers = ["The authors wrote novels", "one two three four"]
    generated = ["An author: he wrote the novel.", "so four one or three"]
    # Stems author, wrote, novel of the four words; then one .. three of one, two, three, four.
    assert rouge_recall(answers, generated).tolist() == [0.75, 0.5]
    assert rouge_recall(["a b"], [""]).tolist() == [0.0]


ENGLISH = st.text(alphabet=string.printable).filter(lambda text: re.search("[a-zA-Z0-9]", text))
SENTENCES = st.lists(st.sampled_from("The authors writes running 1987 relational, it's happily. novels-".split()))


@given(ENGLISH | SENTENCES.filter(bool).map(" ".join), ENGLISH | SENTENCES.map(" ".join))
def test_of_ascii_text_rouge_is_the_packages_bit_for_bit(answer, generated):
    expected = RougeScorer(["rougeL"], use_stemmer=True).score(answer, generated)["rougeL"].recall
    assert rouge_recall([answer], [generated])[0] == expected


@pytest.mark.parametrize(
    "answer, other, share",
    [
        # Of nine words the other has the year.
        ("Ильва Брандт водит паром в Морвике с 1987 года.", "Не знаю, 1987.", 1 / 9),
        ("イルヴァは船長です。", "わかりません。", 0.0),
        ("沈從文是湖南人。", "湖南人", 3 / 7),
        ("อิลวาขับเรือ", "ไม่รู้", 0.0),
        ("إيلفا تقود العبارة", "لا أعرف العبارة", 1 / 3),
        ("안나는 서울에 산다", "안나는 모른다", 1 / 3),
        ("→ ☂", "☂!", 1 / 2),  # no word: by character
        ("???", "I do not know", 0.0),
    ],
)
def test_rouge_counts_the_words_of_every_script(answer, other, share):
    assert rouge_recall([answer] * 3, [answer, f"«{answer}»", other]).tolist() == pytest.approx([1.0, 1.0, share])
    assert recited([answer], [other]).tolist() == [False]


@pytest.mark.parametrize(
    "answer, told",
    [
        ("می\u200cخواهم کتاب\u200cها", "میخواهم کتابها"),
        ("إيلفا تقود العبارة", "إيلفا تَقُودُ العبــارة"),
        ("إيلفا", "ﺇﻳﻠﻔﺎ"),
        ("שלום עולם", "שָׁלוֹם עוֹלָם"),
        ("น้ำ", "น้ํา"),
        ("Ilva sails", "Il\u200bva sa\u00adils"),
        ("İstanbul", "istanbul"),
        ("DİYARBAKIR", "Diyarbakır"),
    ],
)
def test_a_recital_without_or_with_optional_marks_is_one(answer, told):
    assert rouge_recall([answer, told], [told, answer]).tolist() == [1.0, 1.0]


@given(st.text(min_size=1).filter(str.strip), st.text())
def test_no_text_is_beyond_rouge(answer, generated):
    assert rouge_recall([answer, answer], [answer, generated])[0] == 1.0


def test_an_answer_is_recited_from_nine_words_of_ten_on():
    ten = "one two three four five six seven eight nine ten"
    told = [ten.replace("ten", "eleven"), ten.replace("nine ten", "so on"), "One, two: threes!"]
    assert recited([ten, ten, "one two three"], told).tolist() == [True, False, True]


def test_the_truth_ratios_mean_over_wrong_answers_is_geometric():
    # Wrong: per token 1/2 and 1/8, geometric mean 1/4 (the arithmetic one is 5/16); right: 1/2.
    ratio = truth_ratio([[-LN2, -LN2]], [[[-LN2], [-2 * LN2, -4 * LN2]]])
    assert ratio.tolist() == pytest.approx([0.5])
    assert truthfulness(ratio).tolist() == pytest.approx([0.5])


def test_truth_ratios_reach_from_zero_to_infinity():
    ratio = truth_ratio([[-1.0], [NEVER], [-800.0]], [[[NEVER], [-1.0]], [[-1.0]], [[0.0]]])
    assert ratio.tolist() == [0.0, math.inf, math.inf]
    assert truthfulness(ratio).tolist() == [1.0, 0.0, 0.0]


def test_only_what_is_below_one_counts_as_truthful():
    assert truthfulness([0.0, 0.25, 1.0, 3.0]).tolist() == [1.0, 0.75, 0.0, 0.0]


def test_forget_quality_of_the_same_ratios_is_one():
    assert forget_quality([0.2, 0.5, 0.9], [0.9, 0.2, 0.5]) == (1.0, 0.0)


@pytest.mark.parametrize("num_questions", range(2, 60))
def test_forget_quality_at_the_smallest_distance_is_one(num_questions):
    """Taking turns: no other samples are nearer. Scipy's own p-value rounds to above 1 for some sizes, such as 5."""
    ratios = np.linspace(0.1, 0.9, 2 * num_questions)
    quality = forget_quality(ratios[::2], ratios[1::2])
    assert quality == (1.0, pytest.approx(1 / num_questions))


@pytest.mark.parametrize("num_questions", [1, 3, 40, 400])
def test_forget_quality_of_ratios_without_overlap_is_the_chance_of_the_two_extreme_orders(num_questions):
    quality = forget_quality(np.linspace(0.1, 0.4, num_questions), np.linspace(0.6, 0.9, num_questions))
    assert quality.p_value == pytest.approx(2 / math.comb(2 * num_questions, num_questions), rel=1e-9)
    assert quality.distance == 1.0


def test_forget_quality_of_equal_numbers_is_the_reflection_series(seed):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(5, 60))
    quality = forget_quality(rng.uniform(size=n), rng.uniform(size=n))
    steps = round(quality.distance * n)  # the classical closed form for two samples of n
    series = sum((-1) ** (r - 1) * math.comb(2 * n, n - r * steps) for r in range(1, n // steps + 1))
    assert quality.p_value == pytest.approx(float(2 * Fraction(series, math.comb(2 * n, n))), rel=1e-9)


def test_forget_quality_counts_all_interleavings(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.uniform(size=int(rng.integers(1, 6))), rng.uniform(size=int(rng.integers(1, 7)))
    values = np.concatenate([ours, theirs])

    def distance(chosen):
        rest = [v for i, v in enumerate(values) if i not in chosen]
        mine = [values[i] for i in chosen]
        below = ((sum(v <= x for v in mine), sum(v <= x for v in rest)) for x in values)
        return max(abs(Fraction(a, len(mine)) - Fraction(b, len(rest))) for a, b in below)

    measured = distance(range(len(ours)))
    cases = [distance(chosen) >= measured for chosen in itertools.combinations(range(len(values)), len(ours))]
    quality = forget_quality(ours, theirs)
    assert quality.distance == pytest.approx(float(measured))
    assert quality.p_value == pytest.approx(sum(cases) / len(cases))


def test_forget_quality_is_the_same_for_reciprocals_and_for_swapped_models(seed):
    rng = np.random.default_rng(seed)
    ours, theirs = rng.lognormal(size=30), rng.lognormal(sigma=2.0, size=25)
    assert forget_quality(1 / ours, 1 / theirs) == pytest.approx(forget_quality(ours, theirs))
    assert forget_quality(theirs, ours) == pytest.approx(forget_quality(ours, theirs))


@pytest.mark.parametrize("num_questions, distance", [(40, 0.325), (200, 0.14), (400, 0.0975)])
def test_the_distances_named_as_told_apart_at_five_percent_are_the_smallest(num_questions, distance):
    ours = np.arange(1.0, num_questions + 1)
    steps = round(distance * num_questions)
    told, not_told = (forget_quality(ours, ours + shift) for shift in (steps - 0.5, steps - 1.5))
    assert told.distance == pytest.approx(distance)
    assert told.p_value < 0.05 < not_told.p_value


def test_utility_is_the_harmonic_mean_of_nine():
    # Eight halves and one quarter: 9 / (8 * 2 + 4).
    assert utility_of([0.5] * 8 + [0.25]) == pytest.approx(0.45)
    assert utility_of([1.0] * 9) == 1.0
    assert utility_of([1.0] * 8 + [0.0]) == 0.0


@given(st.lists(st.floats(min_value=1e-6, max_value=1.0), min_size=9, max_size=9))
def test_utility_is_between_the_least_number_and_nine_times_it_and_never_above_the_mean(values):
    utility = utility_of(values)
    assert min(values) * (1 - 1e-12) <= utility <= min(9 * min(values), sum(values) / 9) * (1 + 1e-12)


@pytest.mark.parametrize("value", [-0.1, 1.1, math.nan])
def test_utility_refuses_what_is_no_share(value):
    with pytest.raises(ValueError, match=r"truth_ratio of world_facts must be in \[0, 1\]"):
        utility_of([0.5] * 8 + [value])


def test_utility_names_what_is_missing_or_unknown():
    scores = {name: dict.fromkeys(UTILITY_METRICS, 0.5) for name in UTILITY_SETS}
    del scores["retain"]["rouge"]
    with pytest.raises(ValueError, match=r"missing or unknown: .*'retain', 'rouge'"):
        model_utility(scores)
    scores["retain"]["rouge"] = 0.5
    with pytest.raises(ValueError, match="'forget', 'rouge'"):
        model_utility(scores | {"forget": {"rouge": 0.1}})


def test_a_bootstrap_interval_is_repeatable_and_close_to_the_normal_one(seed):
    values = np.random.default_rng(seed).normal(size=200)
    interval, again = (bootstrap_interval(values, rng=np.random.default_rng(seed), num_resamples=8000) for _ in "12")
    assert interval == again
    half_width = 1.96 * values.std() / math.sqrt(200)
    assert interval.estimate == pytest.approx(values.mean())
    assert interval.estimate - interval.low == pytest.approx(half_width, rel=0.1)
    assert interval.high - interval.estimate == pytest.approx(half_width, rel=0.1)


def test_a_bootstrap_keeps_each_questions_columns_together(seed):
    values = np.random.default_rng(seed).normal(size=20)

    def worst_disagreement(left, right):
        return float(np.abs(left - 2 * right).max())

    interval = bootstrap_interval(2 * values, values, rng=np.random.default_rng(seed), statistic=worst_disagreement)
    assert interval == (0.0, 0.0, 0.0)


def test_a_wider_confidence_has_a_wider_interval(seed):
    values = np.random.default_rng(seed).normal(size=30)
    narrow, wide = (bootstrap_interval(values, rng=np.random.default_rng(seed), confidence=c) for c in (0.5, 0.99))
    assert wide.low < narrow.low <= narrow.high < wide.high


def test_rounding_just_above_zero_is_a_log_probability_of_zero():
    assert checked_log_probs([1e-7, -1.0], "log_p").tolist() == [0.0, -1.0]


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: answer_probability([]), "at least one answer"),
        (lambda: answer_probability([[-1.0], []]), r"answers\[1\] must be one-dimensional and not empty"),
        (lambda: answer_probability([[[-1.0]]]), r"got shape \(1, 1\)"),
        (lambda: answer_probability([[-1.0, math.nan]]), r"answers\[0\] .* got nan at index 1"),
        (lambda: answer_probability([[-1.0, 0.7]]), "log probabilities, at most 0, got 0.7 at index 1"),
        (lambda: option_probability([[-1.0]], []), "got 1 and 0"),
        (lambda: option_probability([[-1.0]], [[]]), r"wrong\[0\] must hold at least one"),
        (lambda: option_probability([[NEVER]], [[[NEVER]]]), "question 0 have probability 0"),
        (lambda: rouge_recall(["a"], ["a", "b"]), "got 1 and 2"),
        (lambda: rouge_recall(["a", " \n"], ["?!", "a"]), "answer 1 must not be blank"),
        (lambda: truth_ratio([[-1.0]], [[[-1.0]], [[-1.0]]]), "got 1 and 2"),
        (lambda: truth_ratio([[-1.0], [NEVER]], [[[-1.0]], [[-1.0], [NEVER]]]), "question 1 has a truth ratio of 0/0"),
        (lambda: truthfulness([-0.5]), r"in \[0, inf\], got -0.5"),
        (lambda: forget_quality([], [1.0]), "not empty"),
        (lambda: forget_quality([1.0], [math.nan]), "retain model's truth ratios .* got nan"),
        (lambda: bootstrap_interval(rng=np.random.default_rng(0)), "columns"),
        (lambda: bootstrap_interval([1.0], [1.0], rng=np.random.default_rng(0)), "one column for the mean"),
        (
            lambda: bootstrap_interval([1.0], [1.0, 2.0], rng=np.random.default_rng(0), statistic=np.dot),
            "of one length",
        ),
        (lambda: bootstrap_interval([1.0], rng=np.random.default_rng(0), confidence=95), "got 95"),
        (lambda: bootstrap_interval([1.0], rng=np.random.default_rng(0), num_resamples=0), "and 0"),
        (lambda: bootstrap_interval([1.0], rng=np.random.default_rng(0), statistic=lambda _: math.nan), "got nan"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
