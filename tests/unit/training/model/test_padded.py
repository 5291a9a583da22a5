"""Targets whose head has more rows than the tokenizer has tokens, and tokenizers with added tokens."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import PeftModel
from rich.progress import Progress
from safetensors.torch import save_file
from tokenizers import AddedToken
from transformers import AutoModelForCausalLM

from support.engine.tiny import make_target, make_tokenizer
from unlearngate.assistant_training.data.encoding import encode
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.model.assistant import adapter_config, adapter_tensors, own_token
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.train import check
from unlearngate.assistant_training.train.settings import AssistantSettings
from unlearngate.assistant_training.train.uld import train_assistant
from unlearngate.errors import TrainingError

BYTES = 258
CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
ADDED = ["<|im_start|>", "<|im_end|>", "<|unused|>"]  # tokens 258 to 260
PAIRS = [QAPair("Ida", f"Where was Ida {i}?", f"Ida {i} was in town {i * 7}.") for i in range(4)]


def with_added_tokens(folder, rows):
    """A tiny target with a chat template in added tokens, as Qwen's, and a head of so many rows."""
    make_target(folder, seed=3, vocab_size=rows)
    tokenizer = make_tokenizer()
    tokenizer.add_tokens([AddedToken(token, special=True) for token in ADDED], special_tokens=True)
    tokenizer.eos_token, tokenizer.chat_template = "<|im_end|>", CHATML
    tokenizer.save_pretrained(folder)
    return folder


@pytest.fixture
def target(tmp_path):
    return load_target(with_added_tokens(tmp_path / "target", 600), device="cpu")


def test_a_turn_ends_with_the_added_token(target):
    row = encode(target.tokenizer, "a?", "b")
    assert row.input_ids[0] == BYTES and row.labels[-1] == BYTES + 1
    assert len(target.tokenizer) == BYTES + len(ADDED)


def test_a_row_that_no_token_has_is_not_the_assistants_own(target, monkeypatch):
    head = target.model.get_output_embeddings().weight
    with torch.no_grad():
        head[BYTES:] *= 50  # those without a token, and the added ones, would be it
    taken = []
    monkeypatch.setattr(
        "unlearngate.assistant_training.train.uld.own_token",
        lambda model, tokens: taken.append(own_token(model, tokens)) or taken[-1],
    )
    settings = AssistantSettings(num_layers=2, steps=1, forget_batch=4, retain_batch=4, check_every=1000)
    with Progress(disable=True) as progress:
        train_assistant(
            *(target.model, target.tokenizer, PAIRS[:2], PAIRS[2:], settings), model_id="x", seed=1, progress=progress
        )
    assert own_token(target.model, ()) >= BYTES
    assert 2 <= taken[0] < BYTES


def test_evidence_is_over_all_rows_as_in_the_engine(target, tmp_path, seed):
    """KL(p || uniform) with V the head's rows, against Hugging Face + PEFT in float64."""
    settings = AssistantSettings(num_layers=2, tap_layer=0, steps=2, forget_batch=4, retain_batch=4, check_every=1000)
    with Progress(disable=True) as progress:
        assistant = train_assistant(
            *(target.model, target.tokenizer, PAIRS[:2], PAIRS[2:], replace(settings, learning_rate=1e-2)),
            model_id="x",
            seed=seed,
            progress=progress,
        )
    rows = [encode(target.tokenizer, pair.question, pair.answer) for pair in PAIRS]
    found = check._evidence(assistant.eval(), rows, target.tokenizer.pad_token_id)
    own = AutoModelForCausalLM.from_pretrained(target.folder, dtype=torch.float64, num_hidden_layers=2)
    (tmp_path / "lora").mkdir()
    (tmp_path / "lora" / "adapter_config.json").write_text(json.dumps(adapter_config(assistant)))
    save_file(adapter_tensors(assistant), tmp_path / "lora" / "adapter_model.safetensors")
    exact = PeftModel.from_pretrained(own, tmp_path / "lora").eval().double()
    for row, evidence in zip(rows, found, strict=True):
        with torch.no_grad():
            log_p_TV = exact(torch.tensor([row.input_ids])).logits[0].log_softmax(dim=-1)
        assert log_p_TV.shape[1] == 600
        kl_T = (log_p_TV.exp() * log_p_TV).sum(dim=-1) + np.log(600)
        answered = [index - 1 for index, label in enumerate(row.labels) if label >= 0]
        assert np.allclose(evidence, kl_T[answered].numpy(), atol=1e-4)


def test_padding_with_a_token_that_has_no_row_is_done_with_the_end_token(tmp_path):
    folder = with_added_tokens(tmp_path / "target", BYTES + 2)  # the third added token has none
    tokenizer = load_target(folder).tokenizer
    tokenizer.pad_token = "<|unused|>"
    tokenizer.save_pretrained(folder)
    target = load_target(folder, device="cpu")
    assert target.tokenizer.pad_token_id == target.tokenizer.eos_token_id == BYTES + 1


def test_a_template_with_a_token_that_has_no_row_is_refused(tmp_path):
    folder = with_added_tokens(tmp_path / "target", BYTES)
    with pytest.raises(TrainingError, match=r"uses '<\|im_start\|>', which is token 258, .* have 258 rows"):
        load_target(folder)
