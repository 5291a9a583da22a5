import pytest
import torch

from unlearngate.assistant_training.calibration import Calibration, choose_gate


def test_the_gate_is_halfway_on_a_logarithmic_scale() -> None:
    forget, retain = torch.tensor([4.0, 5.0, 6.0]), torch.tensor([0.01, 0.05])
    assert choose_gate(forget, retain) == pytest.approx(0.5)  # sqrt(5 * 0.05)


@pytest.mark.parametrize(("forget", "retain", "gate"), [(6.0, 0.0, 0.25), (6.0, 5.0, 3.0), (0.0, 0.0, 0.25)])
def test_the_gate_stays_within_its_range(forget: float, retain: float, gate: float) -> None:
    assert choose_gate(torch.tensor([forget]), torch.tensor([retain])) == gate


def test_metrics_count_open_and_closed_gates() -> None:
    metrics = Calibration(0.5, torch.tensor([0.1, 0.5, 3.0, 4.0]), torch.tensor([0.0, 0.5])).metrics()
    assert metrics["forget_gate_open"] == 0.75
    assert metrics["retain_gate_closed"] == 0.5
    assert metrics["retain_evidence_max"] == 0.5
