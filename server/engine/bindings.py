"""The LoRA adapters that bind forget sets to the model.

A request names sets; vLLM takes one adapter per request. So a combination {A, B} becomes one adapter that carries A's
tensors under `assistant_a` and B's under `assistant_b`. It is built on first use from the verified artefacts. A set's
kind alone decides where its tensors land: `uld` on a branch, `undial` on the target.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from unlearngate.artefact import ADAPTER_FILE, CONFIG_FILE, ForgetSet, load_forget_set
from unlearngate.errors import ArtefactError
from unlearngate.server.contract.branches import TARGET_LAYERS, branch_name

_ARTEFACT_PREFIX = "base_model.model.model.layers."


class Binding(NamedTuple):
    """An adapter on disk that vLLM can load. Its id is unique in this server, its name and path everywhere.

    vLLM keys its prefix cache by name and path. Both follow from the sets' digests, so no version of a set ever reads
    another version's cache entries.
    """

    adapter_id: int
    name: str
    folder: Path


class Bindings:
    """The adapters below one folder, by the sets that they bind."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._bindings: dict[str, Binding] = {}
        self._adapter_ids = itertools.count(1)  # never used twice: the engine knows an adapter by its id alone

    def bind(self, sets: Sequence[ForgetSet]) -> Binding:
        """The adapter that runs the i-th `uld` set in branch i and an `undial` set on the target, written on first use.

        Raises: ArtefactError if an artefact was changed since it was loaded.
        """
        key = _key(sets)
        binding = self._bindings.get(key)
        if binding is None:
            folder = self._folder / key
            write_binding(folder, sets)
            binding = Binding(next(self._adapter_ids), f"unlearngate/{key}", folder)
            self._bindings[key] = binding
        return binding

    def known_binding(self, sets: Sequence[ForgetSet]) -> Binding | None:
        """The binding if it was written already."""
        return self._bindings.get(_key(sets))

    def unbind(self, binding: Binding) -> None:
        """Delete an adapter that the engine no longer holds."""
        self._bindings.pop(binding.folder.name, None)
        shutil.rmtree(binding.folder, ignore_errors=True)


def _key(sets: Sequence[ForgetSet]) -> str:
    return hashlib.sha256("\n".join(s.digest for s in sets).encode()).hexdigest()[:32]


def write_binding(folder: Path, sets: Sequence[ForgetSet]) -> None:
    """Write the PEFT folder that carries the i-th `uld` set under branch i, and an `undial` set under the target.

    LoRA's scale is folded into B and ranks are padded with zeros, so sets of different rank and alpha fit one adapter.
    """
    rank = max(s.manifest.rank for s in sets)
    tensors: dict[str, torch.Tensor] = {}
    branch_layers = (f"{branch_name(index)}.layers" for index in itertools.count())
    for forget_set in sets:
        layers = TARGET_LAYERS if forget_set.manifest.kind == "undial" else next(branch_layers)
        if load_forget_set(forget_set.folder).digest != forget_set.digest:
            raise ArtefactError(forget_set.folder, "was replaced by another version after it was loaded")
        scale = _lora_scale(forget_set)
        for name, tensor in load_file(forget_set.folder / ADAPTER_FILE).items():
            bound = f"base_model.model.{layers}." + name.removeprefix(_ARTEFACT_PREFIX)
            pad = rank - forget_set.manifest.rank
            if name.endswith("lora_A.weight"):
                tensors[bound] = torch.nn.functional.pad(tensor.float(), (0, 0, 0, pad))
            else:  # in fp32: scaling in the artefact's own type would round, or overflow
                tensors[bound] = torch.nn.functional.pad(tensor.float() * scale, (0, pad))
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": rank,
        "lora_alpha": rank,
        "bias": "none",
        "target_modules": sorted({name.split(".")[-3] for name in tensors}),
    }
    scratch = folder.with_name(f".{folder.name}")
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)
    save_file(tensors, scratch / ADAPTER_FILE)
    (scratch / CONFIG_FILE).write_text(json.dumps(config))
    shutil.rmtree(folder, ignore_errors=True)
    scratch.replace(folder)


def _lora_scale(forget_set: ForgetSet) -> float:
    config = json.loads((forget_set.folder / CONFIG_FILE).read_text())
    rank = forget_set.manifest.rank
    return float(config["lora_alpha"]) / (math.sqrt(rank) if config.get("use_rslora") else rank)
