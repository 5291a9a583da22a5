"""Quantised children of tiny targets: written in the formats that quantisers write, by their documentation.

Each has a twin, an ordinary checkpoint with the weights that the quantised ones stand for.
"""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from unlearngate.server.contract.cpu_kernels import lacking

GROUP = 32  # inputs that share a scale
METHODS = ("w4a16", "w8a8", "fp8", "awq", "gptq")
FP8 = torch.float8_e4m3fn
MOST_FP8 = 448.0
_ORDER = (0, 2, 4, 6, 1, 3, 5, 7)  # of AWQ's eight outputs in a 32-bit word


def quantise(target: Path, child: Path, twin: Path, method: str) -> None:
    """Write a target's quantised child, rounded to nearest, and the child's twin.

    w4a16: compressed-tensors, 4 bits, symmetric, in groups; w8a8: compressed-tensors, 8 bits by output, and inputs to 8
    bits by row as they come; fp8: the same in floats of 8 bits; awq, gptq: 4 bits in groups, with zero points.
    """
    tensors = load_file(target / "model.safetensors")
    packed: dict[str, Tensor] = {}
    plain: dict[str, Tensor] = {}
    for name, weight in tensors.items():
        if name.endswith("_proj.weight"):
            parts, plain[name] = _QUANTISERS[method](weight.float())
            packed |= {f"{name.removesuffix('.weight')}.{part}": one.contiguous() for part, one in parts.items()}
        else:
            packed[name] = plain[name] = weight
    for folder, own in ((child, packed), (twin, plain)):
        shutil.copytree(target, folder)
        save_file(own, folder / "model.safetensors", metadata={"format": "pt"})
    config = json.loads((child / "config.json").read_text())
    dtype = "float32" if method in ROUND_INPUTS else "float16"
    config |= {"quantization_config": _CONFIGS[method], "dtype": dtype}
    (child / "config.json").write_text(json.dumps(config))


def cannot_be_computed_here(method: str) -> str | None:
    """The sentence with which this machine's CPU is refused for a quantisation, if it is."""
    name = f"auto_{method}" if method in ("awq", "gptq") else "compressed-tensors"
    return lacking(SimpleNamespace(get_name=lambda: name, quant_format=_CONFIGS[method].get("format")))


def rounded_rows(x: Tensor) -> Tensor:
    """(..., H) inputs as w8a8 sees them: each row in 8 bits, of a scale of its own."""
    scale = x.abs().amax(dim=-1, keepdim=True).clamp(min=1e-12) / 127
    return (x / scale).round().clamp(-128, 127) * scale


def _rounded_rows_fp8(x: Tensor) -> Tensor:
    scale = x.abs().amax(dim=-1, keepdim=True).float().clamp(min=1e-12) / MOST_FP8
    return (x.float() / scale).clamp(-MOST_FP8, MOST_FP8).to(FP8).to(x.dtype) * scale.to(x.dtype)


def _symmetric(weight: Tensor, bits: int, group: int) -> tuple[Tensor, Tensor]:
    """(O, I) -> integers (O, I) and scales (O, I / group)."""
    grouped = weight.unflatten(1, (-1, group))
    most = 2 ** (bits - 1)
    scale = (grouped.abs().amax(dim=-1, keepdim=True) / (most - 1)).half().float()
    whole = (grouped / scale).round().clamp(-most, most - 1)
    return whole.flatten(1).int(), scale.squeeze(-1)


