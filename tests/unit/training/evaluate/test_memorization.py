"""Extraction, membership, leaks and gates against hand-counted cases and brute force."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from unlearngate.assistant_training.evaluate.memorization import (
    best_of_k,
    exact_memorization,
    extraction_strength,
    leak_at_k,
    loss_score,
    member_auc,
    min_k_plus_score,
    min_k_score,
)

BOOLEANS = st.lists(st.booleans(), min_size=1, max_size=30)
SCORES = st.lists(st.sampled_from([0.0, 0.25, 0.5, 0.9, 1.0]), min_size=1, max_size=8)


def test_exact_memorization_is_the_share_of_right_tokens():
    assert exact_memorization([True, False, True, True]) == 0.75


@pytest.mark.parametrize(
    "right, strength",
    [("1111", 1.0), ("0111", 0.75), ("1011", 0.5), ("1110", 0.0), ("0000", 0.0), ("1", 1.0), ("0", 0.0)],
)
def test_extraction_strength_is_the_unbroken_run_up_to_the_end(right, strength):
    assert extraction_strength([token == "1" for token in right]) == strength


@given(BOOLEANS)
def test_extraction_strength_is_that_of_the_shortest_sufficient_prefix(right):
    shortest = next(k for k in range(len(right) + 1) if all(right[k:]))
    assert extraction_strength(np.array(right)) == pytest.approx(1 - shortest / len(right))
    assert extraction_strength(torch.tensor(right)) <= exact_memorization(torch.tensor(right)) + 1e-12


def test_the_loss_score_is_the_mean_log_probability():
    assert loss_score([-1.0, -4.0]) == -2.5


def test_min_k_averages_the_least_likely_tokens():
    log_p = [-1.0, -9.0, -2.0, -7.0, -3.0]
    assert min_k_score(log_p, share=0.4) == -8.0
    assert min_k_score(log_p) == -9.0  # one in five
    assert min_k_score(log_p, share=0.01) == -9.0  # at least one
    assert min_k_score(log_p, share=1.0) == pytest.approx(loss_score(log_p))
    assert min_k_score([-1.0, -math.inf], share=1.0) == -math.inf


def test_min_k_plus_standardises_each_token():
    # Standard scores (-3 + 2) / 0.5 = -2 and (-1 + 4) / 2 = 1.5 and (-6 + 5) / 4 = -0.25.
    log_p, mean, std = [-3.0, -1.0, -6.0], [-2.0, -4.0, -5.0], [0.5, 2.0, 4.0]
    assert min_k_plus_score(log_p, mean, std, share=0.4) == -2.0
    assert min_k_plus_score(log_p, mean, std, share=0.7) == pytest.approx(-1.125)
    assert min_k_plus_score(log_p, mean, std, share=1.0) == pytest.approx(-0.25)


def test_a_model_that_is_certain_has_finite_scores():
    assert min_k_plus_score([0.0], [0.0], [0.0]) == 0.0
    assert min_k_plus_score([-2.0], [0.0], [0.0]) == pytest.approx(-2000.0)
    assert min_k_plus_score([-math.inf], [-1.0], [0.5]) == -math.inf


def test_auc_is_the_share_of_pairs_that_a_member_wins():
    # Of 2 x 3 pairs, 3.0 wins all three; 1.0 wins one and ties one: 4.5 / 6.
    assert member_auc([3.0, 1.0], [0.0, 1.0, 2.0]) == 0.75
    assert member_auc([1.0], [0.0]) == 1.0
    assert member_auc([-math.inf], [-math.inf]) == 0.5


@given(SCORES, SCORES)
def test_auc_is_the_count_over_all_pairs_and_symmetric(members, others):
    pairs = [1.0 if m > o else 0.5 if m == o else 0.0 for m, o in itertools.product(members, others)]
    assert member_auc(members, others) == pytest.approx(sum(pairs) / len(pairs))
    assert member_auc(members, others) + member_auc(others, members) == pytest.approx(1.0)


def test_scores_of_the_same_distribution_do_not_tell_members(seed):
    rng = np.random.default_rng(seed)
    members, others = rng.normal(size=2000), rng.normal(size=2000)
    assert member_auc(members, others) == pytest.approx(0.5, abs=0.06)  # more than six standard errors


def test_leak_at_k_is_the_share_of_draws_that_hold_a_leak():
    # 2 of 5 leak (the threshold itself does): of 10 pairs, 3 hold none; one alone leaks 2 times in 5.
    scores = [0.1, 0.9, 0.2, 1.0, 0.0]
    assert leak_at_k(scores, 1, threshold=0.9) == pytest.approx(0.4)
    assert leak_at_k(scores, 2, threshold=0.9) == pytest.approx(0.7)
    assert leak_at_k(scores, 4, threshold=0.9) == 1.0  # only three do not leak
    assert leak_at_k(scores, 5, threshold=1.5) == 0.0


@given(SCORES, st.sampled_from([0.25, 0.5, 0.95]))
def test_leaks_and_best_scores_are_those_of_all_subsets_and_grow_with_k(scores, threshold):
    sizes = range(1, len(scores) + 1)
    leaks = [leak_at_k(scores, k, threshold=threshold) for k in sizes]
    bests = [best_of_k(scores, k) for k in sizes]
    for k, leak, best in zip(sizes, leaks, bests, strict=True):
        highest = [max(draw) for draw in itertools.combinations(scores, k)]
        assert leak == pytest.approx(sum(h >= threshold for h in highest) / len(highest))
        assert best == pytest.approx(sum(highest) / len(highest))
    assert leaks == sorted(leaks)
    assert all(later >= earlier - 1e-12 for earlier, later in itertools.pairwise(bests))


def test_leak_at_k_is_unbiased(seed):
    rng = np.random.default_rng(seed)
    chance, k = 0.1, 4
    estimates = [leak_at_k(rng.uniform(size=10) < chance, k, threshold=1.0) for _ in range(4000)]
    standard_error = np.std(estimates) / math.sqrt(len(estimates))
    assert np.mean(estimates) == pytest.approx(1 - (1 - chance) ** k, abs=6 * standard_error)


def test_many_samples_do_not_overflow():
    scores = [0.0] * 1999 + [1.0]
    assert leak_at_k(scores, 1000, threshold=0.9) == pytest.approx(0.5)
    assert best_of_k(scores, 1000) == pytest.approx(0.5)


@pytest.mark.parametrize(
    "call, message",
    [
        (lambda: extraction_strength([]), "not empty"),
        (lambda: extraction_strength([1, 0]), "right must be booleans, .* got int64"),
        (lambda: exact_memorization(torch.ones(2, 2, dtype=torch.bool)), r"got bool of shape \(2, 2\)"),
        (lambda: loss_score([0.5]), "at most 0, got 0.5"),
        (lambda: min_k_score([-1.0], share=0.0), r"share must be in \(0, 1\], got 0.0"),
        (lambda: min_k_score([-1.0], share=20), "got 20"),
        (lambda: min_k_plus_score([-1.0, -1.0], [-1.0], [1.0]), "got 2, 1, 1"),
        (lambda: min_k_plus_score([-1.0], [-1.0], [-0.1]), "std_log_p .* got -0.1"),
        (lambda: min_k_plus_score([-1.0], [-math.inf], [1.0]), "must be finite"),
        (lambda: member_auc([], [1.0]), "members must be"),
        (lambda: member_auc([1.0], [math.nan]), "others .* got nan"),
        (lambda: leak_at_k([0.5, 0.5], 3, threshold=0.9), "number of samples, 2, got 3"),
        (lambda: leak_at_k([0.5, 0.5], 1, threshold=math.nan), "threshold .* got nan"),
        (lambda: best_of_k([0.5], 0), "got 0"),
        (lambda: best_of_k([math.nan], 1), "scores .* got nan"),
    ],
)
def test_what_cannot_be_measured_is_refused_in_words(call, message):
    with pytest.raises(ValueError, match=message):
        call()
