#!/usr/bin/env bash
# torch 2.13.0 (CPU), Python 3.11.
#
# Expected: torch.compile(f, dynamic=True) returns what f returns, here with backend="eager", so that nothing but the tracing can differ.
# Seen: f collects x + i for the i of a loop that are in a tuple argument, (1, 3). Called as it is, and compiled with dynamic=None or
#   False, it returns two tensors. With dynamic=True it returns an empty list, without a warning or an error, also with fullgraph=True:
#   `i in layers` is false for every i. The tuple's numbers are symbols then, and none of them is found equal to the loop's.
# What it costs: a model that keeps the hidden states of chosen layers, as drafters for speculative decoding need them, keeps none.
#   Whoever passes such numbers as arguments checks how many came back, or has them as attributes.
# Exits 0 while that is so, 1 if it changed.
set -euo pipefail
folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT
"${PYTHON:-python3}" -m venv "$folder/venv"
pip="$folder/venv/bin/pip"
# torch's CPU build: from where pip is told to look, else from PyTorch's own index.
"$pip" install --quiet torch==2.13.0+cpu numpy 2> /dev/null \
  || "$pip" install --quiet torch==2.13.0+cpu numpy --extra-index-url https://download.pytorch.org/whl/cpu
cat > "$folder/chosen.py" <<'PY'
import platform

import torch


def chosen(x, layers):
    kept = []
    for i in range(4):
        if i in layers:
            kept.append(x + i)
    return kept


def compiled(dynamic):
    torch.compiler.reset()
    return torch.compile(chosen, backend="eager", fullgraph=True, dynamic=dynamic)


x, layers = torch.zeros(3), (1, 3)
found = {"not compiled": len(chosen(x, layers))}
found |= {f"dynamic={dynamic}": len(compiled(dynamic)(x, layers)) for dynamic in (None, False, True)}
print(f"torch {torch.__version__}, Python {platform.python_version()}; tensors returned: {found}")
as_seen = found == {"not compiled": 2, "dynamic=None": 2, "dynamic=False": 2, "dynamic=True": 0}
raise SystemExit(not as_seen)
PY
"$folder/venv/bin/python" "$folder/chosen.py"
