"""What a checkpoint folder must hold before any weight of it is read: whole files, every weight, none quantised."""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, NamedTuple

from safetensors import SafetensorError, safe_open

from unlearngate.errors import ArtefactError

_POINTER = b"version https://git-lfs.github.com/spec/"
_POINTER_BYTES = 1024  # Git LFS: a pointer is smaller
_SINGLE, _INDEX = "model.safetensors", "model.safetensors.index.json"
# Where quantisers of several years say what they did: in config.json, or in a file of their own.
_QUANTISED_BY = ("quantization_config", "compression_config", "quantization")
_QUANTISERS_FILES = ("quantize_config.json", "quant_config.json", "hf_quant_config.json")
_METHOD_KEYS = ("quant_method", "quant_algo", "quantization", "format")
# What quantised a target's weights, by vLLM's names and those in config.json: each is in the parity tests.
QUANTISATIONS = {"compressed-tensors": "compressed-tensors", "auto_awq": "awq", "auto_gptq": "gptq"}
_FLOATS = "float-quantized"
_FORMATS = ("pack-quantized", "int-quantized", _FLOATS)  # of compressed-tensors
_PLAIN_DTYPES = ("F16", "BF16", "F32", "F64")


def refuse_pointers(paths: Iterable[Path]) -> None:
    """Refuse a file that `git clone` left in place of a large one.

    Args:
        paths: files; those that are not there are left out.

    Raises: ArtefactError naming the first one, the size of what is missing, and what to do.
    """
    for path in paths:
        if not path.is_file() or path.stat().st_size >= _POINTER_BYTES or not path.read_bytes().startswith(_POINTER):
            continue
        size = re.search(rb"^size (\d+)", path.read_bytes(), re.MULTILINE)
        meant = f" ({int(size[1]):,} bytes)" if size else ""
        raise ArtefactError(
            path,
            f"is a Git LFS pointer in place of the file itself{meant}; run `git lfs pull` in that repository, or "
            "download the folder with `hf download`",
        )


class Quantised(NamedTuple):
    """How a checkpoint says that its weights are quantised: the file, what it says there in short and in whole."""

    path: Path
    said: str
    settings: Mapping[str, Any]


def find_quantised(folder: Path, config: Mapping[str, Any]) -> Quantised | None:
    """Whether a checkpoint's configuration says that its weights are quantised.

    Args:
        folder: the checkpoint's.
        config: its config.json.
    """
    nested = [value for value in config.values() if isinstance(value, dict)]
    for part in (config, *nested):
        for key in _QUANTISED_BY:
            if settings := part.get(key):
                whole = settings if isinstance(settings, dict) and key == _QUANTISED_BY[0] else {}
                return Quantised(folder / "config.json", f"{key}{_method(settings)}", whole)
    for name in _QUANTISERS_FILES:
        if (folder / name).is_file():
            return Quantised(folder, f"it holds {name}", {})
    return None


def untried(settings: Mapping[str, Any]) -> str | None:
    """Why nobody has tried this way to quantise a target, as a part of a sentence; None if the parity tests have.

    Args:
        settings: a configuration's `quantization_config`.
    """
    method, form = settings.get("quant_method"), settings.get("format")
    if method not in QUANTISATIONS.values():
        return f"tried: quant_method {', '.join(QUANTISATIONS.values())}"
    if settings.get("kv_cache_scheme"):
        return "its keys and values are quantised too, by scales that an assistant's have not"
    if method == "compressed-tensors" and form not in _FORMATS:
        return f"its format is {form!r}; tried: {', '.join(_FORMATS)}"
    groups = settings.get("config_groups")
    if form == _FLOATS and not all(map(_is_by_rows, groups.values() if isinstance(groups, dict) else [{}])):
        return (
            "its floats of 8 bits have other scales than those tried, which are one for each output of a linear map, "
            "and one for each token's inputs as they come (FP8_DYNAMIC)"
        )
    return None


def _is_by_rows(group: Mapping[str, Any]) -> bool:
    """Whether a group of compressed-tensors has a scale for each output, and for each token's inputs as they come."""
    weights, inputs = group.get("weights") or {}, group.get("input_activations") or {}
    found = weights.get("strategy"), inputs.get("strategy"), inputs.get("dynamic")
    return found == ("channel", "token", True)


