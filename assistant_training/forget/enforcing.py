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
from unlearngate.letters import letters
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
    """Put the set of the request's texts in force, before anything is asked or trained; None if there is no text."""
    texts = {name: text for name, text in request.texts.items() if len(letters(text)) >= wanted.letters}
    if not texts or not wanted.letters:
        return None
    made = case.folder / wanted.verbatim_name
    if case.done("withheld") is None:
        refuse_another(wanted.sets / wanted.verbatim_name, None)
        started, settings = time.monotonic(), VerbatimSettings(letters=wanted.letters)
        forget_set = make_verbatim_set(texts, made, settings, progress=progress, label=wanted.label)
        found = {
            "reference": forget_set.reference,
            "letters": wanted.letters,
            "of": int(forget_set.manifest.metrics["letters"]),
            "too_short": len(request.texts) - len(texts),
            "seconds": round(time.monotonic() - started, 1),
        }
        case.record("withheld", found)
    withheld: dict[str, Any] = case.done("withheld")
    put_in_force(load_forget_set(made), wanted, progress)
    return withheld


def put_in_force(forget_set: ForgetSet, wanted: Wanted, progress: Progress) -> ForgetSet:
    """Copy a set of this case into the folder that a server watches, and wait for the server, if one is named.

    Nothing is copied if it is there.
    """
    folder = wanted.sets / forget_set.name
    refuse_another(folder, forget_set.digest)
    if not folder.exists():
        wanted.sets.mkdir(parents=True, exist_ok=True)
        place(forget_set, folder)
    placed = load_forget_set(folder)
    said = f"{placed.reference} is in {wanted.sets}"
    if wanted.server is not None:
        waited_s = wanted.server.wait_for(placed, most_s=_SERVER_S)
        said += f"; {wanted.server.url} has it in force, {waited_s:.0f} s later"
    progress.console.print(said, soft_wrap=True, markup=False)
    return placed


def refuse_another(folder: Path, digest: str | None) -> None:
    """Raise if a set is there that this case did not make: somebody's requests may require it."""
    if folder.exists() and load_forget_set(folder).digest != digest:
        raise ArtefactError(
            folder, "is there already, and not by this request; give another --name, or `unlearngate sets remove` it"
        )
