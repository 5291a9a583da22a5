"""From a request to a set in force: find out what the target knows, train, measure, and only then put it in force."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

from rich.progress import Progress

from unlearngate.acting import refuse_idle
from unlearngate.artefact import ForgetSet, load_forget_set
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.forget.asking import Asker
from unlearngate.assistant_training.forget.case import Case
from unlearngate.assistant_training.forget.keeping import everyday_answers, find_kept
from unlearngate.assistant_training.forget.knowing import find_known
from unlearngate.assistant_training.forget.measuring import Figures, Limits, measure
from unlearngate.assistant_training.forget.report import report
from unlearngate.assistant_training.forget.request import Request
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import LoadedTarget
from unlearngate.assistant_training.train.run import train_forget_set
from unlearngate.assistant_training.train.settings import AssistantSettings, VerbatimSettings
from unlearngate.assistant_training.train.verbatim import make_verbatim_set
from unlearngate.errors import ArtefactError
from unlearngate.letters import letters
from unlearngate.placing import place
from unlearngate.served import ServedSets

_ANSWER_TOKENS = 48
_LIST_TOKENS = 160
_SERVER_S = 120.0  # a server that watches the folder has a set within seconds; canaries of a large target take longer
FORGET, RETAIN, PROBES, KNOWN, REPORT = "forget.jsonl", "retain.jsonl", "probes.jsonl", "known.json", "report.md"


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

    @property
    def verbatim_name(self) -> str:
        """Of the set that keeps the request's texts from being said word for word."""
        return f"{self.name}-text"


class Outcome(NamedTuple):
    """forget_set is the one that was put in force, None if its figures forbid it; `problems` says why."""

    forget_set: ForgetSet | None
    figures: Figures
    problems: list[str]
    report: Path


def carry_out(
    request: Request,
    given_retain: Sequence[QAPair],
    wanted: Wanted,
    case: Case,
    load: Callable[[], LoadedTarget],
    settings: AssistantSettings,
    progress: Progress,
) -> Outcome:
    """Carry out a request; steps that an earlier run finished are not done again.

    Args:
        request: what was asked for.
        given_retain: pairs of the user's that must stay, besides those that are asked for here.
        wanted: how.
        case: the request's folder.
        load: loads the target, which takes long.
        settings: of the training.
        progress: shows how far it is.

    Raises: TrainingError if the target knows nothing of it, or the training fails; ArtefactError if the set cannot be
        put in force, or another set of its name is there.
    """
    seconds: dict[str, float] = case.done("seconds") or {}
    _refuse_another(wanted.sets / wanted.name, (case.done("trained") or {}).get("digest"))
    if wanted.server is not None:
        wanted.server.cards()  # it answers, and takes the key
    withheld = _withhold(request, wanted, case, progress)

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        started = time.monotonic()
        yield
        seconds[step] = round(seconds.get(step, 0.0) + time.monotonic() - started, 1)
        case.record("seconds", seconds)

    with timed("load the target"):
        target = load()
    if wanted.server is not None:
        wanted.server.refuse_other_target(target.identity)
    if case.done("asked") is None:
        with timed("ask what it knows"):
            _ask(request, given_retain, wanted, case, target, progress)
    trained = case.folder / wanted.name
    if case.done("trained") is None:
        with timed("train"):
            forget_set = train_forget_set(
                *(target, case.folder / FORGET, case.folder / RETAIN, trained, replace(settings, said_instead=None)),
                seed=wanted.seed,
                progress=progress,
                write_anyway=wanted.anyway,
                label=wanted.label,
                instead=wanted.instead,
            )
            assert forget_set is not None  # one process
            case.record("trained", {"digest": forget_set.digest})
    forget_set = load_forget_set(trained, target.identity)
    if case.done("measured") is None:
        with timed("measure"):
            figures = _measure(forget_set, wanted, case, target, progress)
            case.record("measured", figures.row())
    figures = Figures.of_row(case.done("measured"))
    problems = wanted.limits.problems(figures)
    placed = None
    if not problems or wanted.anyway:
        refuse_idle(forget_set)
        placed = _put_in_force(forget_set, wanted, progress)
        case.record("in_force", {"digest": placed.digest})
    text = report(
        wanted.name,
        case.done("asked"),
        json.loads((case.folder / KNOWN).read_text()),
        figures,
        problems,
        seconds,
        sets=wanted.sets,
        digest=placed.digest if placed else None,
        withheld=withheld,
        probes=case.folder / PROBES,
    )
    case.write(REPORT, text)
    return Outcome(placed, figures, problems, case.folder / REPORT)


