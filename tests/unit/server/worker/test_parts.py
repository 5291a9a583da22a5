"""Which rows each branch runs over, against going through the batch row by row."""

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
