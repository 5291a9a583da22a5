"""The forget sets this server has, and the LoRA adapters that bind them to the model.

A request names sets; vLLM takes one adapter per request. So a combination {A, B} becomes one adapter that carries A's
tensors under `assistant_a` and B's under `assistant_b`: built on first use from the verified artefacts. A set's kind
alone decides where its tensors land: `uld` on a branch, `undial` on the target.
"""

from __future__ import annotations

import hashlib
import itertools
import json
import logging
import math
import shutil
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch
from safetensors.torch import load_file, save_file

from unlearngate.artefact import ADAPTER_FILE, CONFIG_FILE, ForgetSet, load_forget_set
from unlearngate.errors import ArtefactError, UnknownForgetSetError
from unlearngate.server.branches import TARGET_LAYERS, BranchOptions, branch_name
from unlearngate.target import TargetIdentity

logger = logging.getLogger(__name__)

_ARTEFACT_PREFIX = "base_model.model.model.layers."
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)


class Binding(NamedTuple):
    """An adapter on disk that vLLM can load: its id is unique in this server, its name and path in the world."""

    adapter_id: int
    name: str
    folder: Path


class Registry:
    """Verified forget sets by name, and what was refused."""

    def __init__(self, target: TargetIdentity, bindings_folder: Path) -> None:
        self.target = target
        self.sets: dict[str, ForgetSet] = {}
        self.refused: dict[str, str] = {}
        self.tap_layer = 0
        self.num_layers = 1
        self._bindings_folder = bindings_folder
        self._bindings: dict[str, Binding] = {}
        self._adapter_ids = itertools.count(1)  # never used twice: the engine knows an adapter by its id alone

    def discover(
        self, folder: Path, *, tap_layer: int | None = None, num_layers: int | None = None, undial: bool = False
    ) -> None:
        """Load every set below `folder`; one that cannot be served is refused with a reason, the others stay.

        Args:
            folder: holds one sub-folder per set.
            tap_layer: the target's layer that this server's assistants start before.
            num_layers: layers of this server's assistants. What is None is as in most of the sets.
            undial: whether sets of kind `undial` are served, which put LoRA on the target itself.

        Raises: ArtefactError if `folder` does not exist or holds no set that can be served.
        """
        if not folder.is_dir():
            raise ArtefactError(folder, "is not a folder; --forget-sets wants one with a sub-folder per forget set")
        loaded: list[ForgetSet] = []
        for path in sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith(".")):
            try:
                loaded.append(load_forget_set(path, self.target))
            except ArtefactError as error:
                self._refuse(error)
        self.tap_layer, self.num_layers = _branch_layers(loaded, tap_layer, num_layers)
        for forget_set in loaded:
            try:
                self._add(forget_set, undial)
            except ArtefactError as error:
                self._refuse(error)
        if not self.sets:
            reasons = "".join(f"\n  {reason}" for reason in self.refused.values()) or " it is empty"
            raise ArtefactError(folder, f"holds no forget set that can be served:{reasons}")

    def get(self, name: str) -> ForgetSet:
        """The set of this name.

        Raises: UnknownForgetSetError, which is HTTP 404.
        """
        try:
            return self.sets[name]
        except KeyError:
            known = ", ".join(sorted(self.sets)) or "none"
            raise UnknownForgetSetError(
                f"forget set {name!r} is not on this server; it has: {known}", param="forget_sets"
            ) from None

    def max_rank(self) -> int:
        """The smallest LoRA rank vLLM offers that fits every set."""
        largest = max((s.manifest.rank for s in self.sets.values()), default=1)
        return next(rank for rank in _VLLM_RANKS if rank >= largest)

    def branches(self, max_sets_per_request: int) -> BranchOptions:
        """What the model needs for these sets: branches if any is `uld`, LoRA on the target if any is `undial`."""
        kinds = {s.manifest.kind for s in self.sets.values()}
        return BranchOptions(
            self.target.architecture,
            self.tap_layer,
            self.num_layers,
            num_branches=max_sets_per_request if "uld" in kinds else 0,
            adapted_layers=self.target.num_layers if "undial" in kinds else 0,
        )

    def bind(self, sets: Sequence[ForgetSet]) -> Binding:
        """The adapter that runs the i-th `uld` set in branch i and an `undial` set on the target, written on first use.

        Raises: ArtefactError if an artefact was changed since it was loaded.
        """
        key = _binding_key(sets)
        binding = self._bindings.get(key)
        if binding is None:
            folder = self._bindings_folder / key
            write_binding(folder, sets)
            binding = Binding(next(self._adapter_ids), f"unlearngate/{key}", folder)
            self._bindings[key] = binding
        return binding

    def known_binding(self, sets: Sequence[ForgetSet]) -> Binding | None:
        """The binding if it was written already."""
        return self._bindings.get(_binding_key(sets))

    def unbind(self, binding: Binding) -> None:
        """Delete an adapter that the engine no longer holds."""
        self._bindings.pop(binding.folder.name, None)
        shutil.rmtree(binding.folder, ignore_errors=True)

    def _add(self, forget_set: ForgetSet, undial: bool) -> None:
        manifest = forget_set.manifest
        if manifest.kind == "undial":
            if not undial:
                raise ArtefactError(
                    forget_set.folder,
                    "is of kind 'undial', a LoRA on the target itself; the option --enable-undial lets it be served",
                )
        elif (manifest.tap_layer, manifest.num_layers) != (self.tap_layer, self.num_layers):
            raise ArtefactError(
                forget_set.folder,
                f"has an assistant of {manifest.num_layers} layers from layer {manifest.tap_layer} on; this server's "
                f"branches have {self.num_layers} from layer {self.tap_layer} on",
            )
        if forget_set.name in self.sets:
            raise ArtefactError(
                forget_set.folder, f"is named {forget_set.name!r}, as {self.sets[forget_set.name].folder} already is"
            )
        self.sets[forget_set.name] = forget_set

    def _refuse(self, error: ArtefactError) -> None:
        self.refused[str(error.path)] = error.message
        logger.error("forget set refused: %s", error.message)


def _branch_layers(sets: Sequence[ForgetSet], tap_layer: int | None, num_layers: int | None) -> tuple[int, int]:
    """The most common (tap_layer, num_layers) among the sets that have what is asked for."""
    layers = Counter(
        (s.manifest.tap_layer, s.manifest.num_layers)
        for s in sets
        if s.manifest.kind == "uld"
        and tap_layer in (None, s.manifest.tap_layer)
        and num_layers in (None, s.manifest.num_layers)
    )
    return layers.most_common(1)[0][0] if layers else (tap_layer or 0, num_layers or 1)


def _binding_key(sets: Sequence[ForgetSet]) -> str:
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
            raise ArtefactError(forget_set.folder, "was replaced while the server was running; restart to serve it")
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
