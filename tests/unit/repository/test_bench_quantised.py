"""What the quantised benchmark does to weights, and that it undoes it; a set's figures there are of a real run."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import nn

sys.path.insert(0, str(Path(__file__).parents[3]))
from benchmarks.quantised import BITS, GROUP, rounded, table

sys.path.remove(str(Path(__file__).parents[3]))


@pytest.mark.parametrize("bits", [8, 4])
def test_weights_are_rounded_to_nearest_and_come_back(seed, bits):
    torch.manual_seed(seed)
    linear, head = nn.Linear(4 * GROUP, 6), nn.Linear(4 * GROUP, 3)
    model = SimpleNamespace(model=SimpleNamespace(layers=nn.ModuleList([linear])), head=head)
    before = linear.weight.detach().clone()
    untouched = head.weight.detach().clone()
    with rounded(model, bits) as same:
        assert same is model and torch.equal(head.weight, untouched)
        size = GROUP if bits == 4 else 4 * GROUP
        for weights, own in zip(linear.weight.detach().reshape(-1, size), before.reshape(-1, size), strict=True):
            step = own.abs().max() / (2 ** (bits - 1) - 1)
            assert ((weights - own).abs() <= step / 2 * 1.001).all()
            assert torch.allclose(weights / step, (weights / step).round(), atol=1e-3)
    assert torch.equal(linear.weight, before)
    with rounded(model, None):
        assert torch.equal(linear.weight, before)


def test_the_table_has_a_row_for_each_model():
    cell = {"facts": 3, "of": 4, "unchanged": 5, "others": 6, "rouge": 0.5}
    text = table({"target": dict.fromkeys(BITS, cell), "set": dict.fromkeys(BITS, cell)})
    assert "| one set in force | 3 of 4; 5 of 6, 0.50 |" in text and text.count("\n") == 4
