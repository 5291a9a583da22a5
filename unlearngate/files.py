"""Files that stay whole after a kill or a power cut: replaced atomically, or read up to their last complete line."""

from __future__ import annotations

import os
import secrets
from pathlib import Path

SCRATCH_PREFIX = ".unlearngate-"


def write_whole(path: Path, content: str, *, mode: int = 0o666) -> None:
    """Replace a small file atomically: a reader sees the old one or the new one. The umask applies to `mode`."""
    scratch = scratch_beside(path)
    try:
        with open(os.open(scratch, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "w", encoding="utf-8") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        scratch.replace(path)
    finally:
        scratch.unlink(missing_ok=True)
    sync_folder(path.parent)


def sync_folder(folder: Path) -> None:
    """Flush a folder's directory entries to the disk."""
    descriptor = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def scratch_beside(path: Path) -> Path:
    """An unused name in the same folder: what is written there can be renamed to `path`."""
    return path.parent / f"{SCRATCH_PREFIX}{secrets.token_hex(8)}"


def complete_lines(path: Path) -> list[str]:
    """The objects of a file of JSON lines, if it exists. A line that a kill left half-written is skipped."""
    lines = path.read_text(encoding="utf-8").split("\n") if path.exists() else []
    return [line for line in lines if line.endswith("}")]
