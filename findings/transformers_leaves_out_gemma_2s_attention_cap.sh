#!/usr/bin/env bash
# transformers 5.19.0, torch 2.13.0 (CPU), Python 3.11.
#
# Expected: Gemma2ForCausalLM, loaded without further arguments, computes what its config.json says. All published Gemma 2
#   have attn_logit_softcapping 50: before the softmax an attention score s becomes 50 tanh(s / 50).
# Seen: the default attention is torch's scaled_dot_product_attention, which has no cap, and it is left out without a word.
#   With attn_implementation="eager" it is there. The logits differ as soon as scores come near the cap.
# What it costs: what was trained or measured with the default belongs to another model than the one that vLLM serves,
#   which caps.
# Exits 0 while that is so, 1 if it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
# torch's CPU build: from where pip is told to look, else from PyTorch's own index.
"$pip" install --quiet torch==2.13.0+cpu 2> /dev/null \
  || "$pip" install --quiet torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
"$pip" install --quiet transformers==5.19.0
cat > "$folder/cap.py" <<'PY'
import sys

import torch
import transformers
from transformers import AutoModelForCausalLM, Gemma2Config

folder = sys.argv[1]
torch.manual_seed(0)
sizes = {"vocab_size": 128, "hidden_size": 64, "intermediate_size": 64, "num_hidden_layers": 2, "head_dim": 32}
config = Gemma2Config(**sizes, num_attention_heads=2, num_key_value_heads=1, initializer_range=0.5)
config.attn_logit_softcapping = 5.0
AutoModelForCausalLM.from_config(config).save_pretrained(folder)
ids = torch.randint(2, 128, (1, 40))


def logits(cap, **how):
    model = AutoModelForCausalLM.from_pretrained(folder, attn_logit_softcapping=cap, **how).eval()
    print(f"cap {cap}, {model.config._attn_implementation}:", end=" ")
    with torch.no_grad():
        found = model(ids).logits
    print([round(x, 3) for x in found[0, -1, :4].tolist()])
    return found


print(f"transformers {transformers.__version__}, torch {torch.__version__}")
default, default_without = logits(5.0), logits(None)
eager, eager_without = (logits(cap, attn_implementation="eager") for cap in (5.0, None))
left_out = torch.equal(default, default_without) and torch.allclose(default, eager_without, atol=1e-3)
raise SystemExit(0 if left_out and not torch.allclose(eager, eager_without, atol=0.1) else 1)
PY
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/cap.py" "$folder/model"
