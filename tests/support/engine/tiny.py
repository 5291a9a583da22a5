"""Tiny random targets and forget sets: real files, made in milliseconds, that know nothing."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    Gemma2Config,
    Gemma3TextConfig,
    GraniteConfig,
    LlamaConfig,
    MistralConfig,
    MixtralConfig,
    Olmo2Config,
    Olmo3Config,
    Phi3Config,
    PreTrainedConfig,
    PreTrainedTokenizerFast,
    Qwen2Config,
    Qwen2MoeConfig,
    Qwen3Config,
    Qwen3MoeConfig,
    SmolLM3Config,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

from unlearngate.artefact import ForgetSet, now, save_forget_set
from unlearngate.manifest import FIXED_BOUNDS, FIXED_STRENGTH
from unlearngate.target import identify_target

VOCAB_SIZE = 512
EOS = 1
STRENGTH = {"weight": 1.0, "keep_ratio": 0.1, "gate_nats": 0.0}
BOUNDS = {
    "weight": {"low": 0.0, "high": 4.0},
    "keep_ratio": {"low": 0.0, "high": 1.0},
    "gate_nats": {"low": 0.0, "high": 20.0},
}


def _longrope(number: int, short: float, long: float) -> dict[str, object]:
    """Phi-3's: a factor for each pair of dimensions, growing along them."""
    factors = {name: [base**i for i in range(number)] for name, base in (("short", short), ("long", long))}
    return {"type": "longrope", **{f"{name}_factor": one for name, one in factors.items()}}


