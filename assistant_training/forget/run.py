"""From a request to a set in force: find out what the target knows, train, measure, and only then put it in force."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rich.progress import Progress

from unlearngate.acting import refuse_idle
from unlearngate.artefact import ForgetSet
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.forget.asking import Asker
from unlearngate.assistant_training.forget.case import FORGET, KNOWN, PROBES, REPORT, RETAIN, Case
from unlearngate.assistant_training.forget.enforcing import Wanted, confirm, put_there, refuse_another, withhold
from unlearngate.assistant_training.forget.keeping import everyday_answers, find_kept
from unlearngate.assistant_training.forget.knowing import find_known
from unlearngate.assistant_training.forget.measuring import Figures, measure, num_prompts
from unlearngate.assistant_training.forget.report import report
from unlearngate.assistant_training.forget.request import Request
from unlearngate.assistant_training.forget.training import drop_what_is_stale, train
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import LoadedTarget
from unlearngate.assistant_training.train.settings import AssistantSettings
from unlearngate.errors import DataError

_ANSWER_TOKENS = 48
_LIST_TOKENS = 160
_AGAIN_AT = 0.7  # the temperature of answers in other words
_ENDING = 0.06  # of what training may take: its last check, its canaries, and writing the set
_WITH_SET = 1.25  # times as long as an answer in asking: half of the answers are composed, some prompts are longer


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

    Raises: DataError if there is no name to ask about, or the target is another than before; TrainingError if the
        target knows nothing of it, or the training fails; ArtefactError if the set cannot be
        put in force, or another set of its name is there.
    """
    started, seconds = time.monotonic(), case.done("seconds") or {}
    refuse_another(wanted.sets / wanted.name, (case.done("trained") or {}).get("digest"))
    if wanted.server is not None:
        wanted.server.cards()  # it answers, and takes the key
    withheld = withhold(request, wanted, case, progress)
    request.refuse_nameless()

    @contextmanager
    def timed(step: str) -> Iterator[None]:
        begun = time.monotonic()
        try:
            yield
        finally:
            seconds[step] = round(seconds.get(step, 0.0) + time.monotonic() - begun, 1)
            case.record("seconds", seconds)

    with timed("load the target"):
        target = load()
        _refuse_changed(target, case)
    if wanted.server is not None:
        wanted.server.refuse_other_target(target.identity)
        made = settings.on(target.identity.num_layers)
        wanted.server.refuse_unfit(tap_layer=made.tap_layer or 0, num_layers=made.num_layers, rank=made.rank)
    if case.done("asked") is None:
        with timed("ask what it knows"):
            _ask(request, given_retain, wanted, case, target, progress)
    drop_what_is_stale(wanted, case, settings)
    with timed("train"):
        deadline = _deadline(started, wanted, case, seconds, progress) if case.done("measured") is None else None
        forget_set = train(target, wanted, case, settings, deadline=deadline, progress=progress)
    if case.done("measured") is None:
        with timed("measure"):
            figures = _measure(forget_set, wanted, case, target, progress)
            case.record("measured", figures.row())
    figures = Figures.of_row(case.done("measured"))
    problems = wanted.limits.problems(figures)
    placed = None
    if not problems or wanted.anyway or (wanted.sets / wanted.name).exists():  # there by an earlier run of this case
        refuse_idle(forget_set)
        placed = put_there(forget_set, wanted.sets)
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
        instead=forget_set.manifest.instead,
    )
    case.write(REPORT, text)
    if placed:
        confirm(placed, wanted, progress)
    return Outcome(placed, figures, problems, case.folder / REPORT)


def _refuse_changed(target: LoadedTarget, case: Case) -> None:
    """Raise if the target is another than the one that was asked what it knows."""
    asked = case.done("asked")
    if asked and asked["weights"] != target.identity.weights_digest:
        raise DataError(
            f"{case.folder}: the target's weights are others than those that were asked what they know; give another "
            "--case and --name for the new target, or the old target to go on"
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

    answers: list[float] = []  # in answers of the usual length

    def asker(max_tokens: int, *, whole: bool = False, temperature: float = 0.0) -> Asker:
        def advance(count: int) -> None:
            answers.append(count * max_tokens / _ANSWER_TOKENS)
            progress.advance(bar, count)

        return Asker(target, max_tokens=max_tokens, whole=whole, temperature=temperature, advance=advance)

    ask, ask_for_more = asker(_ANSWER_TOKENS), asker(_LIST_TOKENS, whole=True)
    ask_again = asker(_ANSWER_TOKENS, temperature=_AGAIN_AT)
    everyday = everyday_answers(ask, wanted.everyday and wanted.everyday / f"{_answers_digest(target)}.json")
    known = find_known(
        *(request, request.subjects(wanted.subjects), ask, ask_for_more, ask_again),
        name=wanted.name,
        everyday=list(everyday.values()),
    )
    kept = find_kept(known, everyday, ask, ask_for_more, given_retain)
    if kept.left_out:
        progress.console.print(
            f"{kept.left_out} of the {len(given_retain)} --retain questions share a name or a fact with what is "
            "forgotten, and are left out: they may change",
            style="yellow",
            soft_wrap=True,
        )
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
            "answers": sum(answers),
            "weights": target.identity.weights_digest,
            "forget": len(known.forget),
            "forget_held_out": len(known.held_out),
            "retain": len(kept.retain),
            "retain_held_out": len(kept.held_out),
        },
    )


def _deadline(
    started: float, wanted: Wanted, case: Case, seconds: Mapping[str, float], progress: Progress
) -> float | None:
    """When training must end, of time.monotonic(), so that measuring is within the budget, too."""
    if wanted.budget_s is None:
        return None
    asked = case.done("asked")
    num_answers = 2 * num_prompts(asked["forget_held_out"], asked["retain_held_out"])  # without the set and with it
    measuring_s = _WITH_SET * num_answers * seconds.get("ask what it knows", 0.0) / max(1, asked["answers"])
    training_s = max(0.0, started + wanted.budget_s - measuring_s - time.monotonic())
    progress.console.print(
        f"of the budget of {wanted.budget_s:.0f} s training may take {training_s:.0f}, and measuring about "
        f"{measuring_s:.0f}",
        highlight=False,
        soft_wrap=True,
    )
    return time.monotonic() + (1 - _ENDING) * training_s


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
    figures = measure(
        *(asker(()).complete, asker(in_force).complete, forget, retain),
        seed=wanted.seed,
        sentence=forget_set.manifest.sentence(),
    )
    progress.update(bar, total=1, completed=1)
    return figures