def _withhold(request: Request, wanted: Wanted, case: Case, progress: Progress) -> dict[str, Any] | None:
    """Put the set of the request's texts in force, before anything is asked or trained; None if there is no text."""
    texts = {name: text for name, text in request.texts.items() if len(letters(text)) >= wanted.letters}
    if not texts or not wanted.letters:
        return None
    made = case.folder / wanted.verbatim_name
    if case.done("withheld") is None:
        _refuse_another(wanted.sets / wanted.verbatim_name, None)
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
    _put_in_force(load_forget_set(made), wanted, progress)
    return withheld


def _put_in_force(forget_set: ForgetSet, wanted: Wanted, progress: Progress) -> ForgetSet:
    """Copy a set of this case into the folder that a server watches, and wait for the server, if one is named.

    Nothing is copied if it is there.
    """
    folder = wanted.sets / forget_set.name
    _refuse_another(folder, forget_set.digest)
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


def _refuse_another(folder: Path, digest: str | None) -> None:
    """Raise if a set is there that this case did not make: somebody's requests may require it."""
    if folder.exists() and load_forget_set(folder).digest != digest:
        raise ArtefactError(
            folder, "is there already, and not by this request; give another --name, or `unlearngate sets remove` it"
        )


def _ask(
    request: Request,
    given_retain: Sequence[QAPair],
    wanted: Wanted,
    case: Case,
    target: LoadedTarget,
    progress: Progress,
) -> None:
    """Write what is trained on and what is held out."""
    bar = progress.add_task("asking the target what it knows", total=None)

    def asker(max_tokens: int, *, whole: bool = False) -> Asker:
        return Asker(target, max_tokens=max_tokens, whole=whole, advance=lambda count: progress.advance(bar, count))

    ask, ask_for_more = asker(_ANSWER_TOKENS), asker(_LIST_TOKENS, whole=True)
    everyday = everyday_answers(ask, wanted.everyday and wanted.everyday / f"{_answers_digest(target)}.json")
    known = find_known(
        *(request, request.subjects(wanted.subjects), ask, ask_for_more),
        name=wanted.name,
        everyday=list(everyday.values()),
    )
    kept = find_kept(known, everyday, ask, ask_for_more, given_retain)
    progress.update(bar, total=1, completed=1)
    case.write_pairs(FORGET, known.forget)
    case.write_pairs(RETAIN, kept.retain)
    case.write_pairs(PROBES, [*known.held_out, *kept.held_out], {"forget_set": wanted.name})
    names = {"subjects": known.subjects, "unknown": known.unknown, "neighbours": kept.neighbours}
    case.write(KNOWN, json.dumps(names, ensure_ascii=False, indent=2) + "\n")
    case.record(
        "asked",
        {
            "questions": known.num_asked,
            "forget": len(known.forget),
            "forget_held_out": len(known.held_out),
            "retain": len(kept.retain),
            "retain_held_out": len(kept.held_out),
        },
    )


def _answers_digest(target: LoadedTarget) -> str:
    """Of all that decides what a target answers to a question here."""
    identity, template = target.identity, target.tokenizer.chat_template
    decides = [identity.weights_digest, identity.tokenizer_digest, template, dict(target.chat_template_kwargs)]
    return hashlib.sha256(json.dumps([*decides, _ANSWER_TOKENS], sort_keys=True).encode()).hexdigest()[:32]


def _measure(forget_set: ForgetSet, wanted: Wanted, case: Case, target: LoadedTarget, progress: Progress) -> Figures:
    probes = case.read_pairs(PROBES)
    forget = [pair for pair in probes if pair.subject == wanted.name]
    retain = [pair for pair in probes if pair.subject != wanted.name]
    bar = progress.add_task("measuring on held-out questions, alone and in contexts", total=None)

    def asker(in_force: Sequence[LoadedSet]) -> Asker:
        return Asker(
            target, max_tokens=_ANSWER_TOKENS, in_force=in_force, whole=True, advance=lambda n: progress.advance(bar, n)
        )

    in_force = with_sets(target.model, target.tokenizer, [forget_set]).in_force
    figures = measure(asker(()).complete, asker(in_force).complete, forget, retain, seed=wanted.seed)
    progress.update(bar, total=1, completed=1)
    return figures
