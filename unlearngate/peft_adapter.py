"""PEFT's two files of a forget set with LoRA: only plain LoRA on linear maps that the target has."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open

from unlearngate.errors import ArtefactError
from unlearngate.manifest import ForgetSetManifest

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TENSOR_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(?P<layer>0|[1-9][0-9]*)\.(?P<linear>[a-z_.]+)\.lora_(?P<half>[AB])\.weight"
)


def verify_config(path: Path, raw: bytes, manifest: ForgetSetManifest) -> None:
    """Refuse PEFT's configuration, read from `path` as `raw`, unless it is plain LoRA of the manifest's rank.

    Raises: ArtefactError naming the field.
    """
    try:
        config = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(path, f"is not JSON ({error})") from error
    if not isinstance(config, dict):
        raise ArtefactError(path, f"must hold a JSON object, got {type(config).__name__}")
    plain: dict[str, tuple[Any, ...]] = {
        "peft_type": ("LORA",),
        "bias": ("none", None),
        "use_dora": (False, None),
        "modules_to_save": (None, []),
        "rank_pattern": ({}, None),
        "alpha_pattern": ({}, None),
        "fan_in_fan_out": (False, None),
        "init_lora_weights": (True, False, None, "gaussian"),
        "layer_replication": (None,),
        "alora_invocation_tokens": (None,),
        "use_qalora": (False, None),
    }
    for field, allowed in plain.items():
        if config.get(field) not in allowed:
            raise ArtefactError(
                path, f"{field} is {config.get(field)!r}; only plain LoRA ({field}={allowed[0]!r}) is served"
            )
    if config.get("r") != manifest.rank:
        raise ArtefactError(path, f"r is {config.get('r')!r}, the manifest's rank {manifest.rank}")
    alpha = config.get("lora_alpha")
    if not isinstance(alpha, int | float) or not 0 < alpha < math.inf:
        raise ArtefactError(path, f"lora_alpha must be a finite number above 0, got {alpha!r}")


def verify_tensors(path: Path, manifest: ForgetSetManifest) -> None:
    """Refuse a file with anything but pairs of finite LoRA tensors that fit linear maps of the set's layers.

    Raises: ArtefactError naming the tensor.
    """
    shapes, rank = manifest.made_for.linear_shapes(), manifest.rank
    halves: dict[tuple[int, str], set[str]] = {}
    try:
        with safe_open(path, framework="pt") as tensors:
            for name in tensors.keys():
                match = _TENSOR_NAME.fullmatch(name)
                if match is None or match["linear"] not in shapes:
                    raise ArtefactError(path, f"tensor {name!r} lands on no module of the set's layers")
                layer, half = int(match["layer"]), match["half"]
                if layer >= manifest.num_layers:
                    raise ArtefactError(path, f"tensor {name!r}: the set has {manifest.num_layers} layers only")
                out_features, in_features = shapes[match["linear"]]
                expected = (rank, in_features) if half == "A" else (out_features, rank)
                tensor = tensors.get_tensor(name)
                if tuple(tensor.shape) != expected:
                    raise ArtefactError(path, f"tensor {name!r} is {tuple(tensor.shape)}, the target needs {expected}")
                if tensor.dtype not in _DTYPES:
                    raise ArtefactError(
                        path, f"tensor {name!r} is {tensor.dtype}; LoRA is served in fp32, bf16 or fp16"
                    )
                if not bool(torch.isfinite(tensor).all()):
                    raise ArtefactError(path, f"tensor {name!r} holds NaN or infinity")
                halves.setdefault((layer, match["linear"]), set()).add(half)
    except (SafetensorError, OSError) as error:
        raise ArtefactError(path, f"is not a safetensors file ({error})") from error
    if not halves:
        raise ArtefactError(path, "holds no tensors")
    for (layer, linear), found in halves.items():
        if found != {"A", "B"}:
            raise ArtefactError(path, f"layer {layer} {linear} has lora_{min(found)} without its other half")
