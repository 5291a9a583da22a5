"""The forget sets this server has: which version of each is in force, which others a request may still name."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearngate.acting import forced_digests, refuse_idle
from unlearngate.artefact import ForgetSet, load_forget_set, set_folders
from unlearngate.errors import ArtefactError, SentenceError, UnavailableSetError, UnknownForgetSetError
from unlearngate.sentences import Sentences
from unlearngate.server.contract.branches import BranchOptions
from unlearngate.server.engine.bindings import Bindings
from unlearngate.target import TargetIdentity

logger = logging.getLogger(__name__)

_TRAINED_RANK = 16  # the default of `train uld` and `forget`
_VLLM_RANKS = (8, 16, 32, 64, 128, 256, 320, 512)
_SHORTEST_DIGEST = 8


class Registry:
    """Verified forget sets by name, and what was refused.

    A name means its current version. `name@digest`, with at least the first 8 digits, means one version, which must be
    the current one or a pinned one. A request that got a set from here keeps that version, whatever changes later.
    """

    def __init__(
        self,
        target: TargetIdentity,
        bindings_folder: Path,
        sentences: Sentences | None = None,
        *,
        needs_proof: bool = False,
    ) -> None:
        """Read nothing yet.

        Args:
            target: what is served.
            bindings_folder: where the engine's adapters go.
            sentences: encodes what sets say instead of answers; without it, sets that say something are refused.
            needs_proof: whether sets were trained on other weights, so that only canaries show that one acts on these.
        """
        self._needs_proof = needs_proof
        self.target = target
        self.bindings = Bindings(bindings_folder)
        self._sentences = sentences
        self.sets: Mapping[str, ForgetSet] = {}
        self.pinned: Mapping[str, Sequence[ForgetSet]] = {}
        self.refused: dict[str, str] = {}
        self.proven: dict[str, int] = {}  # versions by digest: how many canaries they passed in the running engine
        self.failed: Collection[str] = ()  # names whose current version failed them
        self.tap_layer = 0
        self.num_layers = 1
        self._undial = False
        self._always_branches = False
        self._engine: tuple[BranchOptions, int] | None = None

    def discover(
        self, folder: Path, *, tap_layer: int | None = None, num_layers: int | None = None, undial: bool = False
    ) -> None:
        """Load every set below `folder`; one that cannot be served is refused with a reason, the others stay.

        Args:
            folder: holds one sub-folder per set.
            tap_layer: as `choose_layers` takes it.
            num_layers: the same.
            undial: the same.

        Raises: ArtefactError if `folder` does not exist or holds no set that can be served.
        """
        loaded = self.load_below(folder)
        self.choose_layers(loaded.values(), tap_layer=tap_layer, num_layers=num_layers, undial=undial)
        current: dict[str, ForgetSet] = {}
        forced = forced_digests(folder)
        for forget_set in loaded.values():
            try:
                self.check(forget_set, forced=forget_set.digest in forced)
                if forget_set.name in current:
                    raise same_name(forget_set, current[forget_set.name].folder)
                current[forget_set.name] = forget_set
            except ArtefactError as error:
                self.refuse(error)
        self.publish(current, {})
        self.check_not_empty(folder)

    def load_below(self, folder: Path) -> dict[Path, ForgetSet]:
        """Load every set below `folder`, by its sub-folder and in their names' order; what cannot be loaded is refused.

        Raises: ArtefactError if `folder` does not exist.
        """
        loaded = {}
        for path in set_folders(folder):
            try:
                loaded[path] = load_forget_set(path, self.target)
            except ArtefactError as error:
                self.refuse(error)
        return loaded

    def choose_layers(
        self, sets: Collection[ForgetSet], *, tap_layer: int | None, num_layers: int | None, undial: bool
    ) -> None:
        """Choose the layers and kinds that `check` accepts.

        Args:
            sets: what there is to choose from.
            tap_layer: the target's layer that this server's assistants start before.
            num_layers: layers of this server's assistants; if given, the model has branches even without a set.
                Layers that are None are as in most of the sets.
            undial: whether sets of kind `undial` are served, which put LoRA on the target itself.
        """
        self.tap_layer, self.num_layers = _branch_layers(sets, tap_layer, num_layers)
        self._always_branches = num_layers is not None
        self._undial = undial

    def check(self, forget_set: ForgetSet, *, forced: bool = False) -> None:
        """Refuse a set that this server's model cannot run, or that cannot act.

        Args:
            forget_set: any version.
            forced: the operator wants it in force even if it cannot act.

        Raises: ArtefactError saying what would have to be different.
        """
        manifest = forget_set.manifest
        if not forced:
            refuse_idle(forget_set)
        if manifest.kind == "verbatim":
            return  # it needs nothing of the engine, and says nothing
        if self._needs_proof and not manifest.canaries and not forced:
            raise ArtefactError(
                forget_set.folder,
                "has no canaries, and was trained on the unquantised weights: nothing could show that it acts on "
                "these. Train or calibrate it anew, which chooses canaries",
            )
        if manifest.kind == "undial":
            if not self._undial:
                raise ArtefactError(
                    forget_set.folder,
                    "is of kind 'undial', a LoRA on the target itself; the option --enable-undial lets it be served",
                )
        elif (manifest.tap_layer, manifest.num_layers) != (self.tap_layer, self.num_layers):
            raise ArtefactError(
                forget_set.folder,
                f"has an assistant of {manifest.num_layers} layers from layer {manifest.tap_layer} on; this server's "
                f"branches have {self.num_layers} from layer {self.tap_layer} on",
            )
        if self._engine is not None:
            _check_engine(forget_set, *self._engine)
        try:
            self.sentence(forget_set)
        except SentenceError as error:
            raise ArtefactError(forget_set.folder, f"cannot say its `instead`: {error.message}") from error

    def sentence(self, forget_set: ForgetSet, text: str | None = None) -> tuple[int, ...]:
        """Token ids of what a set says instead, or of `text` in its place; none if it says nothing.

        Raises: SentenceError if it cannot be said.
        """
        said = forget_set.manifest.sentence(text)
        if said is None:
            return ()
        if forget_set.manifest.kind != "uld":
            raise SentenceError(
                f"{forget_set.name} is of kind {forget_set.manifest.kind!r}, without a gate that could say when"
            )
        if self._sentences is None:
            raise SentenceError(f"there is no tokenizer here that could encode what {forget_set.name} says")
        return self._sentences.tokens(said)

    def check_not_empty(self, folder: Path) -> None:
        """Refuse to go on without a set, unless there is none yet and the model's branches were asked for anyway.

        Raises: ArtefactError with the reason for every set that was refused.
        """
        waits_for_sets = self._always_branches and not self.refused
        if not self.sets and not self.pinned and not waits_for_sets:
            reasons = "".join(f"\n  {reason}" for reason in self.refused.values()) or (
                " it is empty (with --assistant-layers the server starts all the same, and waits for sets)"
            )
            raise ArtefactError(folder, f"holds no forget set that can be served:{reasons}")

    def publish(
        self,
        current: Mapping[str, ForgetSet],
        pinned: Mapping[str, Sequence[ForgetSet]],
        failed: Collection[str] = (),
    ) -> None:
        """Put these versions in force, all at once, for every request that is admitted from now on.

        Args:
            current: by name.
            pinned: by name.
            failed: names that have no current version because it failed its canaries.
        """
        self.sets, self.pinned, self.failed = current, pinned, failed

    def refuse(self, error: ArtefactError) -> None:
        """Record that something is not served, and why; log it once."""
        if self.refused.get(str(error.path)) != error.message:
            self.refused[str(error.path)] = error.message
            logger.error("forget set refused: %s", error.message)

    def forget_refusals(self, folder: Path) -> None:
        """Drop the refusals of `folder` and its files."""
        for path in [p for p in self.refused if folder in (Path(p), Path(p).parent)]:
            del self.refused[path]

    def get(self, reference: str) -> ForgetSet:
        """The set that `name`, or `name@digest`, means now.

        Raises: UnknownForgetSetError, which is HTTP 404; UnavailableSetError, 503, if its version failed its canaries.
        """
        name, separator, digest = reference.partition("@")
        if name not in self.sets and not (separator and name in self.pinned):
            if name in self.failed:
                raise UnavailableSetError(
                    f"forget set {name!r} failed its canaries in the running engine, so no request gets it until its "
                    "operator puts another version in force",
                    param="forget_sets",
                )
            known = ", ".join(sorted(self.sets)) or "none"
            raise UnknownForgetSetError(
                f"forget set {name!r} is not on this server; it has: {known}", param="forget_sets"
            )
        if not separator:
            return self.sets[name]
        versions = self.versions(name)
        fitting = [v for v in versions if len(digest) >= _SHORTEST_DIGEST and v.digest.startswith(digest)]
        if len(fitting) != 1:
            raise UnknownForgetSetError(
                f"{reference!r} is not the first {_SHORTEST_DIGEST} or more digits of one version of {name!r}; this "
                f"server has: {', '.join(v.reference for v in versions)}",
                param="forget_sets",
            )
        return fitting[0]

    def versions(self, name: str) -> list[ForgetSet]:
        """The versions of a name that a request may have: the current one first, then pinned ones."""
        current = [self.sets[name]] if name in self.sets else []
        return [*current, *(v for v in self.pinned.get(name, ()) if v not in current)]

    def max_rank(self, at_least: int | None = None) -> int:
        """The smallest LoRA rank vLLM offers that fits every set, and is at least what is asked for.

        With nothing asked for and no set that has LoRA: room for sets that training's defaults make.
        """
        ranks = [s.manifest.rank for s in self._all() if s.manifest.rank]
        largest = max([at_least or 1, *ranks]) if at_least or ranks else _TRAINED_RANK
        return next(rank for rank in _VLLM_RANKS if rank >= largest)

    def branches(self, max_sets_per_request: int) -> BranchOptions:
        """What the model needs for these sets: branches if any is `uld`, LoRA on the target if any is `undial`.

        Sets of kind `verbatim` need neither.
        """
        kinds = {s.manifest.kind for s in self._all()}
        return BranchOptions(
            self.target.architecture,
            self.tap_layer,
            self.num_layers,
            num_branches=max_sets_per_request if "uld" in kinds or self._always_branches else 0,
            adapted_layers=self.target.num_layers if "undial" in kinds else 0,
        )

    def limit(self, branches: BranchOptions, max_rank: int) -> None:
        """Record what the engine is started for: from now on `check` refuses what it could not load."""
        self._engine = branches, max_rank

    def engine(self) -> dict[str, Any] | None:
        """What a set of kind `uld` must fit, as JSON values; None before the engine's options are known."""
        if self._engine is None:
            return None
        branches, max_rank = self._engine
        layers = branches.num_layers if branches.num_branches else 0
        return {"assistant_tap": branches.tap_layer, "assistant_layers": layers, "max_rank": max_rank}

    def _all(self) -> list[ForgetSet]:
        return [version for name in {*self.sets, *self.pinned} for version in self.versions(name)]


