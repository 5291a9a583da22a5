"""Files that stay whole after a kill or a power cut: replaced atomically, or read up to their last complete line."""

from __future__ import annotations

import os
import secrets
from pathlib import Path
from typing import NamedTuple

SCRATCH_PREFIX = ".unlearngate-"


class FileState(NamedTuple):
    """What changes whenever a file does. Its writer may set the time of its content back, but not that of its inode."""

    device: int
    inode: int
    size: int
    content_time_ns: int
    inode_time_ns: int


def file_state(path: Path) -> FileState | None:
    """The state of a file, links followed; None if it is not there."""
    try:
        stat = path.stat()
    except OSError:
        return None
    return FileState(stat.st_dev, stat.st_ino, stat.st_size, stat.st_mtime_ns, stat.st_ctime_ns)


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
