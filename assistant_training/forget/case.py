"""The case folder: what a request's steps made, so that the next run goes on, and what is left after a purge.

CASE/
  case.json           what was asked for (hashes and options, no text), and what each finished step counted
  known.json          the names that were asked about, and which of them the target knows
  forget.jsonl        what the target knows: trained on
  retain.jsonl        what must stay: trained on
  probes.jsonl        held out: questions about it (`forget_set` is NAME), and about other things
  NAME/               the trained set
  report.md           what was taken away, what was left, what is not covered, how to lift it
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearngate.artefact import now
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.errors import DataError
from unlearngate.files import SCRATCH_PREFIX, write_whole

CASE_FILE = "case.json"
FORGET, RETAIN, PROBES, KNOWN, REPORT = "forget.jsonl", "retain.jsonl", "probes.jsonl", "known.json", "report.md"


class Case:
    """One case, open in one process. A step's result is written whole, then recorded: a killed run goes on from there.

    To be left with `with`, which lets the next run or a purge in.
    """

    def __init__(self, folder: Path, asked: Mapping[str, Any], private: Mapping[str, str | None] | None = None) -> None:
        """Open the folder, or make it.

        Args:
            folder: of this request alone.
            asked: what was asked for, as JSON values: another request is refused here.
            private: what else was asked for, as texts that only hashes are kept of, with a salt that a purge deletes.

        Raises: DataError if the folder holds another request, was purged, is no case, or is open in another process.
        """
        self.folder = folder
        if folder.exists() and not (folder / CASE_FILE).exists() and _foreign(folder):
            raise DataError(f"{folder}: is not empty and no case; give another --case")
        folder.mkdir(parents=True, exist_ok=True)
        self._lock = _locked(folder)
        try:
            self._open(asked, private or {})
        except BaseException:
            self.close()
            raise

    def _open(self, asked: Mapping[str, Any], private: Mapping[str, str | None]) -> None:
        known = read_case(self.folder) if (self.folder / CASE_FILE).exists() else None
        if known and known.get("purged"):
            raise DataError(f"{self.folder}: was purged; give another --case for a new request")
        salt = known.get("salt", "") if known else secrets.token_hex(16)
        hashed = {name: None if text is None else _salted(salt, text) for name, text in private.items()}
        wanted = {**asked, "hashed": hashed}
        if known and not known["done"].get("asked") and _same(known["asked"], wanted, "files", "name", "letters"):
            known["asked"] = wanted  # but for what is withheld, nothing depends on it yet
        if known and known["asked"] != wanted:
            differs = [key for key in wanted if known["asked"].get(key) != wanted[key] and key != "hashed"]
            differs += [key for key, value in hashed.items() if known["asked"].get("hashed", {}).get(key) != value]
            raise DataError(
                f"{self.folder}: is the case of another request ({', '.join(differs) or 'other fields'} differ); give "
                "another --case and --name, or the request as it was to go on with it"
            )
        self._state: dict[str, Any] = known or {"asked": wanted, "salt": salt, "done": {}}
        if not known:
            self.folder.chmod(0o700)  # it holds what is to be forgotten
        self._write()

    def __enter__(self) -> Case:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Let others open it."""
        os.close(self._lock)

    def done(self, step: str) -> Any:
        """What a finished step recorded; None if it has not finished."""
        return self._state["done"].get(step)

    def record(self, step: str, result: Any) -> None:
        """A step is finished."""
        self._state["done"][step] = result
        self._write()

    def forget(self, *steps: str) -> None:
        """These steps are to be done again."""
        for step in steps:
            self._state["done"].pop(step, None)
        self._write()

    def write_pairs(self, name: str, pairs: Sequence[QAPair], more: Mapping[str, Any] | None = None) -> None:
        """A file of pairs, replaced whole; `more` goes into every row whose subject is not "retain"."""
        rows = [{**pair.row(), **({} if pair.subject == "retain" else more or {})} for pair in pairs]
        self.write(name, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))

    def read_pairs(self, name: str) -> list[QAPair]:
        """The pairs of a file that a finished step wrote."""
        return read_pairs(self.folder / name, subject="")

    def write(self, name: str, text: str) -> None:
        """A file that only its owner may read, replaced whole."""
        write_whole(self.folder / name, text, mode=0o600)

    def _write(self) -> None:
        self.write(CASE_FILE, json.dumps(self._state, indent=2) + "\n")


def read_case(folder: Path) -> dict[str, Any]:
    """What `case.json` says.

    Raises: DataError if the folder is no case.
    """
    try:
        state = json.loads((folder / CASE_FILE).read_text())
    except (OSError, ValueError) as error:
        raise DataError(f"{folder}: is no case of `unlearngate forget` ({error})") from error
    if not isinstance(state, dict) or not {"asked", "done"} <= set(state):
        raise DataError(f"{folder}: is no case of `unlearngate forget`: {CASE_FILE} lacks 'asked' or 'done'")
    return state


def purge(folder: Path) -> list[str]:
    """Delete all but `case.json`: names, pairs, probes, checkpoints, the report and the case's own copy of the set.

    `case.json` then says when it was done and what was deleted, beside the hashes of the request: that is the record.

    Returns: the names of what was deleted.
    Raises: DataError if the folder is no case.
    """
    read_case(folder)  # it is one
    lock = _locked(folder)
    try:
        return _purged(folder, read_case(folder))
    finally:
        os.close(lock)


def _purged(folder: Path, state: dict[str, Any]) -> list[str]:
    gone = sorted(path.name for path in folder.iterdir() if path.name != CASE_FILE)
    if state.get("purged") and not gone:
        return []
    deleted = [*state.get("deleted", []), *gone]
    state.pop("salt", None)
    record = {**state, "purged": True, "purged_at": now().isoformat(timespec="seconds"), "deleted": deleted}
    write_whole(folder / CASE_FILE, json.dumps(record, indent=2) + "\n", mode=0o600)
    for name in gone:
        path = folder / name
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    return gone


def file_hash(path: Path) -> str:
    """sha256 of a file of the request."""
    return hashlib.sha256(path.read_bytes()).hexdigest()


def _locked(folder: Path) -> int:
    """The folder's lock, as a file descriptor: it ends with the process.

    Raises: DataError if another process has it.
    """
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(descriptor)
        raise DataError(f"{folder}: a run of this case is going on; wait for it, or stop it first") from error
    return descriptor


def _foreign(folder: Path) -> list[str]:
    """What is in a folder besides what a killed first write leaves."""
    return [path.name for path in folder.iterdir() if not path.name.startswith(SCRATCH_PREFIX)]


def _same(one: Mapping[str, Any], other: Mapping[str, Any], *keys: str) -> bool:
    return all(one.get(key) == other.get(key) for key in keys)


def _salted(salt: str, text: str) -> str:
    return hashlib.sha256(f"{salt} {text}".encode()).hexdigest()
