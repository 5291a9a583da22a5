"""A GGUF file (llama.cpp's format) as a Hugging Face checkpoint folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GgufConfig, logging


def convert_gguf(gguf: Path, out: Path) -> None:
    """Write the model and its tokenizer, chat template included, to the folder `out`.

    The weights are saved in float32. A Q4_1 weight is a 4-bit number times a float16 scale plus a float16 offset, which
    bfloat16 would round once more; and it is the precision that sets are trained in on a CPU.
    """
    logging.disable_progress_bar()
    # Without dequantize the model keeps its quantised form, and cannot be saved.
    model = AutoModelForCausalLM.from_pretrained(
        gguf.parent, gguf_file=gguf.name, quantization_config=GgufConfig(dequantize=True), dtype=torch.float32
    )
    tokenizer = AutoTokenizer.from_pretrained(gguf.parent, gguf_file=gguf.name)
    tokenizer.model_max_length = model.config.max_position_embeddings  # a GGUF tokenizer says 1e30
    model.save_pretrained(out)
    tokenizer.save_pretrained(out)
