"""A checkpoint folder as a target to train on: what is found wrong with it, and when."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, Starcoder2Config

from support.engine.tiny import make_target
from unlearngate.assistant_training.model.loaded_target import LoadedTarget, load_target
from unlearngate.errors import ArtefactError, DataError, TrainingError
from unlearngate.sentences import Sentences


@pytest.fixture(scope="module")
def pristine(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("made") / "target", seed=1)


@pytest.fixture
def folder(pristine, tmp_path):
    """A target of the test's own, to damage."""
    return shutil.copytree(pristine, tmp_path / "target")


def set_json(path, without=(), **changes):
    content = {**json.loads(path.read_text()), **changes}
    path.write_text(json.dumps({key: value for key, value in content.items() if key not in without}))


@pytest.fixture
def of_another_architecture(folder):
    """Whose tensors are not known without Hugging Face; it can be evaluated."""
    config = Starcoder2Config(
        **{"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 1},
        **{"num_key_value_heads": 1, "vocab_size": 512, "tie_word_embeddings": True},
    )
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    return folder


def test_tied_and_unexpected_tensors_are_no_fault(of_another_architecture):
    path = of_another_architecture / "model.safetensors"
    save_file({**load_file(path), "model.layers.0.self_attn.rotary_emb.inv_freq": torch.zeros(8)}, path)
    assert load_target(of_another_architecture, device="cpu").model.config.tie_word_embeddings


@pytest.mark.parametrize("changed", ["missing", "shorter"])
def test_weights_that_hugging_face_would_make_up_end_the_load(of_another_architecture, changed):
    path, name = of_another_architecture / "model.safetensors", "model.layers.0.self_attn.q_proj.bias"
    tensors = load_file(path)
    left = tensors.pop(name)
    save_file(tensors if changed == "missing" else {**tensors, name: left[:-1].clone()}, path)
    target = load_target(of_another_architecture, device="cpu")
    with pytest.raises(TrainingError, match=rf"1 tensors .* such as {name};"):
        _ = target.model


LONGROPE = {"rope_type": "longrope", "short_factor": [1.0] * 16, "original_max_position_embeddings": 256}
LENGTHS = {"max_position_embeddings": 2048, "original_max_position_embeddings": 256}


@pytest.mark.parametrize(
    "rope, expected",
    [
        ({}, 512),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, 2048),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "linear", "factor": 4}}, 2048),
        ({"rope_parameters": {"rope_theta": 1e4, "rope_type": "dynamic", "factor": 2.5}}, 512),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512}}, 2048),
        ({"rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}}, 512),
        ({"rope_scaling": {**LONGROPE, "long_factor": [4.0] * 16}, **LENGTHS}, 256),
        ({"rope_scaling": {**LONGROPE, "long_factor": [1.0] * 16}, **LENGTHS}, 2048),
        (
            {
                "rope_scaling": {
                    **{"rope_type": "llama3", "factor": 8.0, "original_max_position_embeddings": 64},
                    **{"low_freq_factor": 1.0, "high_freq_factor": 4.0},
                }
            },
            512,
        ),
    ],
    ids=str,
)
def test_the_context_is_as_long_as_vllm_serves_it(folder, rope, expected):
    set_json(folder / "config.json", without=["rope_parameters"] if "rope_scaling" in rope else [], **rope)
    assert load_target(folder).context_length == expected


LOSING = [
    "{% for m in messages %}{% for part in m.content %}{{ part.text }}{% endfor %}{% endfor %}",
    "{% for m in messages %}{{ m.role }}: {{ m.content[0].text }}{% endfor %}",
    "{% for m in messages %}{% if m.role == 'user' %}{{ m.content }}{% endif %}{% endfor %}",
]


@pytest.mark.parametrize("template", LOSING)
def test_a_chat_template_that_loses_what_is_said_is_refused_before_the_weights_are_read(folder, monkeypatch, template):
    (folder / "chat_template.jinja").write_text(template)
    monkeypatch.setattr(LoadedTarget, "model", property(lambda _: pytest.fail("loaded")))
    with pytest.raises(DataError, match=r"loses the .*answer of a conversation; .* plain text"):
        load_target(folder)


def test_a_chat_template_that_is_cut_off_is_refused(folder):
    (folder / "chat_template.jinja").write_text("{% for m in messages %}{{ m.content }}")
    with pytest.raises(DataError, match="chat template refuses"):
        load_target(folder)


def test_a_tokenizer_that_hugging_face_cannot_load_is_said_to_be_the_folders(folder):
    (folder / "tokenizer_config.json").write_text('{"tokenizer_class": 5}')
    for load in (load_target, lambda path: Sentences(path).tokens("No.")):
        with pytest.raises(ArtefactError, match=r"cannot load its tokenizer .*AttributeError") as caught:
            load(folder)
        assert caught.value.path == folder


@pytest.mark.parametrize("key, value", [("model_type", "no-such-model"), ("rms_norm_eps", "small")])
def test_a_configuration_that_hugging_face_cannot_use_is_said_in_one_line(folder, key, value):
    set_json(folder / "config.json", **{key: value})
    with pytest.raises(TrainingError, match=rf"config.json: Hugging Face cannot use it .*{value}") as caught:
        load_target(folder)
    assert "\n" not in str(caught.value)
