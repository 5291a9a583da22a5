"""What the server says at start about the sets that it is going to serve."""

import logging

from support.engine.tiny import make_forget_set, make_target
from unlearngate.server.launch import _warn_of_other_dtypes
from unlearngate.server.sets.registry import Registry
from unlearngate.target import identify_target


def test_a_set_that_was_measured_in_another_dtype_is_named(tmp_path, seed, caplog):
    target = make_target(tmp_path / "target", seed=seed)
    for name, training in (("same", {"dtype": "bfloat16"}), ("other", {"dtype": "float32"}), ("old", {})):
        make_forget_set(tmp_path / "sets" / name, target, seed=seed, training=training)
    registry = Registry(identify_target(target), tmp_path / "bindings")
    registry.discover(tmp_path / "sets")
    with caplog.at_level(logging.WARNING):
        _warn_of_other_dtypes(registry, "bfloat16")
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"{registry.sets['other'].reference} was measured in float32 and is served in bfloat16"
    )
