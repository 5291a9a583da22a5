"""The audit log: JSON lines, each with the digest of the line before, so that a changed or missing one shows.

A line goes to the operating system in one write before its event counts as done: a crashed process loses none. `sync`
brings what was written to the disk. While lines cannot be written, nothing may be served.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import json
import logging
import os
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from unlearngate.errors import AuditUnavailableError
from unlearngate.server.audit.trail import BEFORE_THE_FIRST
from unlearngate.server.metrics import AUDIT_FAILURES, AUDIT_LINES

logger = logging.getLogger(__name__)

FORMAT = 1
_DEFAULT_NAME = "audit.jsonl"
_LONGEST_LINE = 2**20


class Audit:
    """One log, held by one process. A file that reaches `max_bytes` is renamed after its first line's number."""

    def __init__(self, path: Path, *, max_bytes: int, **about: Any) -> None:
        """Continue the chain of the newest file beside `path`, and write the line `started`.

        Args:
            path: the file, or a folder for `audit.jsonl`.
            max_bytes: size from which a new file is begun.
            about: goes into the line `started`.

        Raises: OSError if it cannot be written, another process writes it, or what is there is no audit log.
        """
        self.path = path / _DEFAULT_NAME if path.is_dir() else path
        self._max_bytes = max_bytes
        self._lock = threading.Lock()
        self._failure: str | None = None  # why the last line could not be written
        self._lost = 0
        self._torn_at: int | None = None  # a part of a line from here on could not be removed
        self._unsynced = False
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._fd = self._open()
        self._seq, self._digest, removed = self._resume()
        self.append("started", format=FORMAT, removed_bytes=removed, **about)

    def append(self, event: str, **fields: Any) -> None:
        """Write one line.

        Raises: AuditUnavailableError if it could not be written; the file is then as it was before.
        """
        with self._lock:
            try:
                if self._failure is not None:
                    self._recover()
                self._write(event, fields)
            except OSError as error:
                self._fail(error)
                raise AuditUnavailableError(f"the audit log cannot be written ({self._failure})") from error

    def check(self) -> None:
        """Try to write again if the last line could not be written.

        Raises: AuditUnavailableError if that fails too.
        """
        with self._lock:
            if self._failure is None:
                return
            try:
                self._recover()
            except OSError as error:
                self._failure = error.strerror or str(error)
                raise AuditUnavailableError(f"the audit log cannot be written ({self._failure})") from error

    def sync(self) -> None:
        """Sync to disk what was written; a failure counts as a lost line."""
        with self._lock:
            if not self._unsynced:
                return
            self._unsynced = False
            fd = os.dup(self._fd)  # writing and rotating go on meanwhile
        try:
            os.fsync(fd)
        except OSError as error:
            with self._lock:
                self._fail(error)
        finally:
            os.close(fd)

    def fileno(self) -> int:
        """The descriptor of the file that is written, whose lock a copy of this process would share."""
        return self._fd

    def close(self) -> None:
        """Sync, and release the log for another process."""
        self.sync()
        os.close(self._fd)

    def _open(self) -> int:
        fd = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_CLOEXEC, 0o640)
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            os.close(fd)
            taken = f"another process writes the audit log {self.path}; give each its own"
            raise BlockingIOError(errno.EWOULDBLOCK, taken) from None
        return fd

    def _resume(self) -> tuple[int, str, int]:
        """Number and digest of the last line, and how many bytes of a torn line behind it were removed."""
        last, removed = _last_line(self._fd)
        if removed:
            os.ftruncate(self._fd, os.fstat(self._fd).st_size - removed)
        if last is not None:
            return _number(last, self.path), _digest(last), removed
        return *_newest_rotated(self.path), removed

    def _write(self, event: str, fields: dict[str, Any]) -> None:
        self._follow_rename()
        time = datetime.now(UTC).isoformat(timespec="milliseconds")
        content = {"seq": self._seq + 1, "prev": self._digest, "time": time, "event": event, **fields}
        line = json.dumps(content, separators=(",", ":")).encode()
        size = os.fstat(self._fd).st_size
        if size and size + len(line) + 1 > self._max_bytes:
            self._rotate()
            size = 0
        self._torn_at = size
        rest = line + b"\n"
        try:
            while rest:
                rest = rest[os.write(self._fd, rest) :]
        except OSError:
            os.ftruncate(self._fd, size)
            self._torn_at = None
            raise
        self._torn_at = None
        self._seq, self._digest, self._unsynced = self._seq + 1, _digest(line), True
        AUDIT_LINES.inc()

    def _follow_rename(self) -> None:
        """Begin a new file if ours was moved away."""
        try:
            found, ours = os.stat(self.path), os.fstat(self._fd)
            moved = (found.st_dev, found.st_ino) != (ours.st_dev, ours.st_ino)
        except FileNotFoundError:
            moved = True
        if moved:
            self._begin_file()

    def _rotate(self) -> None:
        first = _number(os.pread(self._fd, _LONGEST_LINE, 0).partition(b"\n")[0], self.path)
        rotated = self.path.with_name(f"{self.path.stem}-{first:012d}{self.path.suffix}")
        if rotated.exists():
            raise FileExistsError(errno.EEXIST, f"{rotated} is in the way of the rotation")
        self.path.rename(rotated)
        self._begin_file()

    def _begin_file(self) -> None:
        os.fsync(self._fd)
        old, self._fd = self._fd, self._open()
        os.close(old)

    def _recover(self) -> None:
        """Remove a torn line, and log how many lines were lost."""
        if self._torn_at is not None:
            os.ftruncate(self._fd, self._torn_at)
            self._torn_at = None
        self._write("resumed", {"lost_lines": self._lost, "reason": self._failure})
        self._failure, self._lost = None, 0

    def _fail(self, error: OSError) -> None:
        AUDIT_FAILURES.inc()
        self._lost += 1
        if self._failure is None:
            logger.error("the audit log %s cannot be written, requests are refused: %s", self.path, error)
        self._failure = error.strerror or str(error)


def _digest(line: bytes) -> str:
    return hashlib.sha256(line).hexdigest()


def _number(line: bytes, path: Path) -> int:
    try:
        number: object = json.loads(line)["seq"]
        if isinstance(number, int) and number > 0:
            return number
    except (ValueError, KeyError, TypeError):
        pass
    raise OSError(errno.EINVAL, f"{path} holds a line that is not an audit log's ({line[:60]!r}); move the file away")


def _last_line(fd: int) -> tuple[bytes | None, int]:
    """The last complete line, and how many bytes follow it."""
    size = os.fstat(fd).st_size
    tail = os.pread(fd, _LONGEST_LINE, max(0, size - _LONGEST_LINE))
    complete, newline, torn = tail.rpartition(b"\n")
    if not newline:
        return None, len(torn)
    return complete.rpartition(b"\n")[2], len(torn)


def _newest_rotated(path: Path) -> tuple[int, str]:
    """Number and digest of the last line in the files that rotation left; before the first if there are none."""
    rotated = sorted(path.parent.glob(f"{path.stem}-[0-9]*{path.suffix}"))
    if not rotated:
        return 0, BEFORE_THE_FIRST
    fd = os.open(rotated[-1], os.O_RDONLY)
    try:
        last, _ = _last_line(fd)
    finally:
        os.close(fd)
    if last is None:
        raise OSError(errno.EINVAL, f"{rotated[-1]} holds no line to continue from; move the file away")
    return _number(last, rotated[-1]), _digest(last)
