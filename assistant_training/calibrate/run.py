"""Calibrate a trained forget set on held-out data: sweep, choose, confirm by decoding, and write the artefact anew."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from unlearngate.artefact import ForgetSet, load_forget_set, rewrite_forget_set
from unlearngate.assistant_training.calibrate.held_out import HeldOut, WordedQuestion, ask
from unlearngate.assistant_training.calibrate.report import Report, write_report
from unlearngate.assistant_training.calibrate.selection import Choice, choose_setting
from unlearngate.assistant_training.calibrate.settings import CalibrationSettings
from unlearngate.assistant_training.calibrate.sweep import Grid, Positions, Setting, measure, plain_outcome, sweep
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.evaluate.metrics import answer_probability, recited, rouge_recall
from unlearngate.assistant_training.model.canaries import that_hold
from unlearngate.assistant_training.model.decoding import greedy
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_sets import assistant_of
from unlearngate.assistant_training.model.loaded_target import LoadedTarget
from unlearngate.assistant_training.model.scoring import score
from unlearngate.errors import CalibrationError
from unlearngate.manifest import NAME_PATTERN, Canary, Strength


class Calibrated(NamedTuple):
    """The result: `forget_set` is the new artefact, or None after a dry run; `files` are the report's."""

    report: Report
    choice: Choice
    decoded: dict[str, float]
    files: list[Path]
    forget_set: ForgetSet | None


def calibrate_forget_set(
    target: LoadedTarget,
    forget_set: ForgetSet,
    data: HeldOut,
    settings: CalibrationSettings,
    *,
    out: Path,
    report_folder: Path,
    dry_run: bool = False,
    progress: Progress,
) -> Calibrated:
    """Measure the set at every setting, choose one by the rule of selection.py, and write it into a new artefact.

    Args:
        target: what the set was trained on.
        forget_set: of kind `uld`, verified; its own recommended values are swept too.
        data: from `read_held_out`. Where a pair names facts, only their tokens count as forgotten or not.
        settings: the grid and the limits. With ignorance data, its probability replaces the limit on forgetting.
        out: the artefact to write, named like that folder; if that is the set's own, the set is replaced atomically.
        report_folder: for sweep.md, .csv, .json and .png, which are written even if no setting can be recommended.
        dry_run: write only the report.
        progress: shows how far it is.

    Raises: CalibrationError if no setting meets the limits, the target does not know the forget answers, or the
        decoded answers contradict the choice; the artefacts on disk are then unchanged. ArtefactError if `out` holds
        something that is no forget set.
    """
    _check(forget_set, out)
    assistant = assistant_of(target.model, forget_set)
    limits = settings.limits
    if data.ignorance:
        limits = replace(limits, forget_probability=_ignorance(target, data.ignorance, settings))
    asked = {
        "forget": ask(target.tokenizer, data.forget, settings.system_prompts, focused=True),
        "retain": ask(target.tokenizer, data.retain, settings.system_prompts, focused=False),
    }
    report = _sweep(target, assistant, asked, replace(settings, limits=limits), forget_set, progress)
    try:
        choice = choose_setting(report.settings, report.grid, limits)
    except CalibrationError as error:
        write_report(report, report_folder)
        raise CalibrationError(f"{error.message}. The whole sweep is in {report_folder}") from error
    report = report._replace(choice=choice)
    files = write_report(report, report_folder)
    in_force = [LoadedSet(assistant, choice.setting.strength, forget_set.manifest.rule)]
    decoded = _decode(target, asked, in_force, settings, progress)
    if decoded["decoded_forget_recited"] > limits.forget_recited:
        raise CalibrationError(
            f"decoded greedily, {decoded['decoded_forget_recited']:.1%} of the forget answers are still recited at the "
            f"chosen setting, at most {limits.forget_recited:.1%} may be; lower --forget-at-most or --margin, which "
            "leads to a larger weight, or allow more with --recited-at-most"
        )
    canaries = that_hold(target.model, target.tokenizer, forget_set.manifest.canaries, in_force=in_force)
    if forget_set.manifest.canaries and not any(canary.changes for canary in canaries):
        raise CalibrationError(
            "at the chosen setting the set changes none of the answers that its canaries say it changes; lower "
            "--forget-at-most or --margin, which leads to a larger weight"
        )
    new = None if dry_run else _write(forget_set, out, data, settings, report, choice, decoded, canaries)
    return Calibrated(report, choice, decoded, files, new)


