"""How forget sets come, change and go while the server runs.

Sets change in two ways: the folder of --forget-sets is polled every few seconds, and an admin calls
`POST /v1/forget_sets`. The later change wins. A version is copied into the store before it is in force, so no later
change of its folder affects a request that has it. Once there is an engine, a version is in force only after it passed
its canaries there (canaries.py).
"""

from __future__ import annotations

import asyncio
import logging
import threading
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from unlearngate.acting import forced_digests, why_idle
from unlearngate.artefact import ForgetSet, load_forget_set, set_folders
from unlearngate.errors import ArtefactError, ConflictError, UnknownForgetSetError, UnlearngateError
from unlearngate.files import FileState, file_state
from unlearngate.server.sets.registry import Registry, same_name
from unlearngate.server.sets.store import Record, Seen, Store

logger = logging.getLogger(__name__)

Prove = Callable[[ForgetSet], Coroutine[Any, Any, None]]
Fingerprint = frozenset[tuple[str, FileState | None]]  # of each file: its name, and its state; None if it is gone


class Lifecycle:
    """Makes every change of one server's sets, one at a time.

    The methods read and write files and may run in a thread. `publish` alone changes what requests see. It belongs in
    the event loop, where requests are decided: then none sees half a change.
    """

    def __init__(
        self, registry: Registry, folder: Path, store: Store, *, write_event: Callable[..., None] | None = None
    ) -> None:
        """Read nothing yet.

        Args:
            registry: what requests see.
            folder: the watched one, --forget-sets.
            store: keeps the versions and the record.
            write_event: writes a line of the audit log, `write_event(event, **fields)`; None: there is none.
        """
        self.write_event = write_event or _write_nothing
        self._written: dict[str, Any] | None = None  # what the audit log says is in force
        self.registry = registry
        self.folder = folder
        self.store = store
        self._record = Record()
        self._versions: dict[str, ForgetSet] = {}  # by digest: those of the record that can be served
        self._failed: frozenset[str] = frozenset()  # digests of the record's that failed their canaries
        self._in_force: tuple[dict[str, ForgetSet], dict[str, list[ForgetSet]], frozenset[str]] = {}, {}, frozenset()
        self._engine: tuple[Prove, asyncio.AbstractEventLoop] | None = None
        self._lock = threading.Lock()
        self._looked: dict[str, Fingerprint] = {}
        self._handled: dict[str, Fingerprint] = {}

    @property
    def is_audited(self) -> bool:
        """Whether there is an audit log."""
        return self.write_event is not _write_nothing

    def start(self, *, tap_layer: int | None = None, num_layers: int | None = None, undial: bool = False) -> None:
        """Restore what was in force, then apply what has changed in the folder since.

        Args:
            tap_layer: as `Registry.choose_layers` takes it.
            num_layers: the same.
            undial: the same.

        Raises: ArtefactError if the folder is not there, the state cannot be used, or there is no set to serve.
        """
        self._record = self.store.read()
        self._looked = _fingerprints(self.folder)
        self._handled = dict(self._looked)
        found = self.registry.load_below(self.folder)
        kept = self._load_kept()
        distinct = {s.digest: s for s in (*kept, *found.values())}
        self.registry.choose_layers(distinct.values(), tap_layer=tap_layer, num_layers=num_layers, undial=undial)
        for version in kept:
            try:
                self.registry.check(version, forced=version.digest in self._forced())
                self._versions[version.digest] = version
            except ArtefactError as error:
                self.registry.refuse(error)
        for path, forget_set in found.items():
            try:
                self._take_if_new(path, forget_set)
            except ArtefactError as error:
                self.registry.refuse(error)
        for gone in self._record.seen.keys() - self._handled.keys():
            self._commit(self._record.without_seen(gone))
        self._update_in_force()
        self.store.sweep(self._record)
        self.registry.publish(*self._in_force)
        self.registry.check_not_empty(self.folder)

    async def require_proof(self, prove: Prove) -> None:
        """Have the running engine prove what `start` found; from now on nothing is in force without it.

        A version that fails is refused, and requests that need it fail: the one before it is not known any more. The
        methods that change sets wait for `prove`, so they must run in other threads than this event loop's.

        Args:
            prove: asks the engine a version's canaries; raises ArtefactError if it does not pass.
        """
        self._engine = prove, asyncio.get_running_loop()
        for version in list(self._versions.values()):
            if version.digest not in self._forced():
                try:
                    await prove(version)
                    self._note_proven(version)
                except ArtefactError as error:
                    self._withdraw(version, error)
        self.registry.publish(*self._in_force)

    def prove_again(self) -> list[str]:
        """Have the engine prove again what it has proven; a version that fails is not in force any more.

        Returns: the names of sets with a version that failed.
        """
        names = []
        for digest in sorted(self._versions):
            with self._lock:
                version = self._versions.get(digest)
                if version is not None and digest in self.registry.proven:
                    try:
                        self._prove(version)
                    except ArtefactError as error:
                        self._withdraw(version, error)
                        names.append(version.name)
        return names

    def publish(self) -> None:
        """Let requests see what is now in force, and log it if it is not what was logged last.

        Raises: AuditUnavailableError if it cannot be logged; the next call tries again.
        """
        self.registry.publish(*self._in_force)
        current, pinned, _ = self._in_force
        proven = self.registry.proven
        now = {
            "current": {name: version.digest for name, version in sorted(current.items())},
            "pinned": {name: [version.digest for version in versions] for name, versions in sorted(pinned.items())},
            "forced": sorted(name for name, version in current.items() if self._goes_by_force(version)),
            "canaries": {name: proven[v.digest] for name, v in sorted(current.items()) if v.digest in proven},
        }
        if now != self._written:
            self.write_event("sets", **now)
            self._written = now

    def look(self) -> None:
        """Poll the folder, and apply what changed in it.

        A change is applied once the sub-folder has stayed the same for one poll, so none is read while it is being
        copied. One that cannot be served is refused, and what it brought before stays in force. A missing folder of
        --forget-sets is treated as an accident, not as the end of every set.
        """
        with self._lock:
            try:
                now = _fingerprints(self.folder)
            except ArtefactError as error:
                self.registry.refuse(error)
                return
            self.registry.refused.pop(str(self.folder), None)
            before, self._looked = self._looked, now
            names = sorted(now.keys() | self._handled.keys())
            changed = [n for n in names if now.get(n) == before.get(n) and now.get(n) != self._handled.get(n)]
            # New folders come before those that are gone, so that a renamed folder changes nothing.
            for name in sorted(changed, key=lambda n: n not in now):
                self._act(name, now)

    def register(self, name: str, source: Path, *, force: bool = False) -> None:
        """Take in the first version of a name; with `force` even if it cannot act.

        Raises: ConflictError if another version is in force; ArtefactError if it cannot be served.
        """
        with self._lock:
            forget_set = self._load(name, source)
            in_force = self._record.current.get(name)
            if in_force not in (None, forget_set.digest):
                raise ConflictError(
                    f"forget set {name!r} is there already, as {name}@{in_force[:12]}; "
                    "the action 'replace' puts another version in its place",
                    param="action",
                )
            self._take_from(source, forget_set, force=force)

    def replace(self, name: str, source: Path, *, force: bool = False) -> None:
        """Put another version of a name in force; the one before is retired unless it is pinned.

        With `force` even if it cannot act.

        Raises: UnknownForgetSetError if there is no version yet; ArtefactError if the new one cannot be served.
        """
        with self._lock:
            if not self._record.digests_of(name):
                raise _unknown(name, "the action 'register' takes in a first version")
            self._take_from(source, self._load(name, source), force=force)

    def replace_with_version(self, name: str, digest: str, *, force: bool = False) -> None:
        """Like `replace`, with a version that is there already, pinned.

        Raises: UnknownForgetSetError if it is not there; ArtefactError if it cannot be served.
        """
        with self._lock:
            found = self._find(name, digest)
            version = self._versions.get(found) or self.store.load(name, found, self.registry.target)
            self.registry.check(version, forced=force)
            if not force:
                self._prove(version)
            record = self._record.with_forced(found) if force else self._record
            self._commit(record.with_current(name, found), version)

    def retire(self, name: str, digest: str | None = None) -> None:
        """Retire a version, or without a digest every version of a name. Running requests keep theirs.

        Raises: UnknownForgetSetError if there is none.
        """
        with self._lock:
            digests = {self._find(name, digest)} if digest else self._record.digests_of(name)
            if not digests:
                raise _unknown(name, "there is nothing to retire")
            self._commit(self._record.without(name, digests))

    def pin(self, name: str, digest: str | None = None) -> None:
        """Keep a version, by default the current one, for requests that name it by its digest.

        Raises: UnknownForgetSetError if it is not there.
        """
        with self._lock:
            pins = self._record.pinned.get(name, frozenset())
            self._commit(self._record.with_pins(name, pins | {self._find(name, digest)}))

    def unpin(self, name: str, digest: str | None = None) -> None:
        """The opposite of `pin`: the version is retired unless it is the current one.

        Raises: UnknownForgetSetError if it is not there.
        """
        with self._lock:
            pins = self._record.pinned.get(name, frozenset())
            self._commit(self._record.with_pins(name, pins - {self._find(name, digest)}))

    def _load_kept(self) -> list[ForgetSet]:
        kept = []
        for name, digest in sorted(self._record.versions()):
            try:
                kept.append(self.store.load(name, digest, self.registry.target))
            except ArtefactError as error:
                self.registry.refuse(error)
        return kept

    def _load(self, name: str, source: Path) -> ForgetSet:
        forget_set = load_forget_set(source, self.registry.target)
        if forget_set.name != name:
            raise ArtefactError(source, f"holds forget set {forget_set.name!r}, not {name!r}")
        return forget_set

    def _act(self, name: str, now: dict[str, Fingerprint]) -> None:
        path = self.folder / name
        try:
            if name in now:
                self._take_if_new(path, load_forget_set(path, self.registry.target))
                self._handled[name] = now[name]
            else:
                if name in self._record.seen:
                    self._commit(self._record.without_seen(name))
                del self._handled[name]
            self.registry.forget_refusals(path)
        except ArtefactError as error:
            self._handled[name] = now[name]
            self.registry.refuse(error)
        except (OSError, UnlearngateError) as error:  # our own disk, or a busy engine: every poll tries again
            self.registry.refuse(ArtefactError(path, f"cannot be taken into {self.store.folder} now: {error}"))

    def _take_from(self, source: Path, forget_set: ForgetSet, *, force: bool) -> None:
        """Take a set that an admin named; below the watched folder it counts as that sub-folder's."""
        if source.parent == self.folder.resolve():
            self._take(self.folder / source.name, forget_set, forced=force)
            self._handled.setdefault(source.name, frozenset())  # so that its removal is noticed
        else:
            version = self._adopt(forget_set, forced=force)
            record = self._record.with_forced(version.digest) if force else self._record
            self._commit(record.with_current(version.name, version.digest), version)

    def _take_if_new(self, path: Path, forget_set: ForgetSet) -> None:
        """Take what a sub-folder holds, unless it was applied before: an admin's later change stays in force."""
        found = Seen(name=forget_set.name, digest=forget_set.digest)
        in_force = self._record.current.get(forget_set.name) == forget_set.digest
        damaged = in_force and forget_set.digest not in self._versions
        if self._record.seen.get(path.name) != found or damaged:
            self._take(path, forget_set, forced=forget_set.digest in self._forced())

    def _take(self, path: Path, forget_set: ForgetSet, *, forced: bool) -> None:
        """Put in force what a sub-folder of the watched folder holds."""
        record, name = self._record, forget_set.name
        found = Seen(name=name, digest=forget_set.digest)
        for other in [f for f, seen in record.seen.items() if f != path.name and seen.name == name]:
            if (self.folder / other).is_dir():
                raise same_name(forget_set, (self.folder / other).resolve())
            record = record.without_seen(other)
        version = self._adopt(forget_set, forced=forced)
        if forced:
            record = record.with_forced(version.digest)
        if record.seen.get(path.name, found).name != name:
            record = record.without_seen(path.name)
        self._commit(record.with_current(name, version.digest).with_seen(path.name, found), version)

    def _adopt(self, forget_set: ForgetSet, *, forced: bool) -> ForgetSet:
        self.registry.check(forget_set, forced=forced)
        version = self.store.put(forget_set, self.registry.target)
        if not forced:
            try:
                self._prove(version)
            except ArtefactError as error:
                raise ArtefactError(forget_set.folder, error.reason) from error
        return version

    def _prove(self, version: ForgetSet) -> None:
        """Wait until the engine has proven a version; at start there is none yet, and `require_proof` follows.

        Raises: ArtefactError if it does not pass; BusyError if it cannot be asked now.
        """
        if self._engine is None:
            return
        prove, loop = self._engine
        asyncio.run_coroutine_threadsafe(prove(version), loop).result()
        self._note_proven(version)

    def _note_proven(self, version: ForgetSet) -> None:
        if version.manifest.canaries:
            self.registry.proven[version.digest] = len(version.manifest.canaries)

    def _withdraw(self, version: ForgetSet, error: ArtefactError) -> None:
        """Take a version that failed its canaries out of what is in force; the record keeps it."""
        self.registry.refuse(error)
        self.registry.proven.pop(version.digest, None)
        self._failed |= {version.digest}
        self._versions = {digest: v for digest, v in self._versions.items() if digest != version.digest}
        self._update_in_force()

    def _goes_by_force(self, version: ForgetSet) -> bool:
        unproven = bool(version.manifest.canaries) and version.digest not in self.registry.proven
        return unproven or why_idle(version.manifest) is not None

    def _forced(self) -> frozenset[str]:
        """The versions that the operator has forced, in this folder or by the admin route."""
        return forced_digests(self.folder) | self._record.forced

    def _find(self, name: str, digest: str | None) -> str:
        """The one version of a name whose digest has this prefix; the current one for None."""
        digests = sorted(self._record.digests_of(name))
        if not digests:
            raise _unknown(name, "the action 'register' takes in a first version")
        current = self._record.current.get(name)
        fitting = [d for d in digests if d.startswith(digest)] if digest else [current] if current else []
        if len(fitting) != 1:
            raise UnknownForgetSetError(
                f"{name}@{digest or '(current)'} is not one version that is there; there are: "
                + ", ".join(f"{name}@{d[:12]}" for d in digests),
                param="digest",
            )
        return fitting[0]

    def _commit(self, record: Record, version: ForgetSet | None = None) -> None:
        """Apply a change as a whole: before this call nothing has changed, after it everything has."""
        there = record.versions()
        record = record.model_copy(update={"forced": record.forced & {digest for _, digest in there}})
        self.store.write(record)
        before, self._record = self._record, record
        known = {**self._versions, version.digest: version} if version else self._versions
        self._versions = {d: v for d, v in known.items() if (v.name, d) in there}
        self._failed &= {digest for _, digest in there} - self._versions.keys()
        self._update_in_force()
        for name, digest in sorted(record.current.items() - before.current.items()):
            logger.info("forget set %s is %s@%s from now on", name, name, digest[:12])
        for name, digest in sorted(before.versions() - there):
            logger.info("forget set %s@%s is retired", name, digest[:12])

    def _update_in_force(self) -> None:
        versions = self._versions
        current = {name: versions[digest] for name, digest in self._record.current.items() if digest in versions}
        pinned = {
            name: [versions[digest] for digest in sorted(digests) if digest in versions]
            for name, digests in self._record.pinned.items()
        }
        failed = frozenset(name for name, digest in self._record.current.items() if digest in self._failed)
        self._in_force = current, pinned, failed


