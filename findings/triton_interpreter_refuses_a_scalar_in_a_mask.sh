#!/usr/bin/env bash
# Triton 3.9.0, torch 2.13.0 (CPU), Python 3.11.
#
# Expected: a kernel that Triton compiles runs in Triton's interpreter (TRITON_INTERPRET=1), too, where it is slower.
# Seen: a mask that is a scalar condition AND a block's condition is compiled for a GPU, and in the interpreter it is
#   "ValueError('mask has unsupported dtype')". Either condition alone runs there, and so does the scalar one once it is
#   compared as a block.
# What it costs: vLLM's V2 runner can be run on a CPU in the interpreter, but not its kernel for grammars
#   (`position_is_active & bitmask & ...`), so structured outputs cannot be tested there.
# Exits 0 while that is so, 1 if it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
# torch's CPU build: from where pip is told to look, else from PyTorch's own index.
"$pip" install --quiet torch==2.13.0+cpu 2> /dev/null \
  || "$pip" install --quiet torch==2.13.0+cpu --extra-index-url https://download.pytorch.org/whl/cpu
"$pip" install --quiet --no-deps triton==3.9.0 numpy==2.3.5
cat > "$folder/masks.py" <<'PY'
import os
import sys

import torch
import triton
import triton.language as tl
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource


@triton.jit
def both(to, last, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    goes = tl.program_id(0) < last
    tl.store(to + at, 1.0, mask=goes & (at < last))


@triton.jit
def scalar(to, last, SIZE: tl.constexpr):
    goes = tl.program_id(0) < last
    tl.store(to, 1.0, mask=goes)


@triton.jit
def block(to, last, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(to + at, 1.0, mask=at < last)


@triton.jit
def widened(to, last, SIZE: tl.constexpr):
    at = tl.arange(0, SIZE)
    tl.store(to + at, 1.0, mask=(tl.program_id(0) + 0 * at < last) & (at < last))


KERNELS = {"both": both, "scalar": scalar, "block": block, "widened": widened}
if os.environ.get("TRITON_INTERPRET") == "1":
    for name, kernel in KERNELS.items():
        to = torch.zeros(16)
        try:
            kernel[(1,)](to, 9, SIZE=16)
            print(f"{name}: {int(to.sum())} written")
        except Exception as error:
            print(f"{name}: {error}")
else:
    signature = {"to": "*fp32", "last": "i32", "SIZE": "constexpr"}
    for name, kernel in KERNELS.items():
        source = ASTSource(fn=kernel, signature=signature, constexprs={(2,): 16})
        code = triton.compile(source, target=GPUTarget("cuda", 90, 32))
        print(f"{name}: {'compiled' if 'st.global' in code.asm['ptx'] else 'no store'}")
PY
compiled=$("$folder/venv/bin/python" "$folder/masks.py")
interpreted=$(TRITON_INTERPRET=1 "$folder/venv/bin/python" "$folder/masks.py")
printf 'compiled for sm_90:\n%s\n\ninterpreted:\n%s\n' "$compiled" "$interpreted"
expected="both: ValueError('mask has unsupported dtype')
scalar: 1 written
block: 9 written
widened: 9 written"
if [ "$interpreted" = "$expected" ] && [ "$(grep -c ': compiled$' <<< "$compiled")" = 4 ]; then echo "as described"; else echo "changed"; exit 1; fi
