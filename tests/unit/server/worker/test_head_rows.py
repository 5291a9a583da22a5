"""Which hidden states the head multiplies, against taking the branches apart one by one."""

import pytest
import torch

from unlearngate.server.worker.model import _HeadRows

HIDDEN = 3


@pytest.mark.parametrize("num_branches", [1, 2, 3])
@pytest.mark.parametrize("num_rows", [1, 4])
def test_the_targets_rows_come_first_then_those_that_were_chosen(num_rows, num_branches, seed):
    rng = torch.Generator().manual_seed(seed)
    hidden = torch.randn(num_rows, (1 + num_branches) * HIDDEN, generator=rng)
    target_RH, *branches = hidden.split(HIDDEN, dim=-1)
    all_NH = torch.cat(branches)
    chosen = torch.randperm(len(all_NH), generator=rng)[: 1 + len(all_NH) // 2]
    for places, expected in ((None, all_NH), (chosen, all_NH[chosen]), (chosen[:0], all_NH[:0])):
        rows = _HeadRows.of(num_rows, 1 + num_branches, places, hidden.device)
        found = hidden.view(num_rows, 1 + num_branches, HIDDEN)[rows.row_X, rows.copy_X]
        assert torch.equal(found, torch.cat([target_RH, expected])), f"seed {seed}"
        assert rows.are_of(num_rows, 1 + num_branches, places)
        others = [(num_rows + 1, 1 + num_branches, places), (num_rows, num_branches, places)]
        assert not any(rows.are_of(*other) for other in others)
        assert not rows.are_of(num_rows, 1 + num_branches, chosen.clone())


def test_a_branch_that_did_not_run_is_no_other_row():
    rows = _HeadRows.of(2, 2, torch.tensor([0, 2]), torch.device("cpu"))  # place 2 is the second branch's first row
    with pytest.raises(IndexError):
        torch.zeros(2, 2, HIDDEN)[rows.row_X, rows.copy_X]
