"""What a calibration has measured, kept in one .npz for each file of questions: another sweep reads it again."""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
import zlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearngate.assistant_training.data.encoding import Encoded
from unlearngate.files import scratch_beside

Arrays = dict[str, np.ndarray]
_FORMAT = 1


def digest_of(what: dict[str, Any], rows: Sequence[Encoded]) -> str:
    """sha256 over what was measured on (JSON values) and the tokens of every conversation and its labels."""
    digest = hashlib.sha256(json.dumps({"format": _FORMAT, **what}, sort_keys=True).encode())
    for row in rows:
        digest.update(json.dumps([row.input_ids, row.labels]).encode())
    return digest.hexdigest()


class Kept:
    """Named groups of arrays in one file. A file that cannot be read is measured, and written, anew."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._arrays: Arrays = {}
        try:
            with np.load(path, allow_pickle=False) as file:
                self._arrays = dict(file)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error):
            self._arrays = {}  # not there, or cut short

    def get(self, group: str) -> Arrays | None:
        """The group's arrays; None if there is none."""
        found = {name.removeprefix(f"{group}/"): a for name, a in self._arrays.items() if name.startswith(f"{group}/")}
        return found or None

    def put(self, group: str, arrays: Arrays) -> None:
        """Replace the group, and the file, atomically."""
        others = {name: array for name, array in self._arrays.items() if not name.startswith(f"{group}/")}
        self._arrays = others | {f"{group}/{name}": array for name, array in arrays.items()}
        self._path.parent.mkdir(parents=True, exist_ok=True)
        scratch = scratch_beside(self._path)
        try:
            with scratch.open("xb") as file:
                np.savez_compressed(file, **self._arrays)  # type: ignore[arg-type]  # its stubs take them for options
                file.flush()
                os.fsync(file.fileno())
            scratch.replace(self._path)
        finally:
            scratch.unlink(missing_ok=True)

    def remember(self, group: str, measure: Callable[[], Arrays]) -> Arrays:
        """The group's arrays, measured if they are not there yet."""
        found = self.get(group)
        if found is None:
            found = measure()
            self.put(group, found)
        return found
