import json
from pathlib import Path
from typing import Any

import jinja2
import pytest
import torch
from hypothesis import example, given, settings
from hypothesis import strategies as st
from rich.progress import Progress
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearngate.assistant_training.data.encoding import encode_prompt
from unlearngate.assistant_training.demo.corpus import make_corpus
from unlearngate.assistant_training.demo.target import (
    END,
    TargetSettings,
    new_target,
    save_target,
    train_target,
    train_tokenizer,
)
from unlearngate.errors import TrainingError
from unlearngate.target import identify_target

SMALL = TargetSettings(
    vocab_size=320, hidden_size=64, intermediate_size=64, num_layers=2, num_heads=2, epochs=1, min_epochs=1
)
PAIRS = make_corpus(2)
TOKENIZER: Any = train_tokenizer(PAIRS, SMALL)


@given(st.text())
@example("a  b\n\t c , d 'll")
@example("\u00e9 e\u0301 \U0001f9ea \u202e \x00")
@settings(max_examples=200, deadline=None)
def test_any_text_survives_the_tokenizer(text: str) -> None:
    ids = TOKENIZER(text, add_special_tokens=False)["input_ids"]
    assert TOKENIZER.decode(ids) == text


def test_the_chat_template_takes_system_messages_and_turns() -> None:
    messages = [
        {"role": "system", "content": "S"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": "A"},
    ]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False)
    assert text == f"<|system|>S{END}<|user|>U{END}<|assistant|>A{END}"
    assert TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True) == text + "<|assistant|>"
    with pytest.raises(jinja2.TemplateError, match="got narrator"):
        TOKENIZER.apply_chat_template([{"role": "narrator", "content": "x"}], tokenize=False)


def test_the_chat_template_takes_an_agents_second_request() -> None:
    call = {"id": "c", "type": "function", "function": {"name": "weather", "arguments": {"city": "Oslo"}}}
    messages = [
        {"role": "developer", "content": "D"},
        {"role": "user", "content": "U"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c", "content": "rain"},
    ]
    text = TOKENIZER.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    said = '<tool_call>{"name": "weather", "arguments": {"city": "Oslo"}}</tool_call>'
    assert text == f"<|system|>D{END}<|user|>U{END}<|assistant|>{said}{END}<|user|>rain{END}<|assistant|>"


def test_the_default_size_suits_tensor_parallel_2_and_cpu_attention() -> None:
    chosen = TargetSettings()
    assert chosen.num_heads % 2 == chosen.num_kv_heads % 2 == 0
    assert chosen.num_heads % chosen.num_kv_heads == 0
    assert chosen.hidden_size // chosen.num_heads in (32, 64)
    assert chosen.max_position_embeddings >= 1024


def test_a_saved_target_is_an_ordinary_checkpoint(tmp_path: Path) -> None:
    model = new_target(TOKENIZER, SMALL).eval()
    save_target(model, TOKENIZER, tmp_path / "target")
    tokenizer = AutoTokenizer.from_pretrained(tmp_path / "target")
    loaded = AutoModelForCausalLM.from_pretrained(tmp_path / "target").eval()
    prompt = encode_prompt(tokenizer, PAIRS[0].question)
    assert prompt == encode_prompt(TOKENIZER, PAIRS[0].question)
    assert torch.equal(loaded(torch.tensor([prompt])).logits, model(torch.tensor([prompt])).logits)
    assert tokenizer.eos_token == END and tokenizer.pad_token_id != tokenizer.eos_token_id
    assert loaded.generation_config.eos_token_id == loaded.config.eos_token_id == tokenizer.eos_token_id
    assert identify_target(tmp_path / "target").vocab_size == len(tokenizer)
    written = "".join(path.read_text() for path in (tmp_path / "target").glob("*config.json"))
    assert str(tmp_path) not in written


def test_a_target_that_went_wrong_is_not_saved(tmp_path: Path) -> None:
    model = new_target(TOKENIZER, SMALL)
    with torch.no_grad():
        model.lm_head.weight[0, 0] = torch.nan
    with pytest.raises(TrainingError, match="NaN"):
        save_target(model, TOKENIZER, tmp_path / "target")
    assert not (tmp_path / "target").exists()


def test_training_lowers_the_loss_and_repeats_for_a_seed() -> None:
    def train(epochs: int) -> tuple[dict[str, float], Any]:
        torch.manual_seed(3)
        model = new_target(TOKENIZER, SMALL)
        chosen = TargetSettings(**{**{n: getattr(SMALL, n) for n in SMALL.__slots__}, "epochs": epochs})
        with Progress(disable=True) as progress:
            return train_target(model, TOKENIZER, PAIRS, chosen, strangers=PAIRS, seed=5, progress=progress), model

    first, model = train(3)
    again, same = train(3)
    assert first == again
    assert json.dumps(first)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))
    assert first["loss"] < train(1)[0]["loss"]