def same_name(forget_set: ForgetSet, owner: Path) -> ArtefactError:
    """The refusal of a set whose name another folder, `owner`, has already."""
    return ArtefactError(forget_set.folder, f"is named {forget_set.name!r}, as {owner} already is")


def _branch_layers(sets: Collection[ForgetSet], tap_layer: int | None, num_layers: int | None) -> tuple[int, int]:
    """The most common (tap_layer, num_layers) among the sets that have what is asked for."""
    layers = Counter(
        (s.manifest.tap_layer, s.manifest.num_layers)
        for s in sets
        if s.manifest.kind == "uld"
        and tap_layer in (None, s.manifest.tap_layer)
        and num_layers in (None, s.manifest.num_layers)
    )
    return layers.most_common(1)[0][0] if layers else (tap_layer or 0, num_layers or 1)


def _check_engine(forget_set: ForgetSet, branches: BranchOptions, max_rank: int) -> None:
    manifest = forget_set.manifest
    if manifest.rank > max_rank:
        raise ArtefactError(
            forget_set.folder,
            f"has rank {manifest.rank}; the engine was started for at most {max_rank}: restart the server, with "
            f"--max-rank {manifest.rank} if the set is not there then",
        )
    if manifest.kind == "uld" and not branches.num_branches:
        raise ArtefactError(
            forget_set.folder,
            "is of kind 'uld'; the engine was started without assistants, because no set of that kind was there: "
            "restart the server with this set in its folder",
        )
    if manifest.kind == "undial" and not branches.adapted_layers:
        raise ArtefactError(
            forget_set.folder,
            "is of kind 'undial'; the engine was started without LoRA on the target, because no set of that kind was "
            "there: restart the server with this set in its folder",
        )