def _asymmetric(weight: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(O, I) -> integers from 0 to 15, scales and zero points (O, I / GROUP)."""
    grouped = weight.unflatten(1, (-1, GROUP))
    low, high = grouped.amin(-1, keepdim=True).clamp(max=0), grouped.amax(-1, keepdim=True).clamp(min=0)
    scale = ((high - low) / 15).half().float()
    zero = (-low / scale).round().clamp(1, 15)
    whole = ((grouped / scale).round() + zero).clamp(0, 15)
    return whole.flatten(1).int(), scale.squeeze(-1), zero.squeeze(-1).int()


def _in_words(whole: Tensor, order: tuple[int, ...] = tuple(range(8))) -> Tensor:
    """(..., 8 n) integers of 4 bits -> (..., n) int32, the first in the lowest bits."""
    eight = whole.unflatten(-1, (-1, 8))[..., list(order)].long()
    words = (eight << (4 * torch.arange(8))).sum(-1)
    return torch.where(words >= 2**31, words - 2**32, words).int()


def _w4a16(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    whole, scale = _symmetric(weight, 4, GROUP)
    shape = torch.tensor(weight.shape, dtype=torch.int64)
    parts = {"weight_packed": _in_words(whole + 8), "weight_scale": scale.half(), "weight_shape": shape}
    return parts, whole * scale.repeat_interleave(GROUP, dim=1)


def _w8a8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    whole, scale = _symmetric(weight, 8, weight.shape[1])
    return {"weight": whole.to(torch.int8), "weight_scale": scale}, whole * scale


def _fp8(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    scale = weight.abs().amax(dim=1, keepdim=True) / MOST_FP8
    whole = (weight / scale).clamp(-MOST_FP8, MOST_FP8).to(FP8)
    return {"weight": whole, "weight_scale": scale}, whole.float() * scale


def _awq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    whole, scale, zero = _asymmetric(weight)
    parts = {
        "qweight": _in_words(whole.T, _ORDER),
        "qzeros": _in_words(zero.T, _ORDER),
        "scales": scale.T.half(),
    }
    return parts, (whole - zero.repeat_interleave(GROUP, 1)) * scale.repeat_interleave(GROUP, 1)


def _gptq(weight: Tensor) -> tuple[dict[str, Tensor], Tensor]:
    whole, scale = _symmetric(weight, 4, GROUP)
    groups = weight.shape[1] // GROUP
    parts = {
        "qweight": _in_words(whole + 8).T,
        "qzeros": _in_words(torch.full((groups, weight.shape[0]), 7)),  # one less than the zero point
        "scales": scale.T.half(),
        "g_idx": torch.arange(weight.shape[1], dtype=torch.int32) // GROUP,
    }
    return parts, whole * scale.repeat_interleave(GROUP, 1)


def _compressed(form: str, bits: int, strategy: str, inputs: dict | None, kind: str = "int") -> dict:
    weights = {"num_bits": bits, "type": kind, "symmetric": True, "strategy": strategy, "dynamic": False}
    if strategy == "group":
        weights["group_size"] = GROUP
    group = {"targets": ["Linear"], "weights": weights, "input_activations": inputs, "output_activations": None}
    return {
        "quant_method": "compressed-tensors",
        "format": form,
        "quantization_status": "compressed",
        "config_groups": {"group_0": group},
        "ignore": ["lm_head"],
    }


_QUANTISERS = {"w4a16": _w4a16, "w8a8": _w8a8, "fp8": _fp8, "awq": _awq, "gptq": _gptq}
ROUND_INPUTS = {"w8a8": rounded_rows, "fp8": _rounded_rows_fp8}  # what a linear map then sees of its inputs
_OF_ROWS = {"num_bits": 8, "symmetric": True, "strategy": "token", "dynamic": True}
_CONFIGS = {
    "w4a16": _compressed("pack-quantized", 4, "group", None),
    "w8a8": _compressed("int-quantized", 8, "channel", _OF_ROWS | {"type": "int"}),
    "fp8": _compressed("float-quantized", 8, "channel", _OF_ROWS | {"type": "float"}, "float"),
    "awq": {"quant_method": "awq", "bits": 4, "group_size": GROUP, "zero_point": True, "version": "gemm"},
    "gptq": {
        **{"quant_method": "gptq", "bits": 4, "group_size": GROUP, "desc_act": False, "sym": True},
        "checkpoint_format": "gptq",
    },
}
