"""The forget-set artefact: a folder with a PEFT LoRA adapter and `forget_set.json`.

    NAME/
      forget_set.json             ForgetSetManifest
      adapter_config.json         PEFT's
      adapter_model.safetensors   PEFT's; names as PEFT writes them for the set's layers of the target, counted from 0

`save_forget_set` is the only writer, `load_forget_set` the only reader. Loading trusts nothing: see its docstring.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
import re
import tempfile
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import ValidationError
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file

from unlearngate.checkpoint import refuse_pointers
from unlearngate.errors import ArtefactError
from unlearngate.manifest import ForgetSetManifest
from unlearngate.target import TargetIdentity, file_digest

MANIFEST_FILE = "forget_set.json"
ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_DTYPES = (torch.float32, torch.bfloat16, torch.float16)
_TENSOR_NAME = re.compile(
    r"base_model\.model\.model\.layers\.(?P<layer>0|[1-9][0-9]*)\.(?P<linear>[a-z_.]+)\.lora_(?P<half>[AB])\.weight"
)


class ForgetSet(NamedTuple):
    """A verified artefact."""

    manifest: ForgetSetManifest
    folder: Path
    digest: str

    @property
    def name(self) -> str:
        """The forget set's name."""
        return self.manifest.name

    @property
    def reference(self) -> str:
        """`name@digest`, the first 12 digits: what was in force, unambiguously."""
        return f"{self.manifest.name}@{self.digest[:12]}"


def set_folders(folder: Path) -> list[Path]:
    """The sub-folders that each hold a set, by name; files and hidden folders are not sets.

    Raises: ArtefactError if `folder` does not exist.
    """
    if not folder.is_dir():
        raise ArtefactError(folder, "is not a folder; forget sets are read from a folder with one sub-folder for each")
    return sorted(p for p in folder.iterdir() if p.is_dir() and not p.name.startswith("."))


def load_forget_set(folder: Path, target: TargetIdentity | None = None) -> ForgetSet:
    """Read and verify one artefact.

    Refuses: a missing or unreadable file, an unknown kind or field, a digest that does not match, a file the manifest
    does not list, a pickle, a path that leaves the folder, an adapter with anything but plain LoRA pairs on linear maps
    that exist in the target at the right shape, a tensor that is not finite, and, with `target` given, an artefact made
    for other weights or another tokenizer.

    Returns: the verified set; its digest covers the manifest and through it every file.
    Raises: ArtefactError naming the file and the reason.
    """
    if not folder.is_dir():
        raise ArtefactError(folder, "is not a folder")
    try:
        return _load_verified(folder, target)
    except OSError as error:
        raise ArtefactError(Path(error.filename or folder), f"cannot be read ({error.strerror})") from error


def _load_verified(folder: Path, target: TargetIdentity | None) -> ForgetSet:
    if not (folder / MANIFEST_FILE).exists():
        raise ArtefactError(folder / MANIFEST_FILE, f"is missing, so {folder.name} is no forget set; {_hint(folder)}")
    _verify_listing(folder)
    refuse_pointers(folder / name for name in (MANIFEST_FILE, ADAPTER_FILE, CONFIG_FILE))
    manifest_path = folder / MANIFEST_FILE
    raw = _read_bytes(manifest_path)
    manifest = _parse_manifest(manifest_path, raw)
    _verify_files(folder, manifest)
    rank_by_config = _verify_adapter_config(folder / CONFIG_FILE, manifest)
    _verify_tensors(folder / ADAPTER_FILE, manifest, rank_by_config)
    if target is not None:
        _verify_target(manifest_path, manifest.target, target)
    return ForgetSet(manifest, folder.resolve(), hashlib.sha256(raw).hexdigest())


def save_forget_set(
    folder: Path,
    *,
    tensors: Mapping[str, torch.Tensor],
    adapter_config: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> ForgetSet:
    """Write one artefact and read it back, verified. The folder appears whole or not at all.

    Args:
        folder: where it goes; an artefact already there is replaced.
        tensors: LoRA tensors by PEFT's names (`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`).
        adapter_config: PEFT's configuration as JSON values.
        manifest: ForgetSetManifest's fields without `files`.

    Raises: ArtefactError if what would be written could not be loaded again; nothing is left behind then.
    """
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch) / folder.name
        new.mkdir()
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new / ADAPTER_FILE)
        (new / CONFIG_FILE).write_text(json.dumps(dict(adapter_config), indent=2, sort_keys=True) + "\n")
        files = {name: file_digest(new / name) for name in (ADAPTER_FILE, CONFIG_FILE)}
        try:
            checked = ForgetSetManifest.model_validate({**manifest, "files": files})
        except ValidationError as error:
            raise ArtefactError(folder / MANIFEST_FILE, _first_error(error)) from error
        (new / MANIFEST_FILE).write_text(checked.model_dump_json(indent=2) + "\n")
        try:
            load_forget_set(new)
        except ArtefactError as error:
            raise ArtefactError(folder / error.path.name, error.reason) from error
        if folder.exists():
            os.replace(folder, Path(scratch) / "replaced")
        os.replace(new, folder)
    return load_forget_set(folder)


