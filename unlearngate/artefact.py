"""The forget-set artefact: a folder with `forget_set.json`, and a PEFT LoRA adapter or the seeds of texts.

    NAME/
      forget_set.json             ForgetSetManifest
      adapter_config.json         PEFT's
      adapter_model.safetensors   PEFT's; names as PEFT writes them for the set's layers of the target, counted from 0
      passages.safetensors        of kind `verbatim`, instead of PEFT's files: see passages.py

`save_forget_set` and `save_passages` are the only writers, `load_forget_set` the only reader. Loading trusts nothing:
see its docstring.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from datetime import datetime
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from pydantic import ValidationError
from safetensors.torch import save_file

from unlearngate.checkpoint import refuse_pointers
from unlearngate.errors import ArtefactError
from unlearngate.manifest import ForgetSetManifest
from unlearngate.passages import PASSAGES_FILE, read_seeds, write_seeds
from unlearngate.peft_adapter import verify_config, verify_tensors
from unlearngate.target import TargetIdentity, file_digest

MANIFEST_FILE = "forget_set.json"
ADAPTER_FILE = "adapter_model.safetensors"
CONFIG_FILE = "adapter_config.json"
_PICKLES = {".bin", ".pt", ".pth", ".pkl", ".pickle", ".ckpt"}
_FILES = {
    "uld": (ADAPTER_FILE, CONFIG_FILE),
    "undial": (ADAPTER_FILE, CONFIG_FILE),
    "verbatim": (PASSAGES_FILE,),
}
_ANY_FILES = (ADAPTER_FILE, CONFIG_FILE, PASSAGES_FILE)


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
    that exist in the target at the right shape, a tensor that is not finite, seeds that are not the manifest's, and,
    with `target` given, an artefact made for other weights or another tokenizer.

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
    refuse_pointers(folder / name for name in (MANIFEST_FILE, *_ANY_FILES))
    manifest_path = folder / MANIFEST_FILE
    raw = _read_bytes(manifest_path)
    manifest = _parse_manifest(manifest_path, raw)
    _verify_files(folder, manifest)
    if manifest.windows is not None:
        read_seeds(folder / PASSAGES_FILE, manifest.windows)
    else:
        verify_config(folder / CONFIG_FILE, _read_bytes(folder / CONFIG_FILE), manifest)
        verify_tensors(folder / ADAPTER_FILE, manifest)
    if target is not None and manifest.target is not None:
        _verify_target(manifest_path, manifest.target, target)
    return ForgetSet(manifest, folder.resolve(), hashlib.sha256(raw).hexdigest())


def save_forget_set(
    folder: Path,
    *,
    tensors: Mapping[str, torch.Tensor],
    adapter_config: Mapping[str, Any],
    manifest: Mapping[str, Any],
) -> ForgetSet:
    """Write one artefact with LoRA and read it back, verified. The folder appears whole or not at all.

    Args:
        folder: where it goes; an artefact already there is replaced.
        tensors: LoRA tensors by PEFT's names (`base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight`).
        adapter_config: PEFT's configuration as JSON values.
        manifest: ForgetSetManifest's fields without `files`.

    Raises: ArtefactError if what would be written could not be loaded again; nothing is left behind then.
    """

    def write(new: Path) -> None:
        save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, new / ADAPTER_FILE)
        (new / CONFIG_FILE).write_text(json.dumps(dict(adapter_config), indent=2, sort_keys=True) + "\n")

    return _save(folder, manifest, write)


def save_passages(folder: Path, *, seeds: np.ndarray, manifest: Mapping[str, Any]) -> ForgetSet:
    """Write one artefact of kind `verbatim`, as `save_forget_set` writes one with LoRA.

    Args:
        folder: the same.
        seeds: (N,) uint32, as `seeds_of` makes them with the manifest's windows.
        manifest: the same.

    Raises: as `save_forget_set`.
    """
    return _save(folder, manifest, lambda new: write_seeds(new / PASSAGES_FILE, seeds, manifest["windows"]))


def rewrite_forget_set(forget_set: ForgetSet, folder: Path, **changes: Any) -> ForgetSet:
    """Write the same tensors under a changed manifest.

    Args:
        forget_set: verified; it stays as it is unless `folder` is its own, which is then replaced atomically.
        folder: as `save_forget_set` takes it.
        changes: fields of ForgetSetManifest.

    Raises: as `save_forget_set`.
    """

    def write(new: Path) -> None:
        for name in forget_set.manifest.files:
            shutil.copyfile(forget_set.folder / name, new / name)

    manifest = forget_set.manifest.model_dump(exclude={"files"})
    return _save(folder, {**manifest, **changes, "created_at": now()}, write)


def _save(folder: Path, manifest: Mapping[str, Any], write: Callable[[Path], None]) -> ForgetSet:
    """Write what `write` puts into a new folder, and its manifest; whole or not at all."""
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, prefix=f".{folder.name}.") as scratch:
        new = Path(scratch) / folder.name
        new.mkdir()
        write(new)
        files = {name: file_digest(new / name) for name in _ANY_FILES if (new / name).exists()}
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
    if data.get("kind") not in tuple(_FILES):
        raise ArtefactError(
            path, f"kind {data.get('kind')!r} is unknown; this version serves 'uld', 'undial' and 'verbatim'"
        )
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
    """Only files of some kind of set, as plain files: nothing else in the folder is covered by a digest."""
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in _PICKLES:
            raise ArtefactError(path, "is a pickle, which can run code when read; export the adapter as safetensors")
        if path.is_symlink():
            raise ArtefactError(path, f"leads out of the folder, to {path.readlink()}; put the file itself there")
        if path.name not in (MANIFEST_FILE, *_ANY_FILES):
            raise ArtefactError(
                path,
                f"does not belong here: only {MANIFEST_FILE}, {ADAPTER_FILE} and {CONFIG_FILE} do, or {PASSAGES_FILE}",
            )
        if not path.is_file():
            raise ArtefactError(path, "is not a file")


def _verify_files(folder: Path, manifest: ForgetSetManifest) -> None:
    files = _FILES[manifest.kind]
    if set(manifest.files) != set(files):
        raise ArtefactError(
            folder / MANIFEST_FILE, f"must list exactly {' and '.join(files)}, got {sorted(manifest.files)}"
        )
    for path in sorted(folder.iterdir()):
        if path.name not in (MANIFEST_FILE, *files):
            raise ArtefactError(path, f"does not belong to a set of kind {manifest.kind!r}")
    for name, digest in manifest.files.items():
        path = folder / name
        if not path.is_file():
            raise ArtefactError(path, "is missing")
        if (found := file_digest(path)) != digest:
            raise ArtefactError(path, f"was changed or damaged: its sha256 is {found[:12]}..., not {digest[:12]}...")


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
