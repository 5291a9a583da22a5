"""Calibrate a trained forget set on held-out data: sweep, choose, confirm by decoding, and write the artefact anew."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from rich.progress import Progress

from unlearngate.artefact import ADAPTER_FILE, CONFIG_FILE, ForgetSet, load_forget_set, rewrite_forget_set
from unlearngate.assistant_training.calibrate.decoded import decode
from unlearngate.assistant_training.calibrate.gates import gates_of
from unlearngate.assistant_training.calibrate.held_out import HeldOut, WordedQuestion, ask, ask_in_contexts
from unlearngate.assistant_training.calibrate.kept import Kept, digest_of
from unlearngate.assistant_training.calibrate.positions import (
    Composed,
    Positions,
    compose_positions,
    least_evidence,
    read_positions,
)
from unlearngate.assistant_training.calibrate.report import Report, write_report
from unlearngate.assistant_training.calibrate.selection import Choice, best_of, choose_setting, describe
from unlearngate.assistant_training.calibrate.settings import CalibrationSettings, Limits
from unlearngate.assistant_training.calibrate.sweep import Grid, Measured, Setting, plain_outcome, sweep
from unlearngate.assistant_training.data.chat import warning_of_no_system
from unlearngate.assistant_training.data.encoding import refuse_changed_answers
from unlearngate.assistant_training.data.everyday import warning_of_everyday_facts, warning_of_unsaid_facts
from unlearngate.assistant_training.data.lengths import longest_turns, refuse_longer_than_context, warning_of_cut
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.evaluate.metrics import answer_probability
from unlearngate.assistant_training.model.canaries import that_hold
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_sets import assistant_of
from unlearngate.assistant_training.model.loaded_target import LoadedTarget
from unlearngate.assistant_training.model.scoring import score
from unlearngate.errors import CalibrationError
from unlearngate.manifest import NAME_PATTERN, Strength


class Calibrated(NamedTuple):
    """The result: `files` are the report's; `forget_set` is the new artefact, or None if none was written."""

    report: Report
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
    kept_folder: Path,
    dry_run: bool = False,
    write_anyway: bool = False,
    accept: str,
    progress: Progress,
) -> Calibrated:
    """Measure the set at every setting, choose one by the rule of selection.py, and write it into a new artefact.

    If no setting passes, or decoding contradicts the choice, the report has the reason and the nearest setting, and
    no set is written unless `write_anyway`.

    Args:
        target: what the set was trained on.
        forget_set: of kind `uld`, verified; its own recommended values are swept too.
        data: from `read_held_out`. Where a pair names facts, only their tokens count as forgotten or not.
        settings: the grid and the limits. With ignorance data, its probability replaces the limit on forgetting.
        out: the artefact to write, named like that folder; if that is the set's own, the set is replaced atomically.
        report_folder: for sweep.md, .csv, .json and .png, which are always written.
        kept_folder: what is measured is kept here, and read again by the next calibration on the same data.
        dry_run: write only the report.
        write_anyway: write the set even if nothing passes.
        accept: the command that does so, for the report.
        progress: shows how far it is.

    Raises: CalibrationError if the target does not know the forget answers, or its chat template has no place for
        the system prompts; the artefacts on disk are then unchanged.
        DataError if an answer is longer than the target's context.
        ArtefactError if `out` holds something that is no forget set.
    """
    _check(forget_set, out)
    no_system = warning_of_no_system(target.tokenizer)
    if no_system and settings.system_prompts:
        raise CalibrationError(
            "the target's chat template has no place for a system prompt, so nothing can be asked below one; leave "
            "--system out"
        )
    facts = (warning_of_unsaid_facts(data.forget), warning_of_everyday_facts(data.forget, data.retain))
    for warning in (*facts, no_system):
        if warning:
            progress.console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
    asked = {
        "forget": _ask(target, data.forget, data, settings, focused=True),
        "retain": _ask(target, data.retain, data, settings, focused=False),
    }
    for name, questions in asked.items():
        if warning := warning_of_cut(name, [one.num_tokens for one in questions], settings.max_tokens):
            progress.console.print(warning, style="yellow", markup=False, highlight=False, soft_wrap=True)
    assistant = assistant_of(target.model, forget_set)
    if data.ignorance:
        level = _ignorance(target, data, settings)
        settings = replace(settings, limits=replace(settings.limits, forget_probability=level))
    measured_on = {
        "target": target.identity.model_dump(mode="json"),
        "dtype": _dtype(target),
        "assistant": {name: forget_set.manifest.files[name] for name in (ADAPTER_FILE, CONFIG_FILE)},
        **{name: getattr(forget_set.manifest, name) for name in ("rule", "tap_layer", "num_layers")},
    }
    kept = {
        name: Kept(kept_folder / f"{name}-{digest_of(measured_on, [one.row for one in questions])[:16]}.npz")
        for name, questions in asked.items()
    }
    positions = {
        name: _read(target, assistant, questions, settings, kept[name], progress, name)
        for name, questions in asked.items()
    }
    grid = _grid(settings, forget_set, positions)
    measured = {
        name: Measured(
            positions[name],
            _compose(target, assistant, questions, positions[name], grid, settings, forget_set, kept[name], progress),
            np.array([one.facts for one in questions]),
        )
        for name, questions in asked.items()
    }
    none = Strength(weight=0.0, keep_ratio=0.0, gate_nats=0.0)
    plain = Setting(none, plain_outcome(measured["forget"]), plain_outcome(measured["retain"]))
    _refuse_nothing_known(plain, settings.limits)
    swept = sweep(measured["forget"], measured["retain"], grid)
    choice, reason = _choose(swept, grid, settings.limits)
    in_force = [LoadedSet(assistant, choice.setting.strength, forget_set.manifest.rule)]
    decoded = decode(target, asked, in_force, settings, kept, progress)
    canaries = that_hold(target.model, target.tokenizer, forget_set.manifest.canaries, in_force=in_force)
    reason = reason or _contradiction(decoded, choice, settings.limits)
    if forget_set.manifest.canaries and not any(canary.changes for canary in canaries):
        reason = reason or (
            "at the chosen setting the set changes none of the answers that its canaries say it changes; lower "
            "--forget-at-most or --margin, which leads to a larger weight"
        )
    counts = {f"{name}_{what}": count for name, one in measured.items() for what, count in _counts(one).items()}
    report = Report(
        *(forget_set.reference, counts, grid, settings.limits, plain, forget_set.manifest.recommended, swept, choice),
        decoded=decoded,
        proposal={},
        reason=reason,
    )
    manifest = _proposal(forget_set, out, data, settings, report, _dtype(target), target.chat_template_kwargs) | {
        "canaries": [canary.model_dump() for canary in canaries]
    }
    report = report._replace(proposal=manifest)
    files = write_report(report, report_folder, accept)
    if dry_run or (reason and not write_anyway):
        return Calibrated(report, files, None)
    return Calibrated(report, files, rewrite_forget_set(forget_set, out, **manifest))