def rewrite_forget_set(forget_set: ForgetSet, folder: Path, **changes: Any) -> ForgetSet:
    """Write the same tensors under a changed manifest.

    Args:
        forget_set: verified; it stays as it is unless `folder` is its own, which is then replaced atomically.
        folder: as `save_forget_set` takes it.
        changes: fields of ForgetSetManifest.

    Raises: as `save_forget_set`.
    """
    return save_forget_set(
        folder,
        tensors=load_file(forget_set.folder / ADAPTER_FILE),
        adapter_config=json.loads((forget_set.folder / CONFIG_FILE).read_text()),
        manifest={**forget_set.manifest.model_dump(exclude={"files"}), **changes, "created_at": now()},
    )


def data_digest(rows: list[dict[str, Any]]) -> str:
    """sha256 over canonical JSON lines: identifies training data without storing it."""
    lines = "".join(json.dumps(row, sort_keys=True, ensure_ascii=True) + "\n" for row in rows)
    return hashlib.sha256(lines.encode()).hexdigest()


def now() -> datetime:
    """The current time with its zone, as `created_at` requires."""
    return datetime.now().astimezone()


def _read_bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        raise ArtefactError(path, "is missing") from None
    except OSError as error:
        raise ArtefactError(path, f"cannot be read ({error.strerror})") from error


def _parse_manifest(path: Path, raw: bytes) -> ForgetSetManifest:
    try:
        data = json.loads(raw)
    except (ValueError, RecursionError) as error:
        raise ArtefactError(path, f"is not JSON ({error})") from error
    if not isinstance(data, dict):
        raise ArtefactError(path, f"must hold a JSON object, got {type(data).__name__}")
    if data.get("kind") not in ("uld", "undial"):
        raise ArtefactError(path, f"kind {data.get('kind')!r} is unknown; this version serves 'uld' and 'undial'")
    try:
        return ForgetSetManifest.model_validate(data)
    except ValidationError as error:
        raise ArtefactError(path, _first_error(error)) from error


def _first_error(error: ValidationError) -> str:
    first = error.errors()[0]
    where = ".".join(str(part) for part in first["loc"])
    return (
        f"{where or 'manifest'}: {first['msg']} (and {error.error_count() - 1} more)"
        if error.error_count() > 1
        else (f"{where or 'manifest'}: {first['msg']}")
    )


def _hint(folder: Path) -> str:
    """What a folder without a manifest is, and what to do."""
    if (folder / CONFIG_FILE).exists():
        return (
            "it is a PEFT adapter, which says neither what it was trained to forget nor for which target; "
            "`unlearngate train` makes forget sets"
        )
    if sets := sorted(path.parent.name for path in folder.glob(f"*/{MANIFEST_FILE}")):
        return f"it holds some: {', '.join(sets)}; give one of them"
    return "`unlearngate train` makes forget sets"


def _verify_listing(folder: Path) -> None:
    """Only the three files, as plain files: nothing else in the folder is covered by a digest."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _PICKLES:
            raise ArtefactError(path, "is a pickle, which can run code when read; export the adapter as safetensors")
        if path.is_symlink():
            raise ArtefactError(path, f"leads out of the folder, to {path.readlink()}; put the file itself there")
        if path.name not in (MANIFEST_FILE, ADAPTER_FILE, CONFIG_FILE):
            raise ArtefactError(
                path, f"does not belong here: only {MANIFEST_FILE}, {ADAPTER_FILE} and {CONFIG_FILE} do"
            )
        if not path.is_file():
            raise ArtefactError(path, "is not a file")


def _verify_files(folder: Path, manifest: ForgetSetManifest) -> None:
    if set(manifest.files) != {ADAPTER_FILE, CONFIG_FILE}:
        raise ArtefactError(
            folder / MANIFEST_FILE, f"must list exactly {ADAPTER_FILE} and {CONFIG_FILE}, got {sorted(manifest.files)}"
        )
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtefactError(path, "is missing")
        if (found := file_digest(path)) != digest:
            raise ArtefactError(path, f"was changed or damaged: its sha256 is {found[:12]}..., not {digest[:12]}...")


def _verify_adapter_config(path: Path, manifest: ForgetSetManifest) -> int:
    try:
        config = json.loads(_read_bytes(path))
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
    return manifest.rank


def _verify_tensors(path: Path, manifest: ForgetSetManifest, rank: int) -> None:
    shapes = manifest.target.linear_shapes()
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


def _verify_target(path: Path, made_for: TargetIdentity, served: TargetIdentity) -> None:
    if made_for.tokenizer_digest != served.tokenizer_digest:
        raise ArtefactError(
            path,
            f"was made with another tokenizer (sha256 {made_for.tokenizer_digest[:12]}...) than the served target's "
            f"({served.tokenizer_digest[:12]}...); train the set on this target",
        )
    if made_for.weights_digest != served.weights_digest:
        raise ArtefactError(
            path,
            f"was made for another target, {made_for.model_id!r} (weights sha256 {made_for.weights_digest[:12]}...), "
            f"than the served {served.model_id!r} ({served.weights_digest[:12]}...); train the set on this target",
        )
    ignored = {"model_id", "weights_digest", "tokenizer_digest"}
    for field, value in made_for.model_dump(exclude=ignored).items():
        if value != getattr(served, field):
            raise ArtefactError(
                path, f"says the target's {field} is {value}, the served one has {getattr(served, field)}"
            )
