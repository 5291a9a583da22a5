"""`unlearngate calibrate`: how strongly a set is applied. Only the command line knows both sides."""

from __future__ import annotations

import shlex
from collections.abc import Collection
from pathlib import Path
from typing import Annotated

import typer
from rich.box import SIMPLE
from rich.console import Console
from rich.table import Table

from unlearngate.assistant_training.calibrate.settings import CalibrationSettings, Limits
from unlearngate.commands._shared import ChatTemplateKwargs, check_writable, errors_as_sentences, switches_of
from unlearngate.errors import UnlearngateError
from unlearngate.progress import shown_progress

DEFAULTS = CalibrationSettings()
NONE_PASSES, NONE_PASSES_WRITTEN = 1, 3  # exit codes; 2 is an error
_ONLY_IN_THE_REPORT = ("forget right", "retain untouched", "retain changed", "retain cut")  # a terminal has 80 columns


def _shown(values: tuple[float, ...]) -> str:
    return ",".join(f"{value:g}" for value in values)


def calibrate(
    context: typer.Context,
    target: Annotated[Path, typer.Argument(help="the target's Hugging Face checkpoint folder")],
    forget_set: Annotated[Path, typer.Argument(metavar="SET", help="the forget set's folder; kind uld, also tapped")],
    forget: Annotated[
        Path, typer.Option(help="JSON lines: what must be forgotten, asked in words that training did not use")
    ],
    retain: Annotated[Path, typer.Option(help="JSON lines: what must stay, and the set was not trained on")],
    ignorance: Annotated[
        Path | None,
        typer.Option(
            help="JSON lines of the same form that the target never learned: its probability of them, the "
            "level of ignorance, takes the place of --forget-at-most"
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option(help="the set to write; default: SET is replaced")] = None,
    report: Annotated[
        Path | None, typer.Option(help="folder for the picture and the tables; default: .NAME.calibration beside OUT")
    ] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="write the report, and no set")] = False,
    write_anyway: Annotated[
        bool, typer.Option("--write-anyway", help="write the best setting even if it does not pass; exit code 3 then")
    ] = False,
    weights: Annotated[
        str | None, typer.Option(help=f"to sweep, such as 0.5,1,2; default: {_shown(DEFAULTS.weights)}")
    ] = None,
    keep_ratios: Annotated[str | None, typer.Option(help=f"to sweep; default: {_shown(DEFAULTS.keep_ratios)}")] = None,
    gates_nats: Annotated[
        str | None,
        typer.Option(help="to sweep, 0 is no gate; default: about ten at quantiles of what the assistant shows"),
    ] = None,
    forget_at_most: Annotated[
        float | None,
        typer.Option(
            min=0.0,
            max=1.0,
            help=f"probability of the forget answers; default: {DEFAULTS.limits.forget_probability:g}",
        ),
    ] = None,
    recited_at_most: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="share of forget answers that are still recited")
    ] = DEFAULTS.limits.forget_recited,
    facts_told_at_most: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="share of forget answers with facts that still tell of one")
    ] = DEFAULTS.limits.forget_facts_told,
    untouched_answers_at_least: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="share of retain answers along which no gate opens")
    ] = DEFAULTS.limits.retain_untouched_answers,
    untouched_at_least: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="share of retain tokens at which no gate opens")
    ] = DEFAULTS.limits.retain_untouched,
    retain_loss_at_most: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="probability of the retain answers that may be lost")
    ] = DEFAULTS.limits.retain_lost,
    margin: Annotated[
        float, typer.Option(min=0.01, max=1.0, help="share of the limits on forgetting that the choice may use")
    ] = DEFAULTS.limits.margin,
    chat_template_kwargs: ChatTemplateKwargs = None,
    system: Annotated[
        list[str] | None, typer.Option(help="a system prompt that everything is asked below, too; repeat for several")
    ] = None,
    contexts: Annotated[
        bool, typer.Option(help="ask everything in contexts, too: after earlier turns, with words around it, ...")
    ] = DEFAULTS.contexts,
    allow_training_data: Annotated[
        bool, typer.Option("--allow-training-data", help="go on with the set's own training data; recorded in OUT")
    ] = False,
    batch_size: Annotated[
        int, typer.Option(min=1, help="conversations at a time; fewer need less memory")
    ] = DEFAULTS.batch_size,
    decode: Annotated[
        int, typer.Option(min=1, help="answers of each file to decode at the chosen strength")
    ] = DEFAULTS.decoded,
    max_tokens: Annotated[int, typer.Option(min=1, help="where decoded answers are cut")] = DEFAULTS.max_tokens,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one")] = None,
) -> None:
    """Choose a trained set's weight, keep ratio and gate on held-out data, and bounds within which clients may choose.

    Every combination is measured: how probable the forget answers still are, and what that costs on the retain answers.
    It recommends the smallest weight that forgets enough, with a margin, among the settings that leave the retain data
    alone; at that weight the middle gate, then the middle keep ratio. The bounds are the widest in which every measured
    setting meets the limits. If no setting does, the report has the best one, why it does not pass, and the command
    that takes it all the same; no set is written, and the exit code is 1.

    What is measured is kept beside SET in .NAME.calibration/measured: other limits, gates or margins cost seconds.

    A line of the files is {"question": ..., "answer": ...}, and may have lists of "paraphrases", which are asked too,
    and "facts": then only their tokens count as forgotten or not. For --forget, use other words than training did; for
    --retain, people or products that training did not show. Then look at sweep.png in the report's
    folder; sweep.csv and sweep.json hold every setting.

    Example:  unlearngate calibrate ./target ./sets/acme --forget reworded.jsonl --retain unseen.jsonl --dry-run

    Then:  the same without --dry-run, and  unlearngate sets verify ./sets --target ./target
    """
    from unlearngate.artefact import load_forget_set
    from unlearngate.assistant_training.calibrate.held_out import read_held_out
    from unlearngate.assistant_training.calibrate.report import HEADER, table
    from unlearngate.assistant_training.calibrate.run import calibrate_forget_set
    from unlearngate.assistant_training.model.loaded_target import load_target

    with errors_as_sentences():
        if ignorance and forget_at_most is not None:
            raise UnlearngateError(
                "give --ignorance or --forget-at-most: each says how much of the answers may be left"
            )
        axes = {"weights": weights, "keep_ratios": keep_ratios, "gates_nats": gates_nats}
        settings = CalibrationSettings(
            **{name: _numbers(name, text) for name, text in axes.items() if text is not None},
            limits=Limits(
                **({} if forget_at_most is None else {"forget_probability": forget_at_most}),
                forget_recited=recited_at_most,
                forget_facts_told=facts_told_at_most,
                retain_untouched=untouched_at_least,
                retain_untouched_answers=untouched_answers_at_least,
                retain_lost=retain_loss_at_most,
                margin=margin,
            ),
            system_prompts=tuple(system or ()),
            contexts=contexts,
            batch_size=batch_size,
            decoded=decode,
            max_tokens=max_tokens,
        )
        trained = load_forget_set(forget_set)
        data = read_held_out(trained, forget, retain, ignorance, allow_training_data=allow_training_data)
        place = out or trained.folder
        check_writable(report or _beside(place))
        given = switches_of(chat_template_kwargs) if chat_template_kwargs else trained.manifest.chat_template_kwargs
        loaded = load_target(target, device=device).with_switches(given)
        trained = load_forget_set(forget_set, loaded.identity)
        accept = _command(context, "--write-anyway", without={"dry_run", "write_anyway"})
        with shown_progress() as progress:
            done = calibrate_forget_set(
                *(loaded, trained, data, settings),
                out=place,
                report_folder=report or _beside(place),
                kept_folder=_beside(trained.folder) / "measured",
                dry_run=dry_run,
                write_anyway=write_anyway,
                accept=accept,
                progress=progress,
            )
    console = Console(highlight=False)
    columns = [HEADER.index(heading) for heading in HEADER if heading not in _ONLY_IN_THE_REPORT]
    shown = Table(*(HEADER[i] for i in columns), title=done.report.reference, box=SIMPLE, collapse_padding=True)
    for cells in table(done.report):
        shown.add_row(*(cells[i] for i in columns))
    console.print(shown)
    for key, value in done.report.decoded.items():
        console.print(f"{key.replace('_', ' '):<32} {value:.3f}")
    for name, bounds in done.report.choice.bounds.model_dump().items():
        console.print(f"bounds of {name:<22} {bounds['low']:g} to {bounds['high']:g}")
    for path in done.files:
        console.print(f"{path} is written", soft_wrap=True)
    if not data.held_out:
        console.print("these figures are of the set's own training data, not of held-out data", style="red")
    reason = done.report.reason
    if reason:
        console.print(f"nothing can be recommended: {reason}", style="red", markup=False, soft_wrap=True)
    if done.forget_set is not None:
        console.print(f"{done.forget_set.reference} is written to {place}", soft_wrap=True)
    elif reason:
        console.print(f"{trained.folder} is as it was; to take the best all the same:", soft_wrap=True)
        console.print(accept, markup=False, soft_wrap=True)
    else:
        console.print(f"a dry run: {trained.folder} is as it was", soft_wrap=True)
    if reason:
        raise typer.Exit(NONE_PASSES if done.forget_set is None else NONE_PASSES_WRITTEN)


def _beside(place: Path) -> Path:
    return place.parent / f".{place.name}.calibration"


def _command(context: typer.Context, *more: str, without: Collection[str]) -> str:
    """The command line that was given, of the values that are not the defaults, and more."""
    words = ["unlearngate", "calibrate"]
    for parameter in context.command.params:
        name, value = str(parameter.name), context.params.get(str(parameter.name))
        if name in without or value in (None, parameter.default, [], ()):
            continue
        if parameter.param_type_name == "argument":
            words.append(str(value))
        elif isinstance(value, bool):
            words.append((parameter.opts if value else parameter.secondary_opts)[0])
        else:
            for one in value if isinstance(value, (list, tuple)) else [value]:
                words += [parameter.opts[0], str(one)]
    return shlex.join([*words, *more])


def _numbers(name: str, text: str) -> tuple[float, ...]:
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError:
        option = "--" + name.replace("_", "-")
        raise UnlearngateError(f"{option} must be numbers with commas between, such as 0.5,1,2, got {text!r}") from None
