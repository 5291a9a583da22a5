"""What the server says at start about the sets that it is going to serve."""

import logging

import pytest

from support.engine.tiny import make_forget_set, make_target
from unlearngate.errors import UnsupportedDeploymentError
from unlearngate.server.engine import compat
from unlearngate.server.launch import _warn_of_other_dtypes, _warn_of_other_switches
from unlearngate.server.sets.registry import Registry
from unlearngate.target import identify_target


@pytest.fixture
def registry_of(tmp_path, seed):
    def make(field, values):
        """Sets by name, whose manifests differ in one field."""
        target = make_target(tmp_path / "target", seed=seed)
        for name, value in values.items():
            make_forget_set(tmp_path / "sets" / name, target, seed=seed, **{field: value})
        registry = Registry(identify_target(target), tmp_path / "bindings")
        registry.discover(tmp_path / "sets")
        return registry

    return make


def test_a_set_that_was_measured_in_another_dtype_is_named(registry_of, caplog):
    registry = registry_of("training", {"same": {"dtype": "bfloat16"}, "other": {"dtype": "float32"}, "old": {}})
    with caplog.at_level(logging.WARNING):
        _warn_of_other_dtypes(registry, "bfloat16")
    (record,) = caplog.records
    assert record.getMessage().startswith(
        f"{registry.sets['other'].reference} was measured in float32 and is served in bfloat16"
    )


def test_a_set_that_was_trained_with_other_switches_of_the_template_is_named(registry_of, caplog):
    thinking, not_thinking = {"enable_thinking": True}, {"enable_thinking": False}
    registry = registry_of("chat_template_kwargs", {"same": not_thinking, "other": thinking, "none": {}})
    with caplog.at_level(logging.WARNING):
        _warn_of_other_switches(registry, not_thinking)
    said = sorted(record.getMessage() for record in caplog.records)
    assert [line.partition(" ")[0] for line in said] == [registry.sets[name].reference for name in ("none", "other")]
    assert all('with {"enable_thinking": false} unless they say otherwise' in line for line in said)
    assert "trained with the chat template's switches {}" in said[0]
    assert """--default-chat-template-kwargs '{"enable_thinking": true}'""" in said[1]


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("target") / "tiny", seed=1)


@pytest.mark.parametrize(
    "words, reason",
    [
        (["--enable-auto-tool-choice", "--tool-call-parser", "nope"], "invalid tool call parser: nope (chose from {"),
        (["--reasoning-parser", "nope"], "Reasoning parser 'nope' not found. Available parsers: "),
        (["--max-model-len", "100000"], "User-specified max_model_len (100000) is greater than the derived max_model"),
        (["--enable-auto-tool-choice"], "Error: --enable-auto-tool-choice requires --tool-call-parser (TypeError)"),
        (["--gpu-memory-utilization", "7"], "gpu_memory_utilization: Input should be "),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_arguments_that_vllm_refuses_are_one_sentence_with_its_reason(target, monkeypatch, words, reason):
    monkeypatch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
    with pytest.raises(UnsupportedDeploymentError) as raised:
        compat.engine_config(compat.parse_engine_arguments(["--model", str(target), *words]))
    said = str(raised.value)
    assert said.startswith(f"vLLM refuses this configuration, which --engine-args can change: {reason}")
    assert "\n" not in said and "pydantic" not in said
