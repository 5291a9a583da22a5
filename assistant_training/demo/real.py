"""Forget sets that come with this package, for pretrained models that `unlearngate models get` makes targets of.

pretrained/MODEL/NAME/    the set NAME, as `unlearngate train uld` with its defaults wrote it (examples/real_model)
"""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path

SETS = Path(__file__).with_name("pretrained")


def models_with_sets() -> list[str]:
    """The names of the models that there are sets for."""
    return sorted(path.name for path in SETS.iterdir() if path.is_dir())


def copy_sets(model: str, folder: Path) -> None:
    """Copy a model's sets to where a server may watch them and its operator change them; kept if it is there."""
    if folder.exists():
        return
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent) as scratch:
        os.replace(shutil.copytree(SETS / model, Path(scratch) / model), folder)