async def keep_looking(lifecycle: Lifecycle, interval_s: float) -> None:
    """Poll the folder every `interval_s` seconds, for as long as the server runs."""
    while True:
        await asyncio.sleep(interval_s)
        try:
            await asyncio.to_thread(lifecycle.look)
            lifecycle.publish()
        except Exception:  # the next poll may work, and without it no change would be noticed any more
            logger.exception("could not look at %s; trying again", lifecycle.folder)


async def keep_proving(lifecycle: Lifecycle, interval_s: float, on_failure: Callable[[str], None]) -> None:
    """Prove what is in force again every `interval_s` seconds, for as long as the server runs.

    Args:
        lifecycle: whose.
        interval_s: seconds between.
        on_failure: called with the name of each set that failed.
    """
    while True:
        await asyncio.sleep(interval_s)
        try:
            for name in await asyncio.to_thread(lifecycle.prove_again):
                on_failure(name)
            lifecycle.publish()
        except Exception:  # the engine may be busy now; the next time may work
            logger.exception("could not ask the canaries again; trying again in %g s", interval_s)


def _write_nothing(event: str, **fields: Any) -> None:
    pass


def _unknown(name: str, what_to_do: str) -> UnknownForgetSetError:
    return UnknownForgetSetError(f"forget set {name!r} is not on this server; {what_to_do}", param="name")


def _fingerprints(folder: Path) -> dict[str, Fingerprint]:
    """A fingerprint of each sub-folder's files, by the sub-folder's name.

    Raises: ArtefactError if the folder is not there.
    """
    return {path.name: _fingerprint(path) for path in set_folders(folder)}


def _fingerprint(folder: Path) -> Fingerprint:
    return frozenset((path.name, file_state(path)) for path in _entries(folder))


def _entries(folder: Path) -> list[Path]:
    try:
        return list(folder.iterdir())
    except OSError:
        return []
