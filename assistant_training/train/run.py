"""From a checkpoint folder and two files of questions to a forget set that can be served."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

import torch
from pydantic import TypeAdapter, ValidationError
from rich.progress import Progress
from safetensors import SafetensorError

from unlearngate.artefact import ForgetSet, data_digest
from unlearngate.assistant_training.data.chat import warning_of_no_system
from unlearngate.assistant_training.data.encoding import refuse_changed_answers
from unlearngate.assistant_training.data.everyday import warning_of_everyday_facts, warning_of_unsaid_facts
from unlearngate.assistant_training.data.lengths import longest_turns, refuse_longer_than_context
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.model.loaded_target import LoadedTarget
from unlearngate.assistant_training.model.processes import Processes
from unlearngate.assistant_training.train.earlier import read_earlier
from unlearngate.assistant_training.train.run_files import RunFiles
from unlearngate.assistant_training.train.settings import AssistantSettings, UndialSettings
from unlearngate.assistant_training.train.uld import export_assistant, train_assistant
from unlearngate.assistant_training.train.undial import export_undial, train_undial
from unlearngate.errors import TrainingError
from unlearngate.manifest import NAME_PATTERN, LabelText, SentenceText, fill_in
from unlearngate.sentences import encode_sentence


def train_forget_set(
    target: LoadedTarget,
    forget_file: Path,
    retain_file: Path,
    out: Path,
    settings: AssistantSettings,
    *,
    seed: int,
    progress: Progress,
    checkpoint_every: int = 50,
    tensorboard: bool = False,
    write_anyway: bool = False,
    label: str | None = None,
    instead: str | None = None,
    deadline: float | None = None,
    after: Path | None = None,
) -> ForgetSet | None:
    """Train an assistant, choose its gate, and write it as the forget set `out`, of kind `uld`, named like that folder.

    While it runs, `.NAME.training` beside OUT holds a checkpoint and log.jsonl. After a kill or a full disk, the same
    call resumes from there and writes what the uninterrupted run would have written.

    Args:
        target: the target.
        forget_file: what must be forgotten.
        retain_file: what must stay.
        out: the set's folder.
        settings: of the training.
        seed: the same seed, the same set.
        progress: shows how far it is.
        checkpoint_every: steps between checkpoints.
        tensorboard: also log for TensorBoard.
        write_anyway: write the set even if it does nothing, or too much.
        label: what the set is about, for people; None: its name.
        instead: what is said where the set's gate is open at an answer's first token; None: nothing.
        deadline: of time.monotonic(), when training must end; the checkpoint stays then, also beside a written set, and
            the same call with a later one goes on from there.
        after: the folder of an earlier set of this kind and shape, also of other weights, such as the target's last
            version: training starts from it, and ends at once if it shows enough, or as much as it did there.

    Returns: the set; None in all processes of `accelerate launch` but the main one, which writes it.
    Raises: DataError naming a line of the files or an answer longer than the target's context; TrainingError if the
        loss is not finite, the disk is full, the checkpoint is of another run, the set does nothing or too much and
        `write_anyway` is not given, or `label` or `instead` is no plain text; SentenceError if the target cannot say
        `instead`; ArtefactError if `out` cannot be written as a forget set.
    """
    data = _read(target, out, forget_file, retain_file)
    earlier = read_earlier(after, "uld", target.identity, other_weights=True) if after else None
    _check_wording(target, label or out.name, instead)
    settings = settings.on(target.identity.num_layers)
    if instead is not None:
        settings = replace(settings, said_instead=fill_in(instead, label or out.name))
    _warn(
        progress,
        warning_of_unsaid_facts(data.forget),
        warning_of_everyday_facts(data.forget, data.retain),
        warning_of_no_system(target.tokenizer),
    )
    more = {"after": earlier.digest} if earlier else {}
    run = _run_files(out, target, data, asdict(settings), seed, checkpoint_every, tensorboard, more)
    torch.manual_seed(seed)
    assistant = train_assistant(
        *(target.model, target.tokenizer, data.forget, data.retain, settings),
        model_id=target.identity.model_id,
        seed=seed,
        progress=progress,
        run=run,
        context_length=target.context_length,
        deadline=deadline,
        after=earlier,
    )
    if not Processes().is_main:
        return None
    with _kept_if_it_fails(out, run, late=deadline is not None and time.monotonic() >= deadline):
        return export_assistant(
            *(out, target.model, assistant, target.tokenizer),
            identity=target.identity,
            forget=data.forget,
            retain=data.retain,
            settings=settings,
            seed=seed,
            context_length=target.context_length,
            chat_template_kwargs=target.chat_template_kwargs,
            write_anyway=write_anyway,
            label=label,
            instead=instead,
            after=earlier,
        )


def train_undial_set(
    target: LoadedTarget,
    forget_file: Path,
    retain_file: Path | None,
    out: Path,
    settings: UndialSettings,
    *,
    seed: int,
    progress: Progress,
    after: Path | None = None,
    checkpoint_every: int = 50,
    tensorboard: bool = False,
    write_anyway: bool = False,
) -> ForgetSet | None:
    """Train LoRA on the target and write it as the forget set `out`, of kind `undial`; otherwise as `train_forget_set`.

    Args:
        target: the target.
        forget_file: what must be forgotten.
        retain_file: what must stay; None trains without.
        out: the set's folder.
        settings: of the training.
        seed: the same seed, the same set.
        progress: shows how far it is.
        after: the folder of an earlier set of this kind, to continue from.
        checkpoint_every: steps between checkpoints.
        tensorboard: also log for TensorBoard.
        write_anyway: write the set even if it changes no answer.

    Returns: as `train_forget_set`.
    Raises: as `train_forget_set`; ArtefactError also if `after` is damaged or of another target.
    """
    data = _read(target, out, forget_file, retain_file)
    earlier = read_earlier(after, "undial", target.identity) if after else None
    unsaid = warning_of_unsaid_facts(data.forget) if settings.focus == "facts" else None
    _warn(progress, unsaid, warning_of_no_system(target.tokenizer))
    more = {"after": earlier.digest if earlier else None}
    run = _run_files(out, target, data, asdict(settings), seed, checkpoint_every, tensorboard, more)
    torch.manual_seed(seed)
    trained = train_undial(
        *(target.model, target.tokenizer, data.forget, data.retain, settings),
        model_id=target.identity.model_id,
        seed=seed,
        progress=progress,
        run=run,
        after=earlier,
        context_length=target.context_length,
    )
    if not Processes().is_main:
        return None
    with _kept_if_it_fails(out, run):
        return export_undial(
            *(out, target.model, trained, target.tokenizer),
            identity=target.identity,
            forget=data.forget,
            retain=data.retain,
            settings=settings,
            seed=seed,
            chat_template_kwargs=target.chat_template_kwargs,
            after=earlier,
            write_anyway=write_anyway,
        )


def run_folder(out: Path) -> Path:
    """Where the training of a forget set keeps its checkpoint and its log."""
    return out.parent / f".{out.name}.training"


class _Data(NamedTuple):
    forget: list[QAPair]
    retain: list[QAPair]


def _read(target: LoadedTarget, out: Path, forget_file: Path, retain_file: Path | None) -> _Data:
    """Both files; the set's name is checked too, before the target's weights are read."""
    if not re.fullmatch(NAME_PATTERN, out.name):
        raise TrainingError(f"{out.name!r} cannot name a forget set: lower-case letters, digits, '.', '_' and '-' only")
    forget = read_pairs(forget_file, subject=out.name, documents=True)
    retain = read_pairs(retain_file, subject="retain", documents=True) if retain_file else []
    if both := {pair.asked for pair in forget} & {pair.asked for pair in retain}:
        raise TrainingError(
            f"{retain_file} holds {len(both)} questions that are to be forgotten too, such as {sorted(both)[0]!r}; "
            "take them out: an answer cannot be lost and kept"
        )
    for path, pairs in ((forget_file, forget), (retain_file, retain)):
        refuse_changed_answers(target.tokenizer, pairs, path)
        refuse_longer_than_context(
            target.tokenizer, longest_turns(target.tokenizer, pairs), target.context_length, path
        )
    return _Data(forget, retain)


def _warn(progress: Progress, *warnings: str | None) -> None:
    """Say each once, whatever the number of processes."""
    for warning in warnings:
        if warning and Processes().is_main:
            progress.console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)


def _check_wording(target: LoadedTarget, label: str, instead: str | None) -> None:
    """What would be found wrong when the set is written, before anything is trained."""
    try:
        TypeAdapter(LabelText).validate_python(label)
        if instead is not None:
            TypeAdapter(SentenceText).validate_python(instead)
    except ValidationError as error:
        first = error.errors()[0]
        raise TrainingError(f"{first['input']!r} cannot be a set's label or sentence: {first['msg']}") from error
    if instead is not None:
        encode_sentence(target.tokenizer, fill_in(instead, label))


def _run_files(
    out: Path,
    target: LoadedTarget,
    data: _Data,
    settings: dict[str, Any],
    seed: int,
    checkpoint_every: int,
    tensorboard: bool,
    more: dict[str, Any] | None = None,
) -> RunFiles:
    identity = {
        "target": target.identity.model_dump(mode="json"),
        "settings": settings,
        "seed": seed,
        **{f"{name} data": data_digest([pair.row() for pair in pairs]) for name, pairs in data._asdict().items()},
        **(more or {}),
        **({"chat template": dict(switches)} if (switches := target.chat_template_kwargs) else {}),
    }
    return RunFiles(run_folder(out), identity, checkpoint_every=checkpoint_every, tensorboard=tensorboard)


@contextmanager
def _kept_if_it_fails(out: Path, run: RunFiles, *, late: bool = False) -> Iterator[None]:
    """Delete the checkpoint only once the set is written, and not if it was trained until a deadline."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        raise TrainingError(
            f"{out} cannot be written ({error}); the trained weights are kept in {run.checkpoint}: make room and give "
            "the same command again"
        ) from error
    if not late:
        run.finish()
