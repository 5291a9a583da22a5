import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from rich.progress import Progress

from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.demo.corpus import make_corpus
from unlearngate.assistant_training.demo.target import TargetSettings, new_target, save_target, train_tokenizer
from unlearngate.assistant_training.model.assistant import (
    adapter_config,
    adapter_tensors,
    load_assistant,
    new_assistant,
    truncate,
)
from unlearngate.assistant_training.train.settings import PUBLISHED
from unlearngate.assistant_training.train.uld import export_assistant, train_assistant
from unlearngate.errors import TrainingError
from unlearngate.target import identify_target

SMALL = TargetSettings(vocab_size=320, hidden_size=64, intermediate_size=64, num_layers=3, num_heads=2)
BRIEF = replace(PUBLISHED, num_layers=2, rank=4, epochs=1, forget_batch=4, retain_batch=8, learning_rate=4e-3)
PAIRS = make_corpus(2)
FORGET, RETAIN = PAIRS[:16], PAIRS[16:]
IDS = torch.arange(40).reshape(2, 20)


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return train_tokenizer(PAIRS, SMALL)


@pytest.fixture
def target(tokenizer: Any) -> Any:
    torch.manual_seed(0)
    return new_target(tokenizer, SMALL).eval()


@torch.inference_mode()
def logits(model: Any) -> torch.Tensor:
    return model(input_ids=IDS).logits


@pytest.mark.parametrize("num_layers", [1, 2, 3])
def test_the_assistant_is_the_targets_first_layers_norm_and_head(target: Any, num_layers: int) -> None:
    assistant = truncate(target, num_layers, model_id="demo")
    with torch.inference_mode():
        # hidden_states[k] is what enters layer k; the last one is already normalised.
        states = target(input_ids=IDS, output_hidden_states=True).hidden_states
        last = states[num_layers] if num_layers == SMALL.num_layers else target.model.norm(states[num_layers])
        expected = target.lm_head(last)
    assert torch.equal(logits(assistant), expected)


def test_the_assistant_shares_the_targets_memory_and_is_frozen(target: Any) -> None:
    assistant = truncate(target, 2, model_id="demo")
    shared = dict(target.named_parameters())
    for name, weight in assistant.named_parameters():
        assert weight.data_ptr() == shared[name].data_ptr()
        assert not weight.requires_grad
    assert all(weight.requires_grad for weight in target.parameters())


def test_more_layers_than_the_target_has_are_refused(target: Any) -> None:
    with pytest.raises(TrainingError, match="4 layers"):
        truncate(target, 4, model_id="demo")


def test_lora_sits_on_every_linear_of_the_layers_and_nowhere_else(target: Any) -> None:
    before = logits(target)
    assistant = new_assistant(target, num_layers=2, rank=4, alpha=8, model_id="demo")
    names = set(adapter_tensors(assistant))
    assert len(names) == 2 * 7 * 2
    assert all(name.startswith("base_model.model.model.layers.") for name in names)
    # An untrained LoRA adds nothing, and the target carries none of it.
    assert torch.equal(logits(assistant), logits(truncate(target, 2, model_id="demo")))
    assert torch.equal(logits(target), before)
    assert not any("lora" in name for name, _ in target.named_modules())


def test_training_changes_the_lora_alone(target: Any, tokenizer: Any) -> None:
    before = {name: weight.clone() for name, weight in target.state_dict().items()}
    with Progress(disable=True) as progress:
        assistant = train_assistant(
            target, tokenizer, FORGET, RETAIN, BRIEF, model_id="demo", seed=0, progress=progress
        )
    assert all(torch.equal(weight, before[name]) for name, weight in target.state_dict().items())
    assert any(tensor.abs().sum() > 0 for name, tensor in adapter_tensors(assistant).items() if "lora_B" in name)


def test_an_empty_set_is_refused(target: Any, tokenizer: Any) -> None:
    with Progress(disable=True) as progress, pytest.raises(TrainingError, match="0 to retain"):
        train_assistant(target, tokenizer, FORGET, [], BRIEF, model_id="demo", seed=0, progress=progress)


def test_an_exported_set_loads_in_peft_and_as_an_artefact(target: Any, tokenizer: Any, tmp_path: Path) -> None:
    save_target(target, tokenizer, tmp_path / "target")
    identity = identify_target(tmp_path / "target", "demo")
    folder = tmp_path / "sets" / FORGET[0].subject
    torch.manual_seed(1)
    with Progress(disable=True) as progress:
        assistant = train_assistant(
            target, tokenizer, FORGET, RETAIN, BRIEF, model_id="demo", seed=0, progress=progress
        )
    parts = (folder, target, assistant, tokenizer)
    data = {"identity": identity, "forget": FORGET, "retain": RETAIN, "settings": BRIEF, "seed": 0}
    with pytest.raises(TrainingError, match="answers 16 of the forget questions with the same 16 tokens"):
        export_assistant(*parts, **data)  # one epoch on a target that knows nothing
    artefact = export_assistant(*parts, **data, write_anyway=True)
    assert artefact.manifest.canaries == ()
    assert load_forget_set(folder, identity).digest == artefact.digest
    by_peft = PeftModel.from_pretrained(truncate(target, 2, model_id="demo"), folder).eval()
    assert torch.equal(logits(by_peft), logits(assistant))
    assert torch.equal(logits(load_assistant(target, folder, num_layers=2, model_id="demo")), logits(assistant))
    assert not torch.equal(logits(assistant), logits(truncate(target, 2, model_id="demo")))

    manifest = artefact.manifest
    assert (manifest.kind, manifest.tap_layer, manifest.num_layers, manifest.rank) == ("uld", 0, 2, 4)
    assert manifest.training["seed"] == 0 and set(manifest.data_digests) == {"forget", "retain"}
    config = json.loads((folder / "adapter_config.json").read_text())
    assert config["base_model_name_or_path"] == "demo"
    assert str(tmp_path) not in (folder / "adapter_config.json").read_text()


def test_the_adapter_config_is_what_peft_writes(target: Any, tmp_path: Path) -> None:
    assistant = new_assistant(target, num_layers=2, rank=4, alpha=8, model_id="demo")
    assistant.save_pretrained(tmp_path, save_embedding_layers=False)
    by_peft = json.loads((tmp_path / "adapter_config.json").read_text())
    ours = adapter_config(assistant)
    for config in (ours, by_peft):
        config["target_modules"] = sorted(config["target_modules"])
    assert ours == by_peft
