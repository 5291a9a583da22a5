"""Sets that a server refuses together are refused here too: what is evaluated is what could be served."""

import pytest

from support.engine.tiny import make_forget_set, make_target
from support.texts import save_texts
from unlearngate.assistant_training.evaluate.run import find_sets
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.errors import TrainingError, UnlearngateError
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


def test_a_set_of_texts_is_refused_with_what_to_do(tmp_path):
    target = load_target(make_target(tmp_path / "target", seed=3), device="cpu")
    texts = save_texts(tmp_path / "sets" / "tale", "It was the age of wisdom, it was the age of foolishness.")
    with pytest.raises(TrainingError, match="which a server alone puts in force: serve it"):
        with_sets(target.model, target.tokenizer, [texts])
    with pytest.raises(UnlearngateError, match="serve it, and give --server, or leave it out"):
        find_sets([tmp_path / "sets"], target.identity)
