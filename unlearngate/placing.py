"""Install copies of artefacts atomically: after a crash or a power cut, either the old or the new one is there.

Everything is written beside its destination, flushed to the disk, and then renamed, which is atomic.
"""

from __future__ import annotations

import ctypes
import errno
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from unlearngate.artefact import MANIFEST_FILE, ForgetSet, load_forget_set
from unlearngate.errors import ArtefactError
from unlearngate.files import scratch_beside, sync_folder

_AT_FDCWD = -100
_RENAME_EXCHANGE = 2  # linux/fs.h


def place(forget_set: ForgetSet, folder: Path, *, replace: bool = False) -> None:
    """Copy a verified artefact to `folder`.

    Args:
        forget_set: what to copy.
        folder: where it goes.
        replace: replace a folder that exists already; it is removed.

    Raises: ArtefactError if the artefact changes meanwhile, or `folder` exists and `replace` is False.
    """
    with copied(forget_set, folder.parent) as copy:
        if not folder.exists():
            copy.rename(folder)
        elif replace:
            _exchange(copy, folder)  # the old version is now where the copy was, and goes with it
        else:
            raise ArtefactError(folder, "is there already; --replace puts the new version in its place")
        sync_folder(folder.parent)


def remove(folder: Path) -> None:
    """Remove a folder: first its name, atomically, then its files."""
    away = scratch_beside(folder)
    folder.rename(away)
    sync_folder(folder.parent)
    shutil.rmtree(away)


@contextmanager
def copied(forget_set: ForgetSet, parent: Path) -> Iterator[Path]:
    """A verified copy on disk in a hidden folder of `parent`, to be renamed; if still there at the end, it is removed.

    Raises: ArtefactError if the artefact is not what it was when it was loaded.
    """
    scratch = scratch_beside(parent / "copy")
    scratch.mkdir()
    try:
        if not _copy_files(forget_set, scratch):
            raise ArtefactError(forget_set.folder, "was changed while it was copied; try again once it is complete")
        yield scratch
    finally:
        shutil.rmtree(scratch, ignore_errors=True)


def _copy_files(forget_set: ForgetSet, folder: Path) -> bool:
    """Copy an artefact's files. Returns: whether the copy is the artefact that was loaded."""
    try:
        for name in (MANIFEST_FILE, *forget_set.manifest.files):
            _copy_file(forget_set.folder / name, folder / name)
        sync_folder(folder)
        return load_forget_set(folder).digest == forget_set.digest
    except ArtefactError:
        return False
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # a file is gone, or is a link now
            return False
        raise


def _copy_file(source: Path, destination: Path) -> None:
    # O_NOFOLLOW: a link may have replaced the file after it was verified.
    with open(os.open(source, os.O_RDONLY | os.O_NOFOLLOW), "rb") as read, destination.open("xb") as written:
        shutil.copyfileobj(read, written, 1 << 20)
        written.flush()
        os.fsync(written.fileno())


def _exchange(one: Path, other: Path) -> None:
    """Swap two folders' names atomically, for which Python has no function."""
    libc = ctypes.CDLL(None, use_errno=True)
    if not hasattr(libc, "renameat2"):
        raise _cannot_exchange(other, "the C library has no renameat2")
    if libc.renameat2(_AT_FDCWD, os.fsencode(one), _AT_FDCWD, os.fsencode(other), _RENAME_EXCHANGE) != 0:
        number = ctypes.get_errno()
        if number in (errno.EINVAL, errno.ENOSYS, errno.EXDEV):
            raise _cannot_exchange(other, os.strerror(number))
        raise OSError(number, os.strerror(number), str(other))


def _cannot_exchange(folder: Path, why: str) -> ArtefactError:
    return ArtefactError(
        folder,
        f"cannot be replaced at once on this file system ({why}); remove the old version first, or let a running "
        "server replace it (POST /v1/forget_sets)",
    )
