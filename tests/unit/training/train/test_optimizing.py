import pytest
import torch

from unlearngate.assistant_training.train.optimizing import Optimizer, anneal


@pytest.mark.parametrize("steps", [1, 2, 9, 10, 11, 500])
def test_the_rate_rises_to_one_and_falls_towards_zero(steps: int) -> None:
    rates = [anneal(step, steps) for step in range(steps)]
    peak = rates.index(max(rates))
    assert max(rates) == 1.0 and min(rates) > 0
    assert rates[: peak + 1] == sorted(rates[: peak + 1])
    assert rates[peak:] == sorted(rates[peak:], reverse=True)
    assert anneal(steps, steps) == pytest.approx(0.0 if steps > 1 else 1.0)


def test_steps_lead_down() -> None:
    weight = torch.nn.Parameter(torch.tensor([3.0, -2.0]))
    optimizer = Optimizer([weight], learning_rate=0.1, steps=100)
    for _ in range(100):
        optimizer.step((weight**2).sum())
    assert weight.detach().abs().max() < 0.5
