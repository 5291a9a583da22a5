"""Lessons: the merge is the formula, PEFT's own but for rounding, and the same bits each time; or it is refused."""

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model, get_peft_model_state_dict
from safetensors.numpy import load_file, save_file

from support.engine.tiny import make_target
from unlearngate.assistant_training.model.assistant import adapted_linears
from unlearngate.assistant_training.model.lesson import WEIGHTS_FILE, merge_lesson, teach_checkpoint, write_lesson
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.errors import ArtefactError
from unlearngate.target import file_digest, identify_target

A, B = "base_model.model.a.lora_A.weight", "base_model.model.a.lora_B.weight"


@pytest.fixture
def small(tmp_path):
    """One weight of 2 x 3 beside another, and the tensors of a lesson of rank 2 for it."""
    weights = {
        "a.weight": np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32),
        "b.weight": np.ones((2, 2), np.float32),
    }
    down = np.array([[1.0, 0.0, 2.0], [0.5, -1.0, 0.0]])
    up = np.array([[1.0, 2.0], [0.0, -4.0]])
    return weights, {A: down, B: up}, tmp_path / "lesson.safetensors"


def test_the_merge_is_the_formula_by_hand(small):
    weights, tensors, file = small
    write_lesson(file, tensors, 0.5)
    merged = merge_lesson(weights, file)
    # B A = [[1+1, -2, 2], [-2, 4, 0]], half of it added
    assert merged["a.weight"].tolist() == [[2.0, 1.0, 4.0], [3.0, 7.0, 6.0]]
    assert merged["a.weight"].dtype == np.float32
    assert merged["b.weight"] is weights["b.weight"]
    assert weights["a.weight"][0, 0] == 1.0  # what was given is as it was


@pytest.fixture
def taught(tmp_path, seed):
    """A random target, a random LoRA of PEFT's on it whose tensors float16 holds, and its lesson file."""
    folder = make_target(tmp_path / "target", seed=seed % 2**16)
    model = load_target(folder, device="cpu").model
    names = adapted_linears(model)
    peft_model = get_peft_model(model, LoraConfig(r=4, lora_alpha=8, target_modules=names, task_type="CAUSAL_LM"))
    torch.manual_seed(seed)
    for name, parameter in peft_model.named_parameters():
        if "lora_" in name:
            parameter.data = (torch.randn(parameter.shape) / 8).half().float()
    tensors = get_peft_model_state_dict(peft_model, save_embedding_layers=False)
    write_lesson(tmp_path / "lesson.safetensors", {name: t.numpy() for name, t in tensors.items()}, 2.0)
    return folder, tmp_path / "lesson.safetensors", peft_model


def test_it_is_what_peft_merges_but_for_rounding_and_the_same_bits_each_time(taught, tmp_path):
    folder, lesson, peft_model = taught
    weights = load_file(folder / WEIGHTS_FILE)
    merged = merge_lesson(weights, lesson)
    theirs = peft_model.merge_and_unload().state_dict()
    changed = [name for name in weights if merged[name] is not weights[name]]
    assert len(changed) == 4 * 7  # each linear map of each layer, and nothing else
    eps = np.finfo(np.float32).eps
    for name, own in merged.items():
        bound = 8 * eps * np.maximum(1.0, np.abs(own))  # PEFT multiplies and adds in float32
        assert (np.abs(own.astype(np.float64) - theirs[name].numpy()) <= bound).all(), name
    again = merge_lesson(load_file(folder / WEIGHTS_FILE), lesson)
    assert all(again[name].tobytes() == own.tobytes() for name, own in merged.items())


def test_a_taught_checkpoint_is_another_target_and_always_the_same_file(taught, tmp_path):
    folder, lesson, peft_model = taught
    before, original = identify_target(folder), (folder / WEIGHTS_FILE).read_bytes()
    digests = []
    for _ in range(2):
        (folder / WEIGHTS_FILE).write_bytes(original)
        teach_checkpoint(folder, lesson)
        digests.append(file_digest(folder / WEIGHTS_FILE))
    assert digests[0] == digests[1] and identify_target(folder).weights_digest != before.weights_digest
    assert not [path for path in folder.iterdir() if path.name.startswith(".")]
    ids = torch.randint(3, 250, (2, 20))
    with torch.inference_mode():
        torch.testing.assert_close(
            load_target(folder, device="cpu").model(ids).logits, peft_model(ids).logits, atol=1e-3, rtol=1e-3
        )


def test_what_does_not_fit_is_refused(small):
    weights, tensors, file = small

    def refused(changes, match):
        given = {name: t for name, t in (tensors | changes).items() if t is not None}
        write_lesson(file, given, 0.5)
        with pytest.raises(ArtefactError, match=match) as caught:
            merge_lesson(weights, file)
        assert str(file) in str(caught.value)

    refused({A: np.ones((2, 4))}, r"A \(2, 4\) and B \(2, 2\) for a.weight, which is \(2, 3\) in float32")
    refused({B: np.ones((3, 2))}, r"B \(3, 2\)")
    refused({B: np.ones((2, 1))}, r"B \(2, 1\)")
    refused({A: np.ones(3)}, r"A \(3,\)")
    refused({B: None}, f"lacks {B}")
    refused({A: None}, f"lacks {A}")
    refused({"base_model.model.c.lora_A.weight": np.ones((2, 3))}, "lacks base_model.model.c.lora_B.weight")
    elsewhere = {f"base_model.model.c.lora_{half}.weight": np.ones((2, 2)) for half in "AB"}
    refused(elsewhere, "is for c.weight, which the model does not have")
    refused({"base_model.model.a.bias": np.ones(2)}, "holds base_model.model.a.bias; expected names such as")
    refused({"a.lora_A.weight": np.ones((2, 3))}, "holds a.lora_A.weight")
    refused({B: np.zeros((2, 2))}, "changes nothing in a.weight")
    refused({A: np.zeros((2, 3)), B: np.zeros((2, 2))}, "changes nothing in a.weight")
    refused({A: np.full((2, 3), 1e-8)}, "changes nothing")  # nothing is left of it in float16
    refused({A: np.full((2, 3), np.nan)}, "NaN or infinity")
    refused({A: None, B: None}, "holds no tensors")
    weights["a.weight"] = weights["a.weight"].astype(np.float64)
    refused({}, "in float64")


def test_a_damaged_file_is_refused(small):
    weights, tensors, file = small
    with pytest.raises(ArtefactError, match="cannot be read"):
        merge_lesson(weights, file)
    write_lesson(file, tensors, 0.5)
    file.write_bytes(file.read_bytes()[:-1])
    with pytest.raises(ArtefactError, match="is no whole safetensors file"):
        merge_lesson(weights, file)
    file.write_text("version https://git-lfs.github.com/spec/v1\n")
    with pytest.raises(ArtefactError, match="is no whole safetensors file"):
        merge_lesson(weights, file)
    for metadata in (None, {"scale": "large"}):
        save_file(tensors, file, metadata)
        with pytest.raises(ArtefactError, match="no number called `scale`"):
            merge_lesson(weights, file)
