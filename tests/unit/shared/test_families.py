"""The architectures' differences against Hugging Face's own models, and the sentences for all others."""

import json
import re
from pathlib import Path

import pytest
from e2e.test_parity import ALL_RUNS
from safetensors import safe_open
from transformers import AutoModelForCausalLM

from support.engine.drafter import METHODS
from support.engine.tiny import FAMILY_NAMES, ROPES, family_config, make_target
from unlearngate import target
from unlearngate.errors import ArtefactError
from unlearngate.families import FAMILIES, ROTARY, TARGET_ARCHITECTURES, refusal
from unlearngate.target import identify_target

SWITCHES = [(name, key) for name, family in FAMILIES.items() for key in family.biased if key]
GEMMAS = ("gemma2", "gemma3")
DEFAULTS = [("qwen3", 128), ("gemma2", 256), ("gemma3", 256)]


def family_of(architecture):
    return next(name for name in FAMILY_NAMES if architecture in family_config(name).architectures)


def tensors_of(config, folder):
    """Names and shapes of what Hugging Face writes of a configuration's model."""
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    with safe_open(folder / "model.safetensors", "pt") as tensors:
        return {name: tuple(tensors.get_slice(name).get_shape()) for name in tensors.keys()}


def wanted(path, config):
    return dict(target._weights(path, config, target._dimensions(path, config)))


@pytest.mark.parametrize("family", FAMILY_NAMES)
def test_the_tensors_are_the_models(family, tmp_path):
    folder = make_target(tmp_path / family, family, seed=1)
    config = json.loads((folder / "config.json").read_text())
    assert wanted(folder, config) == tensors_of(family_config(family), tmp_path)
    assert identify_target(folder).architecture in FAMILIES


@pytest.mark.parametrize("architecture, key", SWITCHES, ids=str)
def test_a_switch_brings_the_biases_that_the_model_then_has(architecture, key, tmp_path):
    config = family_config(family_of(architecture))
    for on in (True, False):
        setattr(config, key, on)
        own = {**config.to_dict(), "architectures": [architecture]}
        found = wanted(tmp_path, own)
        assert found == tensors_of(config, tmp_path)
        assert all((f"model.layers.0.{one}.bias" in found) == on for one in FAMILIES[architecture].biased[key])


@pytest.mark.parametrize("family, head_dim", DEFAULTS)
def test_what_a_configuration_leaves_out_is_as_hugging_face_has_it(family, head_dim, tmp_path):
    config = family_config(family)
    said = config.to_dict()
    left_out = {key: value for key, value in said.items() if key not in ("head_dim", "tie_word_embeddings")}
    default = type(config)(**left_out)
    assert default.head_dim == head_dim
    assert wanted(tmp_path, {**left_out, "architectures": config.architectures}) == tensors_of(default, tmp_path)


@pytest.mark.parametrize(
    "key, value", [("mlp_only_layers", [1]), ("decoder_sparse_step", 2), ("num_local_experts", "many")]
)
def test_experts_in_some_layers_alone_are_refused(key, value, tmp_path):
    folder = make_target(tmp_path, "qwen3moe", seed=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ArtefactError, match=f"'{key}' is"):
        identify_target(folder)


@pytest.mark.parametrize(
    "family, key, value",
    [("gemma3", "attn_logit_softcapping", 50.0), *((one, "use_bidirectional_attention", True) for one in GEMMAS)],
)
def test_what_vllm_would_not_do_is_refused(family, key, value, tmp_path):
    folder = make_target(tmp_path, family, seed=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {key: value}))
    with pytest.raises(ArtefactError, match=f"'{key}' is {json.dumps(value)}, and only (null|false) was tried"):
        identify_target(folder)


def test_every_architecture_is_in_the_parity_runs():
    families = {arguments[arguments.index("--family") + 1] for arguments in ALL_RUNS.values()}
    assert families == set(FAMILY_NAMES)
    assert {name for one in families for name in family_config(one).architectures} == set(TARGET_ARCHITECTURES)
    for family in families:
        own = [arguments for arguments in ALL_RUNS.values() if family in arguments]
        for word in ("--v2", "--tap", "--default-compilation", "--tensor-parallel", "--speculate"):
            assert any(word in arguments for arguments in own), f"{family} has no run with {word}"
        drafters = {arguments[arguments.index("--drafter") + 1] for arguments in own if "--drafter" in arguments}
        is_drafted = all(FAMILIES[name].drafted for name in family_config(family).architectures)
        assert drafters == (set(METHODS) if is_drafted else set())


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_scaling": {"type": "ntk", "factor": 2.0}},
        {"rope_parameters": {"full_attention": {"rope_type": "ntk"}, "sliding_attention": {"rope_type": "default"}}},
    ],
    ids=["of-all-layers", "of-some-layers"],
)
def test_another_rotary_embedding_is_refused(rope, tmp_path):
    folder = make_target(tmp_path, seed=1)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "rope_parameters": None, **rope}))
    with pytest.raises(ArtefactError, match=r"rotary embedding is of type 'ntk', .* \(tried: default, linear, llama3"):
        identify_target(folder)


def test_every_rotary_embedding_is_in_the_parity_runs():
    drawn = {arguments[arguments.index("--rope") + 1] for arguments in ALL_RUNS.values() if "--rope" in arguments}
    assert drawn == set(ROPES)
    kinds = [one["rope_scaling"].get("rope_type") or one["rope_scaling"]["type"] for one in ROPES.values()]
    assert {"default", *kinds} == set(ROTARY)


def test_the_documented_table_has_every_architecture():
    text = (Path(__file__).parents[3] / "docs" / "targets.md").read_text()
    assert re.findall(r"^\| `(\w+)`", text, re.M) == list(TARGET_ARCHITECTURES)


@pytest.mark.parametrize(
    "architecture, reason",
    [
        ("GptOssForCausalLM", "a branch would attend by others of its own"),
        ("Qwen3NextForCausalLM", "its layers keep a state"),
        ("Qwen2_5_VLForConditionalGeneration", "the text model in it must be a checkpoint of its own"),
    ],
)
def test_another_architecture_is_refused_with_the_reason(architecture, reason, tmp_path):
    sentence = refusal(architecture)
    assert sentence.startswith(f"target architecture {architecture!r} is not supported: ") and reason in sentence
    assert sentence.endswith(f"; supported: {', '.join(TARGET_ARCHITECTURES)}")
    (tmp_path / "config.json").write_text(json.dumps({"architectures": [architecture]}))
    with pytest.raises(ArtefactError) as caught:
        identify_target(tmp_path)
    assert sentence in str(caught.value)


def test_an_unknown_architecture_is_refused_by_its_name():
    assert refusal("NobodysForCausalLM") == (
        f"target architecture 'NobodysForCausalLM' is not supported; supported: {', '.join(TARGET_ARCHITECTURES)}"
    )
