"""The training of a case: what an earlier run left is gone on with, taken over, or made anew."""

from __future__ import annotations

import shutil
import time
from dataclasses import replace
from pathlib import Path

from rich.progress import Progress

from unlearngate.artefact import ForgetSet, data_digest, load_forget_set
from unlearngate.assistant_training.forget.case import FORGET, RETAIN, Case
from unlearngate.assistant_training.forget.enforcing import Wanted
from unlearngate.assistant_training.model.loaded_target import LoadedTarget
from unlearngate.assistant_training.train.run import run_folder, train_forget_set
from unlearngate.assistant_training.train.settings import AssistantSettings
from unlearngate.errors import ArtefactError, TrainingError

# The layers before the tap, which read each different conversation once, are half of the time that training takes.
_FORGET_PROMPTS, _FORGET_VARIANTS, _RETAIN_PROMPTS = 24, 8, 6


def train(
    target: LoadedTarget,
    wanted: Wanted,
    case: Case,
    settings: AssistantSettings,
    *,
    deadline: float | None,
    progress: Progress,
) -> ForgetSet:
    """The case's trained set, in the case's folder.

    Args:
        target: the target.
        wanted: how the request is carried out.
        case: its folder; the questions are there.
        settings: of the training.
        deadline: of time.monotonic(), when training must end.
        progress: shows how far it is.

    Raises: as `train_forget_set`.
    """
    folder = case.folder / wanted.name
    if case.done("trained") is None:
        case.record("training", {"steps": settings.steps})
        forget_set = _left_by_a_kill(case, folder, settings)
        if forget_set is None:
            forget_set = _trained(target, wanted, case, settings, deadline, progress)
        cut = deadline is not None and time.monotonic() >= deadline
        case.record(
            "trained",
            {"digest": forget_set.digest, "steps": settings.steps, "cut": cut, "budget_s": wanted.budget_s},
        )
    return load_forget_set(folder, target.identity)


def drop_what_is_stale(wanted: Wanted, case: Case, settings: AssistantSettings) -> None:
    """Have the training done again, or gone on with, of a set that is not in force.

    It goes on if a budget cut it short and this one is larger. With other --steps, or if its folder is gone, it is done
    anew.
    """
    folder = case.folder / wanted.name
    trained, training = case.done("trained"), case.done("training")
    if trained and not (wanted.sets / wanted.name).exists():
        more_time = trained["cut"] and (wanted.budget_s is None or wanted.budget_s > trained["budget_s"])
        if more_time or trained["steps"] != settings.steps:
            case.forget("trained", "measured")
            shutil.rmtree(folder, ignore_errors=True)
    if trained and not folder.exists():  # by hand
        case.forget("trained", "measured")
    if training and training["steps"] != settings.steps and case.done("trained") is None:
        shutil.rmtree(run_folder(folder), ignore_errors=True)  # another schedule: it cannot be gone on with


def _left_by_a_kill(case: Case, folder: Path, settings: AssistantSettings) -> ForgetSet | None:
    """A set that was written, and the run killed before it was noted down."""
    try:
        forget_set = load_forget_set(folder)
    except ArtefactError:
        return None
    data = {
        name: [pair.row() for pair in case.read_pairs(file)] for name, file in (("forget", FORGET), ("retain", RETAIN))
    }
    same = forget_set.manifest.data_digests == {name: data_digest(rows) for name, rows in data.items()}
    return forget_set if same and forget_set.manifest.training["steps"] == settings.steps else None


def _trained(
    target: LoadedTarget,
    wanted: Wanted,
    case: Case,
    settings: AssistantSettings,
    deadline: float | None,
    progress: Progress,
) -> ForgetSet:
    settings = replace(
        settings,
        said_instead=None,
        forget_prompts=_FORGET_PROMPTS,
        forget_variants=_FORGET_VARIANTS,
        retain_prompts=_RETAIN_PROMPTS,
    )
    try:
        forget_set = train_forget_set(
            *(target, case.folder / FORGET, case.folder / RETAIN, case.folder / wanted.name),
            settings,
            seed=wanted.seed,
            progress=progress,
            write_anyway=wanted.anyway,
            label=wanted.label,
            instead=wanted.instead,
            deadline=deadline,
        )
    except TrainingError as error:
        if deadline is not None and time.monotonic() >= deadline:
            what = "the budget cut training short: the same command with a larger --budget goes on"
        else:
            what = "the same command with other --steps trains anew"
        raise TrainingError(f"{error}. Here {what}") from error
    assert forget_set is not None  # one process
    return forget_set