FAMILY_NAMES = (
    "llama",
    "mistral",
    "qwen2",
    "qwen3",
    "gemma2",
    "gemma3",
    "phi3",
    "granite",
    "olmo2",
    "olmo3",
    "smollm3",
    "mixtral",
    "qwen2moe",
    "qwen3moe",
)
WINDOW = 96  # of sliding attention: shorter than many prompts
_LENGTHS = {"max_position_embeddings": 2048, "original_max_position_embeddings": 512}
# Rotary embeddings as published configurations have them, for 512 tokens. Their angles differ between dimensions.
ROPES: dict[str, dict[str, object]] = {
    "linear": {"rope_scaling": {"type": "linear", "factor": 4.0}, "max_position_embeddings": 128},
    "dynamic": {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama3": {
        "rope_scaling": {
            **{"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0},
            "original_max_position_embeddings": 64,
        }
    },
    "yarn": {"rope_scaling": {"type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128}},
    "longrope": {"rope_scaling": _longrope(16, 1.05, 1.3), **_LENGTHS},
    "longrope-long": {
        "rope_scaling": _longrope(16, 1.3, 1.3),
        **_LENGTHS,
        "original_max_position_embeddings": 128,
    },
    "longrope-partial": {"rope_scaling": _longrope(12, 1.05, 1.3), "partial_rotary_factor": 0.75, **_LENGTHS},
}
CHAT_TEMPLATE = "{% for m in messages %}{{ m['role'] }}: {{ m['content'] }}\n{% endfor %}assistant:"


def family_config(family: str, *, num_layers: int = 4, vocab_size: int = VOCAB_SIZE) -> PreTrainedConfig:
    """A small configuration of one of FAMILY_NAMES, with what its checkpoints have that Llama's have not."""
    config = _config(family, num_layers, vocab_size)
    config.architectures = [MODEL_FOR_CAUSAL_LM_MAPPING_NAMES[config.model_type]]
    return config


def _config(family: str, num_layers: int, vocab_size: int) -> PreTrainedConfig:
    common = {
        "vocab_size": vocab_size,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": num_layers,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 512,
        "bos_token_id": None,
        "eos_token_id": EOS,
        "pad_token_id": 0,
        # Larger than usual: random logits must be far apart, or every position is a tie.
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
    }
    # Heads of H / 4, as large as the CPU build's smallest. More inputs with smaller weights: as large outputs.
    wide = common | {"hidden_size": 128, "initializer_range": 0.14}
    kinds = (["sliding_attention", "full_attention"] * num_layers)[:num_layers]
    if family == "llama":
        return LlamaConfig(**common, head_dim=32)
    if family == "mistral":
        return MistralConfig(**common, head_dim=32, sliding_window=WINDOW)
    if family == "qwen2":
        return Qwen2Config(**wide)
    if family == "qwen3":
        return Qwen3Config(**{**common, "tie_word_embeddings": True}, head_dim=32)
    if family == "gemma2":  # every other layer sees a window; caps so low that they change what is said
        return Gemma2Config(
            **{**common, "tie_word_embeddings": True, "initializer_range": 0.1},
            head_dim=32,
            query_pre_attn_scalar=24,
            sliding_window=WINDOW,
            attn_logit_softcapping=4.0,
            final_logit_softcapping=12.0,
        )
    if family == "gemma3":  # every other layer sees a window, and has rotary embeddings of its own
        return Gemma3TextConfig(
            **{**common, "tie_word_embeddings": True, "initializer_range": 0.1},
            head_dim=32,
            query_pre_attn_scalar=32,
            sliding_window=WINDOW,
            layer_types=kinds,
        )
    if family == "phi3":
        return Phi3Config(**wide, sliding_window=WINDOW)
    if family == "granite":
        multipliers = {"embedding_multiplier": 3.0, "residual_multiplier": 0.5, "logits_scaling": 2.0}
        return GraniteConfig(**wide, **multipliers, attention_multiplier=0.2, attention_bias=True)
    if family == "olmo2":
        return Olmo2Config(**wide)
    if family == "olmo3":  # every other layer sees a window
        return Olmo3Config(**wide, sliding_window=WINDOW, layer_types=kinds)
    if family == "smollm3":  # every other layer without positions
        return SmolLM3Config(**{**wide, "tie_word_embeddings": True}, no_rope_layer_interval=2)
    if family == "mixtral":
        return MixtralConfig(**wide, num_local_experts=4, num_experts_per_tok=2)
    experts = {"num_experts": 8, "num_experts_per_tok": 2, "moe_intermediate_size": 64}
    if family == "qwen2moe":  # weights of the experts that do not sum to 1, as Qwen1.5's and Qwen2's
        return Qwen2MoeConfig(**wide, **experts, shared_expert_intermediate_size=96, norm_topk_prob=False)
    if family == "qwen3moe":
        return Qwen3MoeConfig(**wide, **experts, norm_topk_prob=True, head_dim=32)
    raise ValueError(f"unknown family {family!r}")


def make_target(
    folder: Path,
    family: str = "llama",
    *,
    seed: int,
    num_layers: int = 4,
    vocab_size: int = VOCAB_SIZE,
    rope: str | None = None,
) -> Path:
    """Write a random target of a family, with a byte-level tokenizer of 258 tokens.

    vocab_size: rows of the embeddings and the head; those beyond the tokenizer's are random as all others.
    rope: one of ROPES, in place of a plain one.
    """
    torch.manual_seed(seed)
    config = family_config(family, num_layers=num_layers, vocab_size=vocab_size)
    model = AutoModelForCausalLM.from_config(config, dtype=torch.float32)
    for name, parameter in model.named_parameters():
        if "norm" in name:  # all-ones norms would hide a branch that forgot one
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif name.endswith("bias"):  # and so would zeros
            torch.nn.init.uniform_(parameter, -0.5, 0.5)
    model.save_pretrained(folder)
    make_tokenizer().save_pretrained(folder)
    if rope:
        config = json.loads((folder / "config.json").read_text())
        theta = config.pop("rope_parameters")["rope_theta"]
        (folder / "config.json").write_text(json.dumps(config | {"rope_theta": theta} | ROPES[rope]))
    return folder


def make_tokenizer() -> PreTrainedTokenizerFast:
    """Bytes as tokens, after <pad> and <eos>."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocab = {token: index for index, token in enumerate(["<pad>", "<eos>", *alphabet])}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    fast = PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>")
    fast.chat_template = CHAT_TEMPLATE
    return fast


def make_forget_set(
    folder: Path,
    target_folder: Path,
    *,
    seed: int,
    num_layers: int = 2,
    rank: int = 8,
    alpha: int = 16,
    scale: float = 0.15,
    dtype: torch.dtype = torch.float32,
    **manifest: object,
) -> ForgetSet:
    """Write a random set for a target; `manifest` overrides single fields. Kind "undial" has every layer."""
    target = identify_target(target_folder)
    undial = manifest.get("kind") == "undial"
    if undial:
        num_layers = target.num_layers
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for layer in range(num_layers):
        for linear, (out_features, in_features) in target.linear_shapes().items():
            stem = f"base_model.model.model.layers.{layer}.{linear}"
            a = torch.randn(rank, in_features, generator=generator) * scale
            b = torch.randn(out_features, rank, generator=generator) * scale
            tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"] = a.to(dtype), b.to(dtype)
    adapter_config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "base_model_name_or_path": target.model_id,
        "r": rank,
        "lora_alpha": alpha,
        "bias": "none",
        "target_modules": [name.rpartition(".")[2] for name in target.linear_shapes()],
    }
    fields: dict[str, object] = {
        "name": folder.name,
        "version": "1",
        "kind": "uld",
        "target": target.model_dump(),
        "tap_layer": 0,
        "num_layers": num_layers,
        "rank": rank,
        "recommended": FIXED_STRENGTH.model_dump() if undial else STRENGTH,
        "bounds": FIXED_BOUNDS.model_dump() if undial else BOUNDS,
        "training": {"seed": seed},
        "data_digests": {},
        "metrics": {},
        "created_at": now(),
    }
    return save_forget_set(folder, tensors=tensors, adapter_config=adapter_config, manifest={**fields, **manifest})
