"""Sets that a server refuses together are refused here too: what is evaluated is what could be served."""

import pytest

from support.engine.tiny import make_forget_set, make_target
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.errors import TrainingError
from unlearngate.manifest import FIXED_BOUNDS, FIXED_STRENGTH


def test_a_student_under_a_tapped_assistant_is_refused_and_each_alone_is_not(tmp_path):
    folder = make_target(tmp_path / "target", seed=3)
    strength = {"recommended": FIXED_STRENGTH, "bounds": FIXED_BOUNDS}
    undial = make_forget_set(tmp_path / "undial", folder, seed=1, num_layers=4, kind="undial", **strength)
    tapped = make_forget_set(tmp_path / "tapped", folder, seed=2, num_layers=2, tap_layer=1)
    plain = make_forget_set(tmp_path / "plain", folder, seed=2, num_layers=2)
    target = load_target(folder, device="cpu")
    for sets in ([undial], [tapped], [undial, plain]):
        assert len(with_sets(target.model, target.tokenizer, sets).in_force) == sum(s is not undial for s in sets)
    with pytest.raises(TrainingError, match="a server refuses both"):
        with_sets(target.model, target.tokenizer, [tapped, undial])
