"""Put a request's sets where a server finds them: its words at once, the trained set when it has passed."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress

from unlearngate.artefact import ForgetSet, load_forget_set
from unlearngate.assistant_training.forget.case import Case
from unlearngate.assistant_training.forget.measuring import Limits
from unlearngate.assistant_training.forget.request import Request
from unlearngate.assistant_training.train.settings import VerbatimSettings
from unlearngate.assistant_training.train.verbatim import make_verbatim_set
from unlearngate.errors import ArtefactError
from unlearngate.passages import letters
from unlearngate.placing import place
from unlearngate.served import ServedSets

_SERVER_S = 120.0  # a server that watches the folder has a set within seconds; canaries of a large target take longer


class Wanted(NamedTuple):
    """How a request is carried out.

    Attributes:
        name: of the forget set.
        sets: the folder of sets that a server watches.
        subjects: names that are asked about, at most.
        limits: what the set must meet.
        anyway: put it in force even if it does not.
        label, instead: as in training.
        seed: the same seed, the same set.
        letters: no run of so many letters of a text comes out; 0: its words are not withheld.
        server: the server that watches `sets`: a set counts as in force once it is there; None asks no server.
        budget_s: seconds that a run may take; training ends early for it. None: as long as it takes.
        everyday: the folder where a target's answers to everyday questions are kept for the next request.
    """

    name: str
    sets: Path
    subjects: int = 8
    limits: Limits = Limits()
    anyway: bool = False
    label: str | None = None
    instead: str | None = None
    seed: int = 0
    letters: int = VerbatimSettings().letters
    server: ServedSets | None = None
    everyday: Path | None = None
    budget_s: float | None = None

    @property
    def verbatim_name(self) -> str:
        """Of the set that keeps the request's texts from being said word for word."""
        return f"{self.name}-text"


def withhold(request: Request, wanted: Wanted, case: Case, progress: Progress) -> dict[str, Any] | None:
    """Put the set of the request's texts in force, before anything is asked or trained; None if there is no text.

    A set of the same texts that is there already, from another case, serves as well.
    """
    texts = {name: text for name, text in request.texts.items() if len(letters(text)) >= wanted.letters}
    if not texts or not wanted.letters:
        return None
    made, there = case.folder / wanted.verbatim_name, wanted.sets / wanted.verbatim_name
    if case.done("withheld") is None or not made.exists():
        started, settings = time.monotonic(), VerbatimSettings(letters=wanted.letters)
        forget_set = make_verbatim_set(texts, made, settings, progress=progress, label=wanted.label)
        if there.exists() and _withholds_the_same(load_forget_set(there), forget_set):
            place(load_forget_set(there), made, replace=True)
            forget_set = load_forget_set(made)
        found = {
            "reference": forget_set.reference,
            "letters": wanted.letters,
            "of": int(forget_set.manifest.metrics["letters"]),
            "too_short": len(request.texts) - len(texts),
            "seconds": round(time.monotonic() - started, 1),
        }
        case.record("withheld", found)
    withheld: dict[str, Any] = case.done("withheld")
    confirm(put_there(load_forget_set(made), wanted.sets), wanted, progress)
    return withheld


def put_there(forget_set: ForgetSet, sets: Path) -> ForgetSet:
    """Copy a set of this case into the folder that a server watches; nothing is copied if it is there."""
    folder = sets / forget_set.name
    refuse_another(folder, forget_set.digest)
    if not folder.exists():
        sets.mkdir(parents=True, exist_ok=True)
        place(forget_set, folder)
    return load_forget_set(folder)


def confirm(placed: ForgetSet, wanted: Wanted, progress: Progress) -> None:
    """Say that a set is there, once the server that is named has it in force.

    Raises: UnlearngateError if it does not come to have it; the set stays where it is.
    """
    said = f"{placed.reference} is in {wanted.sets}"
    if wanted.server is not None:
        progress.console.print(f"{said}; waiting for {wanted.server.url}", soft_wrap=True, markup=False)
        waited_s = wanted.server.wait_for(placed, most_s=_SERVER_S)
        said = f"{wanted.server.url} has {placed.reference} in force, {waited_s:.0f} s later"
    progress.console.print(said, soft_wrap=True, markup=False)


def refuse_another(folder: Path, digest: str | None) -> None:
    """Raise if a set is there that this case did not make: somebody's requests may require it."""
    if folder.exists() and load_forget_set(folder).digest != digest:
        raise ArtefactError(
            folder, "is there already, and not by this request; give another --name, or `unlearngate sets remove` it"
        )


def _withholds_the_same(one: ForgetSet, other: ForgetSet) -> bool:
    """Whether two sets withhold the same texts: salts differ, so that their digests do."""
    a, b = one.manifest, other.manifest
    if a.windows is None or b.windows is None:
        return False
    return (a.data_digests, a.windows.letters) == (b.data_digests, b.windows.letters)
