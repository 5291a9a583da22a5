"""The case folder: what a request's steps made, so that the next run goes on, and what is left after a purge.

CASE/
  case.json           what was asked for (digests and options, no text), and what each finished step counted
  known.json          the names that were asked about, and which of them the target knows
  forget.jsonl        what the target knows: trained on
  retain.jsonl        what must stay: trained on
  probes.jsonl        held out: questions about it (`forget_set` is NAME), and about other things
  NAME/               the trained set
  report.md           what was taken away, what was left, what is not covered, how to lift it
"""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearngate.artefact import now
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.errors import DataError
from unlearngate.files import write_whole

CASE_FILE = "case.json"


class Case:
    """One case. A step's result is written whole, then the step is recorded: a killed run goes on from there."""

    def __init__(self, folder: Path, asked: Mapping[str, Any]) -> None:
        """Open the folder, or make it.

        Args:
            folder: of this request alone.
            asked: what was asked for, as JSON values: another request is refused here.

        Raises: DataError if the folder holds another request, was purged, or is no case.
        """
        self.folder = folder
        self._state: dict[str, Any] = {"asked": dict(asked), "done": {}}
        path = folder / CASE_FILE
        if path.exists():
            self._state = read_case(folder)
            if self._state.get("purged"):
                raise DataError(f"{folder}: was purged; give another --case for a new request")
            if self._state["asked"] != dict(asked):
                differs = [key for key in asked if self._state["asked"].get(key) != asked[key]]
                raise DataError(
                    f"{folder}: is the case of another request ({', '.join(differs) or 'other fields'} differ); give "
                    "another --case, or the request as it was to go on with it"
                )
            return
        if folder.exists() and any(folder.iterdir()):
            raise DataError(f"{folder}: is not empty and no case; give another --case")
        folder.mkdir(parents=True, exist_ok=True)
        folder.chmod(0o700)  # it holds what is to be forgotten
        self._write()

    def done(self, step: str) -> Any:
        """What a finished step recorded; None if it has not finished."""
        return self._state["done"].get(step)

    def record(self, step: str, result: Any) -> None:
        """A step is finished."""
        self._state["done"][step] = result
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
    state = read_case(folder)
    gone = sorted(path.name for path in folder.iterdir() if path.name != CASE_FILE)
    if state.get("purged") and not gone:
        return []
    deleted = [*state.get("deleted", []), *gone]
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