def refuse_quantised(folder: Path, config: Mapping[str, Any]) -> None:
    """Refuse a checkpoint whose configuration says that its weights are quantised.

    Raises: ArtefactError naming the file and the method.
    """
    if found := find_quantised(folder, config):
        raise ArtefactError(found.path, _quantised(found.said))


def check_weight_files(
    folder: Path,
    shards: Iterable[Path],
    wanted: Iterable[tuple[str, tuple[int, ...]]],
    *,
    quantised: bool = False,
) -> None:
    """Read the headers of weight files, and none of the weights.

    Args:
        folder: the checkpoint's.
        shards: its *.safetensors files.
        wanted: the names and shapes of the tensors that its model needs; it may have others.
        quantised: whether its weights may be of any dtype.

    Raises: ArtefactError if one is no whole safetensors file or holds quantised weights, if one that the index lists is
        missing, or the index itself, or if a wanted tensor is missing or has another shape.
    """
    shapes = {path.name: _shapes(path, quantised) for path in shards}
    listed = _listed(folder / _INDEX) if (folder / _INDEX).is_file() else set()
    if missing := sorted(listed - shapes.keys()):
        raise ArtefactError(
            folder, f"lacks {len(missing)} of the weight files that {_INDEX} lists, such as {missing[0]}; download it"
        )
    if _SINGLE not in shapes and not listed:
        raise ArtefactError(
            folder,
            f"holds {min(shapes)} but neither {_SINGLE} nor {_INDEX}, so that nobody knows which files are the "
            "model's; download the one that is missing",
        )
    read = [_SINGLE] if _SINGLE in shapes else listed  # as Hugging Face does
    # Hugging Face reads them without "model." too: an inner model that was saved alone has names like that.
    held = {name.removeprefix("model."): shape for file in read for name, shape in shapes[file].items()}
    for name, shape in wanted:
        found = held.get(name.removeprefix("model."))
        if found is None:
            raise ArtefactError(
                folder,
                f"has no tensor {name}, which the model of its config.json needs; download the weights again, or give "
                "the config.json that belongs to them",
            )
        if found != shape:
            raise ArtefactError(
                folder,
                f"has the tensor {name} in the shape {list(found)}, where its config.json makes it {list(shape)}; give "
                "the config.json that belongs to these weights",
            )


def _shapes(path: Path, quantised: bool) -> dict[str, tuple[int, ...]]:
    """The shapes of a file's tensors by name."""
    try:
        with safe_open(path, framework="np") as tensors:
            slices = {name: tensors.get_slice(name) for name in tensors.keys()}
            dtypes = {name: str(one.get_dtype()) for name, one in slices.items()}
            shapes = {name: tuple(one.get_shape()) for name, one in slices.items()}
    except (SafetensorError, OSError) as error:
        raise ArtefactError(
            path, f"is not a whole safetensors file ({error}; {path.stat().st_size:,} bytes); download it again"
        ) from error
    for name, dtype in dtypes.items():
        if not quantised and "weight" in name and dtype not in _PLAIN_DTYPES:
            raise ArtefactError(path, _quantised(f"tensor {name} is {dtype}"))
    return shapes


def _listed(index: Path) -> set[str]:
    try:
        return {str(name) for name in json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ArtefactError(index, f"is not an index of weight files ({error!r}); download it again") from error


def _method(value: object) -> str:
    """The quantiser's name, as far as its settings tell."""
    parts = [value, *value.values()] if isinstance(value, dict) else []
    known = {key: one for part in reversed(parts) if isinstance(part, dict) for key, one in part.items()}
    named = next((known[key] for key in _METHOD_KEYS if isinstance(known.get(key), str)), None)
    bits, algorithm = known.get("bits", known.get("num_bits")), known.get("quant_algo")
    words = [word for word in dict.fromkeys((named, algorithm, f"{bits} bits" if bits else None)) if word]
    return f": {', '.join(words)}" if words else ""


def _quantised(how: str) -> str:
    return (
        f"is of a quantised checkpoint ({how}); forget sets are trained on the unquantised weights: give the "
        "checkpoint that it was made from, or, to serve this one, say which that is (`serve --quantised-from`)"
    )
