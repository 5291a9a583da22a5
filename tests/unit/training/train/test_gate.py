import pytest
import torch

from unlearngate.assistant_training.train.gate import GateFit, choose_gate


def test_the_gate_is_halfway_on_a_logarithmic_scale() -> None:
    forget, retain = torch.tensor([4.0, 5.0, 6.0]), torch.tensor([0.01, 0.05])
    assert choose_gate(forget, retain) == pytest.approx(0.5)  # sqrt(5 * 0.05)


@pytest.mark.parametrize(("forget", "retain", "gate"), [(6.0, 0.0, 0.25), (0.0, 0.0, 0.25)])
def test_the_gate_stays_within_its_range(forget: float, retain: float, gate: float) -> None:
    assert choose_gate(torch.tensor([forget]), torch.tensor([retain])) == gate


def test_one_odd_retain_token_does_not_push_the_gate_past_the_forget_tokens() -> None:
    retain = torch.cat([torch.full((999,), 0.01), torch.tensor([5.0])])
    assert choose_gate(torch.full((10,), 6.0), retain) == 3.0


def test_ninety_nine_percent_of_the_retain_tokens_stay_below_the_gate() -> None:
    retain = torch.rand(1000) * 2
    gate = choose_gate(torch.full((10,), 1.0), retain)
    assert 0.99 <= float((retain < gate).double().mean()) < 1.0 or gate >= float(retain.max())


def test_metrics_count_open_and_closed_gates() -> None:
    metrics = GateFit(0.5, torch.tensor([0.1, 0.5, 3.0, 4.0]), torch.tensor([0.0, 0.5])).metrics()
    assert metrics["forget_gate_open"] == 0.75
    assert metrics["retain_gate_closed"] == 0.5
    assert metrics["retain_evidence_max"] == 0.5
