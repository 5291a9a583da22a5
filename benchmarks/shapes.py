"""Targets of real shapes and forget sets for them, with random weights: serving costs the same as with real ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, models
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast, Qwen3Config

from unlearngate.artefact import now, save_forget_set
from unlearngate.target import identify_target

RANK = 16
_STRENGTH = {"weight": 1.0, "keep_ratio": 0.02, "gate_nats": 0.0}
_BOUNDS = {name: {"low": 0.0, "high": 10.0} for name in _STRENGTH} | {"keep_ratio": {"low": 0.0, "high": 1.0}}
_LLAMA = {"num_attention_heads": 32, "num_key_value_heads": 8, "tie_word_embeddings": False}


def configuration(shape: str) -> Any:
    """A Hugging Face configuration.

    Raises: ValueError if the shape has no name here.
    """
    if shape == "trial":  # for a CPU: layers dominate, the head does not vanish
        return LlamaConfig(
            **{**_LLAMA, "num_attention_heads": 8, "num_key_value_heads": 4},
            **{"vocab_size": 8192, "hidden_size": 512, "intermediate_size": 1408, "num_hidden_layers": 16},
            max_position_embeddings=4096,
        )
    if shape == "smollm2-135m":  # the smallest that is really served, on a CPU too
        return LlamaConfig(
            **{"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30},
            **{"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True},
            max_position_embeddings=8192,
        )
    if shape == "llama-3.1-8b":
        return LlamaConfig(
            **_LLAMA,
            **{"vocab_size": 128256, "hidden_size": 4096, "intermediate_size": 14336, "num_hidden_layers": 32},
            max_position_embeddings=8192,
        )
    if shape == "qwen3-0.6b":
        return Qwen3Config(
            **{"vocab_size": 151936, "hidden_size": 1024, "intermediate_size": 3072, "num_hidden_layers": 28},
            **{"num_attention_heads": 16, "num_key_value_heads": 8, "head_dim": 128, "tie_word_embeddings": True},
            max_position_embeddings=8192,
        )
    raise ValueError(f"shape must be trial, smollm2-135m, qwen3-0.6b or llama-3.1-8b, got {shape!r}")


def make_target(folder: Path, shape: str, dtype: torch.dtype) -> Path:
    """Write the target, unless it is there; a tokenizer too, which nothing here uses."""
    if not (folder / "config.json").exists():
        model = AutoModelForCausalLM.from_config(configuration(shape), dtype=dtype)
        tokenizer = Tokenizer(models.BPE(vocab={"<pad>": 0, "<eos>": 1}, merges=[]))
        fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
        fast.save_pretrained(folder)
        model.save_pretrained(folder)
    return folder


def make_sets(folder: Path, target_folder: Path, *, count: int, num_layers: int, tap_layer: int) -> list[str]:
    """Write `count` forget sets, unless they are there.

    Returns: their names.
    """
    target = identify_target(target_folder)
    names = [f"set-{index}" for index in range(count)]
    for index, name in enumerate(names):
        if (folder / name).exists():
            continue
        generator = torch.Generator().manual_seed(index)
        tensors = {
            f"base_model.model.model.layers.{layer}.{linear}.lora_{side}.weight": torch.randn(
                (RANK, size[1]) if side == "A" else (size[0], RANK), generator=generator
            )
            * 0.02
            for layer in range(num_layers)
            for linear, size in target.linear_shapes().items()
            for side in "AB"
        }
        adapter_config = {
            **{"peft_type": "LORA", "task_type": "CAUSAL_LM", "base_model_name_or_path": target.model_id},
            **{"r": RANK, "lora_alpha": 2 * RANK, "bias": "none"},
            "target_modules": [linear.rpartition(".")[2] for linear in target.linear_shapes()],
        }
        manifest = {
            **{"name": name, "version": "1", "kind": "uld", "target": target.model_dump(), "rank": RANK},
            **{"tap_layer": tap_layer, "num_layers": num_layers, "recommended": _STRENGTH, "bounds": _BOUNDS},
            **{"training": {}, "data_digests": {}, "metrics": {}, "created_at": now()},
        }
        save_forget_set(folder / name, tensors=tensors, adapter_config=adapter_config, manifest=manifest)
    return names
