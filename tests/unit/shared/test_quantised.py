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
    [
        *((method, "compressed-tensors") for method in ("w4a16", "w8a8", "fp8")),
        *(("awq", "auto_awq"), ("gptq", "auto_gptq")),
    ],
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
    settings = {"quant_method": "bitsandbytes", "load_in_4bit": True}
    (child / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    assert_refused(child, parent, "in a way that was never tried", "bitsandbytes", "awq, gptq")


# As quantisers write it: llm-compressor, Qwen and DeepSeek, NVIDIA's Model Optimizer.
FLOATS = {"num_bits": 8, "type": "float", "symmetric": True}
FP4 = {"num_bits": 4, "type": "float", "symmetric": True, "strategy": "tensor_group", "group_size": 16}
KV = {"dynamic": False, "num_bits": 8, "type": "float"}


def compressed(form, weights, inputs, **more):
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    settings = {"quant_method": "compressed-tensors", "format": form, "config_groups": {"group_0": group}}
    return settings | {"ignore": ["lm_head"], "kv_cache_scheme": None, "quantization_status": "compressed"} | more


OF_CHANNELS = FLOATS | {"strategy": "channel", "dynamic": False}
OF_TOKENS = FLOATS | {"strategy": "token", "dynamic": True}
OF_BLOCKS = FLOATS | {"strategy": "block", "block_structure": [128, 128], "dynamic": False}
OF_TENSORS = FLOATS | {"strategy": "tensor", "dynamic": False}
WAYS = [
    (compressed("float-quantized", OF_CHANNELS, OF_TOKENS), None),
    (compressed("float-quantized", OF_TENSORS, OF_TENSORS), "its floats of 8 bits have other scales"),
    (compressed("float-quantized", OF_CHANNELS, None), "its floats of 8 bits have other scales"),
    (compressed("float-quantized", OF_BLOCKS, OF_TOKENS), "its floats of 8 bits have other scales"),
    (
        compressed("float-quantized", OF_CHANNELS, OF_TOKENS, kv_cache_scheme=KV),
        "its keys and values are quantised too",
    ),
    (compressed("nvfp4-pack-quantized", FP4, FP4 | {"dynamic": "local"}), "its format is 'nvfp4-pack-quantized'"),
    (compressed("nvfp4-pack-quantized", FP4, None), "its format is 'nvfp4-pack-quantized'"),
    (compressed("mixed-precision", FP4, None), "its format is 'mixed-precision'"),
    ({"quant_method": "compressed-tensors"}, "its format is None"),
    ({"quant_method": "fp8", "activation_scheme": "static"}, "tried: quant_method compressed-tensors, awq, gptq"),
    ({"quant_method": "fp8", "activation_scheme": "dynamic", "weight_block_size": [128, 128]}, "tried: quant_method"),
    (
        {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_scheme": KV},
        "modelopt, FP8, 8 bits): tried",
    ),
    ({"quant_method": "modelopt", "quant_algo": "NVFP4", "config_groups": {}}, "modelopt, NVFP4): tried: "),
    ({"quant_method": "mxfp4"}, "tried: quant_method"),
]


@pytest.mark.parametrize("settings, reason", WAYS, ids=lambda one: None if isinstance(one, dict) else str(one))
def test_a_way_to_quantise_is_known_or_refused_by_name(settings, reason, child, parent):
    config = json.loads((child / "config.json").read_text())
    (child / "config.json").write_text(json.dumps(config | {"quantization_config": settings}))
    if reason:
        assert_refused(child, parent, "is quantised in a way that was never tried", reason)
    else:
        assert identify_quantised(child, parent).method == settings["quant_method"]


def test_a_quantisers_own_file_says_too_little(child, parent):
    config = json.loads((child / "config.json").read_text())
    del config["quantization_config"]
    (child / "config.json").write_text(json.dumps(config))
    (child / "hf_quant_config.json").write_text(json.dumps({"quantization": {"quant_algo": "NVFP4"}}))
    assert_refused(child, parent, "(it holds hf_quant_config.json): tried: quant_method")


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
