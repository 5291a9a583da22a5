"""Lessons: what a pretrained model is taught, as low-rank matrices that are added to its weights.

A lesson file is an adapter_model.safetensors of PEFT's, in float16, with its scale in the metadata: a few megabytes in
place of a second checkpoint. Forget sets are bound to the digest of the weights, so merging makes the same bits on
every machine: float64, element by element, rank after rank, with no matrix product whose order a library chooses.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file, save_file

from unlearngate.errors import ArtefactError

WEIGHTS_FILE = "model.safetensors"
Weights = dict[str, NDArray[Any]]
_PREFIX, _DOWN, _UP = "base_model.model.", ".lora_A.weight", ".lora_B.weight"  # PEFT's names


def write_lesson(path: Path, tensors: Mapping[str, NDArray[Any]], scale: float) -> None:
    """Write a lesson file.

    Args:
        path: the file.
        tensors: those of a PEFT model under PEFT's names; A is (rank, in), B is (out, rank).
        scale: what B times A is multiplied with; LoRA's alpha / rank.
    """
    save_file({name: tensor.astype(np.float16) for name, tensor in tensors.items()}, path, {"scale": repr(scale)})


def teach_checkpoint(folder: Path, lesson: Path) -> None:
    """Merge a lesson into the weights of a checkpoint folder, which are in one file and in float32.

    Raises: ArtefactError if the lesson is damaged or is for other weights.
    """
    path, scratch = folder / WEIGHTS_FILE, folder / f".{WEIGHTS_FILE}"
    save_file(merge_lesson(load_file(path), lesson), scratch, {"format": "pt"})
    os.replace(scratch, path)


def merge_lesson(weights: Weights, lesson: Path) -> Weights:
    """The weights after the lesson. Those that it does not change are the same arrays.

    Raises: ArtefactError if the lesson is damaged, has a tensor that these weights have no place for, or leaves a
        weight that it has tensors for as it was.
    """
    tensors, scale = _read(lesson)
    taught = dict(weights)
    for name in sorted({_taught_by(lesson, tensor) for tensor in tensors}):
        weight_OI, (down_RI, up_OR) = _at(lesson, name, weights, tensors)
        taught[name] = _merged(weight_OI, down_RI, up_OR, scale)
        if np.array_equal(taught[name], weight_OI):
            raise ArtefactError(lesson, f"changes nothing in {name}; expected a lesson that was trained")
        if not np.isfinite(taught[name]).all():
            raise ArtefactError(lesson, f"makes NaN or infinity of {name}; teach again with a lower learning rate")
    return taught


def _merged(weight_OI: NDArray[Any], down_RI: NDArray[Any], up_OR: NDArray[Any], scale: float) -> NDArray[Any]:
    sum_OI = np.zeros(weight_OI.shape)
    for up_O, down_I in zip(up_OR.T.astype(np.float64), down_RI.astype(np.float64), strict=True):
        sum_OI += up_O[:, None] * down_I
    return (weight_OI.astype(np.float64) + scale * sum_OI).astype(np.float32)


def _read(lesson: Path) -> tuple[Weights, float]:
    try:
        with safe_open(lesson, framework="numpy") as file:
            tensors = {name: file.get_tensor(name) for name in file.keys()}
            scale = float((file.metadata() or {})["scale"])
    except OSError as error:
        raise ArtefactError(lesson, f"cannot be read ({error.strerror or error}); install the package again") from error
    except SafetensorError as error:
        raise ArtefactError(lesson, f"is no whole safetensors file ({error}); install the package again") from error
    except (KeyError, ValueError) as error:
        raise ArtefactError(lesson, "has no number called `scale` in its metadata; expected a lesson file") from error
    if not tensors:
        raise ArtefactError(lesson, "holds no tensors; expected a lesson that was trained")
    return tensors, scale


def _taught_by(lesson: Path, tensor: str) -> str:
    """The weight that a tensor of a lesson is for."""
    for ending in (_DOWN, _UP):
        if tensor.startswith(_PREFIX) and tensor.endswith(ending):
            return tensor.removeprefix(_PREFIX).removesuffix(ending) + ".weight"
    raise ArtefactError(lesson, f"holds {tensor}; expected names such as {_PREFIX}NAME{_DOWN} and {_PREFIX}NAME{_UP}")


def _at(
    lesson: Path, name: str, weights: Weights, tensors: Weights
) -> tuple[NDArray[Any], tuple[NDArray[Any], NDArray[Any]]]:
    """A weight, and the lesson's A and B for it."""
    place = _PREFIX + name.removesuffix(".weight")
    for needed in (place + _DOWN, place + _UP):
        if needed not in tensors:
            raise ArtefactError(lesson, f"lacks {needed}, and holds the other tensor for {name}")
    if name not in weights:
        raise ArtefactError(lesson, f"is for {name}, which the model does not have; take the model it was made for")
    weight, down, up = weights[name], tensors[place + _DOWN], tensors[place + _UP]
    fits = down.ndim == up.ndim == 2 and up.shape[1] == down.shape[0] and (up.shape[0], down.shape[1]) == weight.shape
    if not fits or weight.dtype != np.float32:
        raise ArtefactError(
            lesson,
            f"has A {down.shape} and B {up.shape} for {name}, which is {weight.shape} in {weight.dtype}; expected "
            "(rank, in) and (out, rank) for (out, in) in float32: take the model it was made for",
        )
    return weight, (down, up)
