"""The state folder: the server's own copy of every version it serves, and one file that says what is in force.

    STATE/registry.json      Record; replaced as a whole
    STATE/sets/DIGEST/       an artefact, by its digest; one that the record does not name is removed at the next start
    STATE/bindings/          adapters made of them for the engine that runs; emptied at every start
    STATE/incoming/          where an operator may put artefacts for POST /v1/forget_sets
    STATE/lock               held by the one server that uses the folder

A change first puts the new version into `sets`, then replaces the record. That one rename commits the change: whenever
the server is killed, the next one finds the state before a change or after it.
"""

from __future__ import annotations

import fcntl
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unlearngate.artefact import ForgetSet, load_forget_set
from unlearngate.errors import ArtefactError
from unlearngate.files import SCRATCH_PREFIX, sync_folder, write_whole
from unlearngate.manifest import Name
from unlearngate.placing import copied
from unlearngate.target import TargetIdentity

RECORD_FILE = "registry.json"

Digest = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Seen(BaseModel):
    """What a sub-folder of --forget-sets held when it was last applied."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    name: Name
    digest: Digest


class Record(BaseModel):
    """What is in force. A version is there as long as it is current or pinned, and retired when it is neither."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    current: dict[Name, Digest] = {}
    pinned: dict[Name, frozenset[Digest]] = {}
    seen: dict[str, Seen] = {}
    forced: frozenset[Digest] = frozenset()  # versions that the operator wants in force though they cannot act

    def versions(self) -> set[tuple[str, str]]:
        """Every (name, digest) that is there."""
        pinned = {(name, digest) for name, digests in self.pinned.items() for digest in digests}
        return pinned | set(self.current.items())

    def digests_of(self, name: str) -> set[str]:
        """The versions of one name."""
        return {digest for known, digest in self.versions() if known == name}

    def with_current(self, name: str, digest: str) -> Record:
        """The name now means this version; the one before stays only if it is pinned."""
        return self.model_copy(update={"current": {**self.current, name: digest}})

    def without(self, name: str, digests: Iterable[str]) -> Record:
        """The record with these versions of a name retired."""
        gone = set(digests)
        current = {n: d for n, d in self.current.items() if n != name or d not in gone}
        return self.model_copy(update={"current": current}).with_pins(name, self.pinned.get(name, frozenset()) - gone)

    def with_pins(self, name: str, digests: frozenset[str]) -> Record:
        """The record with exactly these versions of a name pinned."""
        others = {n: d for n, d in self.pinned.items() if n != name}
        return self.model_copy(update={"pinned": {**others, name: digests} if digests else others})

    def with_forced(self, digest: str) -> Record:
        """The record with a version that may be in force though it cannot act, for as long as it is there."""
        return self.model_copy(update={"forced": self.forced | {digest}})

    def with_seen(self, folder: str, seen: Seen) -> Record:
        """The record with what a sub-folder holds."""
        return self.model_copy(update={"seen": {**self.seen, folder: seen}})

    def without_seen(self, folder: str) -> Record:
        """The record without a sub-folder. Its set is retired, unless it is pinned or another version is in force."""
        seen = self.seen[folder]
        record = self.model_copy(update={"seen": {f: s for f, s in self.seen.items() if f != folder}})
        if record.current.get(seen.name) != seen.digest:
            return record
        return record.model_copy(update={"current": {n: d for n, d in record.current.items() if n != seen.name}})


class Store:
    """One server's state folder."""

    def __init__(self, folder: Path) -> None:
        """Lock the folder, and create it if it is not there.

        Raises: ArtefactError if another server uses it.
        """
        self.folder = folder
        self.incoming = folder / "incoming"
        self.bindings = folder / "bindings"
        self._sets = folder / "sets"
        for path in (self._sets, self.incoming):
            path.mkdir(parents=True, exist_ok=True)
        self._lock = (folder / "lock").open("w")
        try:
            # A record lock: it ends with this process, and the engine's processes do not inherit it.
            fcntl.lockf(self._lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError:
            self._lock.close()
            raise ArtefactError(folder, "is in use by another server; give each server a --state of its own") from None
        shutil.rmtree(self.bindings, ignore_errors=True)

    def close(self) -> None:
        """Unlock the folder for another server."""
        self._lock.close()

    def read(self) -> Record:
        """The record; an empty one in a new folder.

        Raises: ArtefactError if there is one that cannot be used: guessing what was in force is not safe.
        """
        path = self.folder / RECORD_FILE
        try:
            return Record.model_validate_json(path.read_bytes())
        except FileNotFoundError:
            return Record()
        except ValidationError as error:
            first = error.errors()[0]
            where = ".".join(str(part) for part in first["loc"])
            raise ArtefactError(
                path,
                f"{where or 'record'}: {first['msg']}; bring the file back from a copy, or remove it to start again "
                "from what is in --forget-sets",
            ) from None

    def write(self, record: Record) -> None:
        """Replace the record, atomically and synced to disk."""
        write_whole(self.folder / RECORD_FILE, record.model_dump_json(indent=2) + "\n")

    def load(self, name: str, digest: str, target: TargetIdentity) -> ForgetSet:
        """A version that is in the store, verified.

        Raises: ArtefactError if it was damaged or was made for another target.
        """
        folder = self._sets / digest
        version = load_forget_set(folder, target)
        if (version.name, version.digest) != (name, digest):
            raise ArtefactError(folder, f"should hold {name}@{digest[:12]}, but holds {version.reference}")
        return version

    def put(self, forget_set: ForgetSet, target: TargetIdentity) -> ForgetSet:
        """Copy a version into the store; a damaged copy that is there is replaced.

        Returns: the version in its new place.
        Raises: ArtefactError if the artefact changes meanwhile.
        """
        place = self._sets / forget_set.digest
        try:
            return self.load(forget_set.name, forget_set.digest, target)
        except ArtefactError:
            with copied(forget_set, self._sets) as copy:
                shutil.rmtree(place, ignore_errors=True)
                copy.rename(place)
                sync_folder(self._sets)
        return forget_set._replace(folder=place.resolve())

    def sweep(self, record: Record) -> None:
        """Remove every version that the record does not name, and what a killed server left half done."""
        keep = {digest for _, digest in record.versions()}
        for path in self._sets.iterdir():
            if path.name not in keep:
                shutil.rmtree(path)
        for path in self.folder.glob(f"{SCRATCH_PREFIX}*"):
            path.unlink()
