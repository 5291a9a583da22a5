#!/usr/bin/env bash
# transformers 5.19.0, Python 3.11.
#
# Expected: the config.json of a Qwen3-MoE checkpoint says how many experts a layer has as `num_experts`, as all published
#   ones do and as Qwen3MoeConfig takes it; loading and saving such a configuration leaves the key where it was.
# Seen: save_pretrained writes `num_local_experts`, which is Mixtral's key, and no `num_experts`. transformers reads both, by
#   an attribute map. Whoever reads config.json otherwise finds no number of experts in a checkpoint that was fine-tuned,
#   merged or converted with it.
# Exits 0 while that is so, 1 if it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet transformers==5.19.0
cat > "$folder/save.py" <<'PY'
import json
import sys
from pathlib import Path

import transformers
from transformers import AutoConfig

folder = Path(sys.argv[1])
published = {"model_type": "qwen3_moe", "architectures": ["Qwen3MoeForCausalLM"], "num_experts": 24, "num_hidden_layers": 2}
(folder / "config.json").write_text(json.dumps(published))
config = AutoConfig.from_pretrained(folder)
config.save_pretrained(folder / "saved")
saved = json.loads((folder / "saved" / "config.json").read_text())
named = {key: saved[key] for key in ("num_experts", "num_local_experts") if key in saved}
print(f"transformers {transformers.__version__}: read num_experts {config.num_experts}, saved {named}")
raise SystemExit(0 if named == {"num_local_experts": 24} else 1)
PY
mkdir "$folder/model"
HF_HUB_OFFLINE=1 "$folder/venv/bin/python" "$folder/save.py" "$folder/model"