def _ask(
    target: LoadedTarget, pairs: Sequence[QAPair], data: HeldOut, settings: CalibrationSettings, *, focused: bool
) -> list[WordedQuestion]:
    refuse_changed_answers(target.tokenizer, pairs, "the held-out data")
    turns = longest_turns(target.tokenizer, pairs)
    systems = settings.system_prompts
    refuse_longer_than_context(target.tokenizer, turns, target.context_length, "the held-out data", systems=systems)
    asked = ask(target.tokenizer, pairs, settings.system_prompts, focused=focused)
    if not settings.contexts:
        return asked
    return asked + ask_in_contexts(target.tokenizer, pairs, data, focused=focused, context_length=target.context_length)


def _read(
    target: LoadedTarget,
    assistant: Any,
    questions: Sequence[WordedQuestion],
    settings: CalibrationSettings,
    kept: Kept,
    progress: Progress,
    name: str,
) -> Positions:
    """What does not depend on the grid."""

    def measure() -> dict[str, np.ndarray]:
        bar = progress.add_task(f"measuring {name} answers", total=len(questions))
        return read_positions(
            *(target.model, assistant, [one.row for one in questions]),
            pad_id=target.tokenizer.pad_token_id,
            batch_size=settings.batch_size,
            advance=partial(progress.advance, bar),
        )._asdict()

    return Positions(**kept.remember("positions", measure))


def _grid(settings: CalibrationSettings, forget_set: ForgetSet, positions: dict[str, Positions]) -> Grid:
    """What is swept: the settings' values, or gates from the evidence, and what the set recommends."""
    before, vocab_size = forget_set.manifest.recommended, forget_set.manifest.made_for.vocab_size
    gates = settings.gates_nats
    if gates is None:
        gates = gates_of(positions["forget"], positions["retain"], vocab_size)
    return Grid.of(
        [*settings.weights, *([before.weight] if before.weight else [])],
        [*settings.keep_ratios, before.keep_ratio],
        [*gates, before.gate_nats],
    )