def _sweep(
    target: LoadedTarget,
    assistant: Any,
    asked: dict[str, list[WordedQuestion]],
    settings: CalibrationSettings,
    forget_set: ForgetSet,
    progress: Progress,
) -> Report:
    """All measurements; nothing is chosen yet."""
    before = forget_set.manifest.recommended
    grid = Grid.of(
        [*settings.weights, *([before.weight] if before.weight else [])],
        [*settings.keep_ratios, before.keep_ratio],
        [*settings.gates_nats, before.gate_nats],
    )
    measured: dict[str, Positions] = {}
    counts: dict[str, int] = {}
    for name, questions in asked.items():
        bar = progress.add_task(f"measuring {name} answers", total=len(questions))
        measured[name] = measure(
            *(target.model, assistant, [one.row for one in questions], grid),
            pad_id=target.tokenizer.pad_token_id,
            rule=forget_set.manifest.rule,
            batch_size=settings.batch_size,
            advance=partial(progress.advance, bar),
        )
        counts |= {f"{name}_answers": len(questions), f"{name}_tokens": len(measured[name].answer_P)}
    none = Strength(weight=0.0, keep_ratio=0.0, gate_nats=0.0)
    plain = Setting(none, plain_outcome(measured["forget"]), plain_outcome(measured["retain"]))
    if settings.limits.forgets(plain):
        raise CalibrationError(
            f"without any set the target gives the forget answers a probability of {plain.forget.probability:.3g} and "
            f"recites {plain.forget.recited:.1%}, no more than may be left: there is nothing to measure. Ask what it "
            "knows, and give the answers in its words"
        )
    found = sweep(measured["forget"], measured["retain"], grid)
    return Report(forget_set.reference, counts, grid, settings.limits, plain, before, found, None)


def _check(forget_set: ForgetSet, out: Path) -> None:
    kind = forget_set.manifest.kind
    if kind != "uld":
        raise CalibrationError(
            f"{forget_set.reference} is of kind {kind!r}, which is in force or not: only sets of kind 'uld' have a "
            "weight, a keep ratio and a gate"
        )
    if not re.fullmatch(NAME_PATTERN, out.name):
        raise CalibrationError(
            f"{out.name!r} cannot name a forget set: lower-case letters, digits, '.', '_' and '-' only"
        )
    if out.exists():
        load_forget_set(out)  # anything but a forget set must not be replaced


def _ignorance(target: LoadedTarget, pairs: Sequence[QAPair], settings: CalibrationSettings) -> float:
    """The probability that the target gives to answers it never learned, measured as for the forget answers."""
    rows = [one.row for one in ask(target.tokenizer, pairs, settings.system_prompts, focused=True)]
    scored = score(target.model, rows, pad_id=target.tokenizer.pad_token_id, batch_size=settings.batch_size)
    return float(answer_probability([one.log_p for one in scored]).mean())


def _decode(
    target: LoadedTarget,
    asked: dict[str, list[WordedQuestion]],
    in_force: Sequence[LoadedSet],
    settings: CalibrationSettings,
    progress: Progress,
) -> dict[str, float]:
    """What greedy decoding gives with and without the set in force, for evenly spread questions of each file."""
    figures = {}
    for name, questions in asked.items():
        count = min(settings.decoded, len(questions))
        some = [questions[index] for index in np.linspace(0, len(questions) - 1, count).round().astype(int)]
        bar = progress.add_task(f"decoding {name} answers", total=2 * count)
        said: dict[str, list[list[int]]] = {"_plain": [], "": []}
        for suffix, sets in (("_plain", ()), ("", in_force)):
            for start in range(0, count, settings.batch_size):
                part = some[start : start + settings.batch_size]
                said[suffix] += greedy(
                    *(target.model, [one.prompt for one in part]),
                    eos_id=target.tokenizer.eos_token_id,
                    max_tokens=settings.max_tokens,
                    in_force=sets,
                )
                progress.advance(bar, len(part))
            texts = [target.tokenizer.decode(ids, skip_special_tokens=True) for ids in said[suffix]]
            answers = [one.answer for one in some]
            figures[f"decoded_{name}_recited{suffix}"] = float(recited(answers, texts).mean())
            figures[f"decoded_{name}_rouge{suffix}"] = float(rouge_recall(answers, texts).mean())
        same = [plain == now for plain, now in zip(said["_plain"], said[""], strict=True)]
        figures[f"decoded_{name}_unchanged"] = float(np.mean(same))
    return figures


def _write(
    forget_set: ForgetSet,
    out: Path,
    data: HeldOut,
    settings: CalibrationSettings,
    report: Report,
    choice: Choice,
    decoded: dict[str, float],
    canaries: Sequence[Canary],
) -> ForgetSet:
    """Write the same tensors under a new manifest. The old one's metrics depend on its gate: they move to `before`."""
    manifest = forget_set.manifest
    strength = choice.setting.strength
    figures = {key: value for key, value in choice.setting.row().items() if key not in Strength.model_fields}
    plain = {f"{name}_probability_plain": getattr(report.plain, name).probability for name in ("forget", "retain")}
    calibration = {
        "grid": report.grid._asdict(),
        "limits": asdict(report.limits),
        "limit_is_level_of_ignorance": bool(data.ignorance),
        "system_prompts": list(settings.system_prompts),
        "data_digests": data.digests(),
        "held_out": data.held_out,
        "before": {
            "digest": forget_set.digest,
            "recommended": manifest.recommended.model_dump(),
            "bounds": manifest.bounds.model_dump(),
            "metrics": manifest.metrics,
        },
    }
    return rewrite_forget_set(
        forget_set,
        out,
        name=out.name,
        recommended=strength,
        bounds=choice.bounds,
        training={**manifest.training, "calibration": calibration},
        metrics={"held_out": float(data.held_out), **report.counts, **plain, **figures, **decoded},
        canaries=canaries,
    )
