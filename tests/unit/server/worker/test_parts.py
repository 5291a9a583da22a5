"""Which rows each branch runs over, and which are asked for, against going through the batch row by row."""

import itertools
import random

import torch

from unlearngate.server.worker.batch import Parts

HIDDEN = 3


def test_a_branch_runs_over_the_rows_of_its_requests_and_no_others_can_be_read(seed):
    rng = random.Random(seed)
    for _ in range(50):
        needed = [rng.randint(0, 3) for _ in range(rng.randint(0, 6))] + [rng.randint(1, 3)]
        rng.shuffle(needed)
        lengths = [rng.randint(1, 5) for _ in needed]
        starts = [sum(lengths[:index]) for index in range(len(lengths) + 1)]
        num_rows = starts[-1] + rng.choice([0, 2])  # padding
        request_of = [index for index, length in enumerate(lengths) for _ in range(length)]
        rows = [[r for r, i in enumerate(request_of) if needed[i] > branch] for branch in range(max(needed))]
        parts = Parts.build(needed, starts, num_rows)
        assert parts.sizes == (num_rows, *map(len, rows)), f"seed {seed}"
        assert [own.tolist() for own in parts.row_M.split(parts.sizes[1:])] == rows, f"seed {seed}"
        for branch, requests in enumerate(parts.requests):
            mine = [index for index, count in enumerate(needed) if count > branch]
            assert mine == (list(range(len(needed))) if requests is None else requests.tolist()), f"seed {seed}"
        stacked = torch.randn(sum(parts.sizes), HIDDEN)
        hidden = parts.unstack(stacked).view(num_rows, len(parts.sizes), HIDDEN)
        target, *branches = stacked.split(parts.sizes)
        assert torch.equal(hidden[:, 0], target)
        for branch, own in enumerate(branches):
            ran = torch.zeros(num_rows, dtype=torch.bool)
            ran[rows[branch]] = True
            assert torch.equal(hidden[ran, 1 + branch], own), f"seed {seed}"
            assert hidden[~ran, 1 + branch].isnan().all(), f"seed {seed}"


def test_all_branches_over_all_rows_are_the_same_as_if_every_request_needed_them():
    whole, built = Parts.whole(5, 2), Parts.build([2, 2], [0, 1, 5], 5)
    assert whole.sizes == built.sizes == (5, 5, 5) and whole.requests == built.requests == (None, None)
    assert torch.equal(whole.row_M, built.row_M) and torch.equal(whole.part_M, built.part_M)
    assert torch.equal(whole.asked_X, torch.arange(15)) and whole.asked_sizes == whole.sizes


def test_of_each_request_its_last_row_is_asked_for_and_all_where_its_prompt_is_scored(seed):
    rng = random.Random(seed)
    for _ in range(50):
        needed = [rng.randint(0, 2) for _ in range(rng.randint(0, 5))] + [1]
        lengths = [rng.choice([1, 1, rng.randint(2, 6)]) for _ in needed]  # decoding, or a part of a prompt
        scored = [rng.random() < 0.3 for _ in needed] if rng.random() < 0.7 else []
        starts = [sum(lengths[:index]) for index in range(len(lengths) + 1)]
        num_rows, cuts_target = starts[-1] + rng.choice([0, 2]), rng.random() < 0.5
        parts = Parts.build(needed, starts, num_rows, scored=scored, cuts_target=cuts_target)
        wanted = {end - 1 for end in starts[1:]}
        for is_scored, start, end in zip(scored, starts, starts[1:], strict=False):
            wanted |= set(range(start, end)) if is_scored else set()
        ran = {*parts.row_M.tolist(), *(range(num_rows) if cuts_target else ())}
        nothing_is_cut = len(wanted) == starts[-1] or ran <= wanted
        assert nothing_is_cut == (parts.asked_R is None), f"seed {seed}"
        if nothing_is_cut:
            assert torch.equal(parts.asked_X, torch.arange(sum(parts.sizes))) and parts.asked_sizes == parts.sizes
            continue
        counts = [sum(row in wanted for row in range(*each)) for each in itertools.pairwise(starts)]
        assert parts.asked_R.tolist() == counts, f"seed {seed}"
        target = sorted(wanted) if cuts_target else list(range(num_rows))
        stacked = [*range(num_rows), *parts.row_M.tolist()]
        of_parts = [stacked[place] for place in parts.asked_X.tolist()]
        expected = [[row for row in own.tolist() if row in wanted] for own in parts.row_M.split(parts.sizes[1:])]
        assert of_parts == sum(expected, target), f"seed {seed}"
        assert parts.asked_sizes == (len(target), *map(len, expected)), f"seed {seed}"
        assert (parts.asked_X.diff() > 0).all(), f"seed {seed}"