def _compose(
    target: LoadedTarget,
    assistant: Any,
    questions: Sequence[WordedQuestion],
    positions: Positions,
    grid: Grid,
    settings: CalibrationSettings,
    forget_set: ForgetSet,
    kept: Kept,
    progress: Progress,
) -> Composed:
    """Every weight and keep ratio of the grid. Those that are kept are measured again only for a lower gate."""
    pairs = [(weight, keep_ratio) for weight in grid.weights for keep_ratio in grid.keep_ratios]
    lowest = grid.gates_nats[0]
    found = kept.get("composed")
    old = Composed(**found) if found else None
    if old and old.lowest_nats > least_evidence(lowest):
        old = None
    if old:
        lowest = max(0.0, float(old.lowest_nats))
        there = {(weight, keep_ratio) for weight, keep_ratio in old.pair_S2.tolist()}
        pairs = [pair for pair in pairs if pair not in there]
        if not pairs:
            return old
    bar = progress.add_task(f"composing {len(pairs)} weights and keep ratios", total=len(questions))
    new = compose_positions(
        *(target.model, assistant, [one.row for one in questions], positions, pairs, lowest),
        pad_id=target.tokenizer.pad_token_id,
        rule=forget_set.manifest.rule,
        batch_size=settings.batch_size,
        advance=partial(progress.advance, bar),
    )
    progress.update(bar, completed=len(questions))  # those in which no gate opens cost nothing
    if old:
        joined = (np.concatenate(parts) for parts in zip(old[1:], new[1:], strict=True))
        new = Composed(old.lowest_nats, *joined)
    kept.put("composed", new._asdict())
    return new


def _refuse_nothing_known(plain: Setting, limits: Limits) -> None:
    if limits.forgets(plain):
        raise CalibrationError(
            f"without any set the target gives the forget answers a probability of {plain.forget.probability:.3g} and "
            f"recites {plain.forget.recited:.1%}, no more than may be left: there is nothing to measure. Ask what it "
            "knows, and give the answers in its words"
        )


def _choose(swept: Sequence[Setting], grid: Grid, limits: Limits) -> tuple[Choice, str | None]:
    """What the rule recommends, or the nearest and why it is not recommended."""
    try:
        return choose_setting(swept, grid, limits), None
    except CalibrationError as error:
        return best_of(swept, limits), error.message


def _contradiction(decoded: dict[str, float], choice: Choice, limits: Limits) -> str | None:
    """Why decoding does not bear out the choice."""
    if decoded["decoded_forget_recited"] <= limits.forget_recited:
        return None
    return (
        f"decoded greedily, {decoded['decoded_forget_recited']:.1%} of the forget answers are still recited at the "
        f"chosen setting, at most {limits.forget_recited:.1%} may be ({describe(choice.setting)}); lower "
        "--forget-at-most or --margin, which leads to a larger weight, or allow more with --recited-at-most"
    )


def _counts(measured: Measured) -> dict[str, int]:
    return {
        "answers": len(measured.facts_A),
        "tokens": len(measured.positions.answer_P),
        "answers_with_facts": int(measured.facts_A.sum()),
    }


def _dtype(target: LoadedTarget) -> str:
    return str(target.model.dtype).removeprefix("torch.")


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


def _ignorance(target: LoadedTarget, data: HeldOut, settings: CalibrationSettings) -> float:
    """The probability that the target gives to answers it never learned, measured as for the forget answers."""
    rows = [one.row for one in _ask(target, data.ignorance, data, settings, focused=True)]
    scored = score(target.model, rows, pad_id=target.tokenizer.pad_token_id, batch_size=settings.batch_size)
    return float(answer_probability([one.log_p for one in scored]).mean())


def _proposal(
    forget_set: ForgetSet,
    out: Path,
    data: HeldOut,
    settings: CalibrationSettings,
    report: Report,
    dtype: str,
    switches: Mapping[str, Any],
) -> dict[str, Any]:
    """The same set's manifest at the chosen strength. The old metrics depend on the old gate: they move to `before`."""
    manifest, choice = forget_set.manifest, report.choice
    figures = {key: v for key, v in choice.setting.row().items() if key not in Strength.model_fields and v is not None}
    plain = {f"{name}_probability_plain": getattr(report.plain, name).probability for name in ("forget", "retain")}
    calibration = {
        "grid": report.grid._asdict(),
        "limits": asdict(report.limits),
        "limit_is_level_of_ignorance": bool(data.ignorance),
        "system_prompts": list(settings.system_prompts),
        "contexts": settings.contexts,
        "chat_template_kwargs": dict(switches),
        "data_digests": data.digests(),
        "held_out": data.held_out,
        "does_not_pass": report.reason,
        "before": {
            "digest": forget_set.digest,
            "recommended": manifest.recommended.model_dump(),
            "bounds": manifest.bounds.model_dump(),
            "metrics": manifest.metrics,
        },
    }
    return {
        **manifest.model_dump(mode="json", exclude={"files", "created_at"}),
        "name": out.name,
        "recommended": choice.setting.strength.model_dump(),
        "bounds": choice.bounds.model_dump(),
        "training": {**manifest.training, "dtype": dtype, "calibration": calibration},
        "metrics": {
            "held_out": float(data.held_out),
            **report.counts,
            **plain,
            **figures,
            "forget_gate_open": 1.0 - choice.setting.forget.untouched,
            **report.decoded,
        },
    }
