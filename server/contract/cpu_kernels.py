"""What vLLM's kernels for quantised weights want of a CPU, and this one may not have."""

from __future__ import annotations

from typing import Any

import torch

_VNNI = ("avx512_vnni", "avx_vnni", "amx_int8")


def is_int8(quant_config: Any) -> bool:
    """Whether vLLM's configuration of a quantisation is of weights and inputs in 8-bit integers (W8A8)."""
    return getattr(quant_config, "quant_format", None) == "int-quantized"


def is_packed(quant_config: Any) -> bool:
    """Whether it is of weights in 4 bits: AWQ, GPTQ, compressed-tensors' W4A16."""
    packed = getattr(quant_config, "quant_format", None) == "pack-quantized"
    return packed or quant_config.get_name() in ("auto_awq", "auto_gptq")


def lacking(quant_config: Any) -> str | None:
    """What this machine's CPU lacks for a quantisation, as a sentence; None if nothing, or it is no x86 one.

    Args:
        quant_config: vLLM's. Of 8 bits `int-quantized`, of 4 bits all that were tried.
    """
    has = torch.cpu.get_capabilities()
    if has.get("architecture") != "x86_64":
        return None
    if is_packed(quant_config) and not has.get("avx512_f"):
        return (
            "vLLM's kernel for weights of 4 bits on a CPU wants AVX-512, which this CPU has not: serve on another "
            "machine, or another checkpoint of this target"
        )
    if is_int8(quant_config) and not any(has.get(one) for one in _VNNI):
        return (
            "on a CPU without VNNI, as this one, vLLM's products of 8-bit integers are wrong wherever two of them come "
            "to more than 16 bits: serve on a machine whose CPU has avx512_vnni, avx_vnni or amx_int8, or another "
            "checkpoint of this target"
        )
    return None
