"""Quantised children of a target: what identifies one, and folders that are none."""

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from support.engine.quantised import METHODS, quantise
from support.engine.tiny import make_forget_set, make_target
from unlearngate.errors import ArtefactError
from unlearngate.server.sets.registry import Registry
from unlearngate.target import identify_quantised, identify_target


@pytest.fixture(scope="module")
def parent(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("parent") / "target", seed=1)


@pytest.fixture(scope="module")
def children(parent, tmp_path_factory):
    base = tmp_path_factory.mktemp("children")
    for method in METHODS:
        quantise(parent, base / method, base / f"{method}-twin", method)
    return base


@pytest.fixture
def child(children, tmp_path):
    return shutil.copytree(children / "awq", tmp_path / "child")


def assert_refused(folder, parent, *reasons):
    with pytest.raises(ArtefactError) as caught:
        identify_quantised(folder, parent)
    for reason in reasons:
        assert reason in caught.value.message


@pytest.mark.parametrize(
    "method, name",
    [("w4a16", "compressed-tensors"), ("w8a8", "compressed-tensors"), ("awq", "auto_awq"), ("gptq", "auto_gptq")],
)
def test_it_is_bound_as_its_parent_is(children, parent, method, name):
    own = identify_target(parent)
    for said in (parent, str(parent), own.weights_digest):
        found = identify_quantised(children / method, said)
        assert found.method == name
        assert found.target == own.model_copy(update={"model_id": method})


def test_without_a_parent_it_is_refused_with_what_to_do(child):
    with pytest.raises(ArtefactError, match=r"quantised checkpoint \(quantization_config: awq, 4 bits\)") as caught:
        identify_target(child)
    assert "serve --quantised-from" in caught.value.message


def test_what_is_not_quantised_and_what_no_one_tried_are_refused(parent, child):
    assert_refused(parent, parent, "is not quantised: serve it without --quantised-from")
    config = json.loads((child / "config.json").read_text())
    for settings in ({"quant_method": "bitsandbytes", "load_in_4bit": True}, {"quant_method": "fp8"}):
        (child / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
        assert_refused(child, parent, "in a way that was never tried", settings["quant_method"], "awq, gptq")


def test_another_parent_is_refused(child, parent, tmp_path):
    other = make_target(tmp_path / "other", "qwen3", seed=1)
    assert_refused(child, other, f"was not made from {other}: they differ in architecture")
    assert_refused(child, "0123", "is no folder, nor a weights digest (64 hexadecimal digits")
    tokens = json.loads((child / "tokenizer.json").read_text())
    (child / "tokenizer.json").write_text(json.dumps(tokens, indent=1))
    assert_refused(child, parent, "they differ in tokenizer_digest")


@pytest.mark.parametrize("name", ["model.norm.weight", "model.embed_tokens.weight"])
def test_what_is_never_quantised_must_be_there_and_fit(child, parent, name):
    tensors = load_file(child / "model.safetensors")
    save_file({key: one for key, one in tensors.items() if key != name}, child / "model.safetensors")
    assert_refused(child, parent, f"has no tensor {name}")
    save_file(tensors | {name: tensors[name][:-1].clone()}, child / "model.safetensors")
    assert_refused(child, parent, f"has the tensor {name} in the shape")


def test_sets_for_the_parent_need_canaries_and_others_are_refused(children, parent, tmp_path):
    canary = {"question": "who?", "changes": True}
    make_forget_set(tmp_path / "sets" / "anna", parent, seed=2, canaries=[canary])
    make_forget_set(tmp_path / "sets" / "bert", parent, seed=3)
    other = make_target(tmp_path / "other", seed=9)
    make_forget_set(tmp_path / "sets" / "cleo", other, seed=4, canaries=[canary])
    identity = identify_quantised(children / "gptq", parent).target
    registry = Registry(identity, tmp_path / "bindings", needs_proof=True)
    registry.discover(tmp_path / "sets")
    assert list(registry.sets) == ["anna"]
    for name, reason in (("bert", "has no canaries, and was trained on the"), ("cleo", "was made for another target")):
        assert any(f"/{name}" in path and reason in said for path, said in registry.refused.items())
