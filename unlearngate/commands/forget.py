"""`unlearngate forget`: from a request to a set in force. Only the command line knows both sides."""

from __future__ import annotations

import errno
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.console import Console
from rich.markdown import Markdown

from unlearngate.assistant_training.train.settings import AssistantSettings, VerbatimSettings
from unlearngate.commands._shared import (
    ChatTemplateKwargs,
    cache_folder,
    check_writable,
    errors_as_sentences,
    switches_of,
)
from unlearngate.errors import UnlearngateError
from unlearngate.progress import shown_progress

if TYPE_CHECKING:
    from unlearngate.assistant_training.forget.enforcing import Wanted

DOES_NOT_PASS, INTERRUPTED = 1, 130  # exit codes; 2 is an error


def forget(
    request: Annotated[
        list[Path] | None,
        typer.Argument(help="text, Markdown, HTML, PDF; questions and answers as .jsonl, .json, .csv, .tsv, .parquet"),
    ] = None,
    target: Annotated[Path | None, typer.Option(help="the target's Hugging Face checkpoint folder")] = None,
    name: Annotated[str | None, typer.Option(help="of the forget set, such as acme-takedown")] = None,
    sets: Annotated[Path, typer.Option(help="the folder of sets that your server watches")] = Path("sets"),
    about: Annotated[
        str | None, typer.Option(help='the subject in a sentence: "Everything about Ada Example, born in 1970"')
    ] = None,
    retain: Annotated[
        list[Path] | None,
        typer.Option(help="questions and answers that must stay, in a file of the same forms; may be repeated"),
    ] = None,
    server: Annotated[
        str | None,
        typer.Option(
            help="the server that watches SETS, such as http://127.0.0.1:8000: wait until it has them; with --purge: "
            "note it in its audit log"
        ),
    ] = None,
    case: Annotated[
        Path | None,
        typer.Option(help="where texts, questions and checkpoints are kept; default: .NAME.case beside SETS"),
    ] = None,
    subjects: Annotated[int, typer.Option(min=1, help="names that are asked about, at most")] = 8,
    letters: Annotated[
        int,
        typer.Option(min=0, help="no run of so many letters of a text comes out, within seconds; 0: leave that out"),
    ] = VerbatimSettings().letters,
    steps: Annotated[
        int, typer.Option(min=1, help="of training, at most; it ends when held-out contexts show enough")
    ] = AssistantSettings().steps,
    budget: Annotated[
        str | None,
        typer.Option(help="time that this run may take, such as 10m or 90s: training ends early for it"),
    ] = None,
    leak_at_most: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="share of the facts that may still come out of held-out questions")
    ] = 0.05,
    unchanged_at_least: Annotated[
        float, typer.Option(min=0.0, max=1.0, help="share of other held-out answers that must stay word for word")
    ] = 0.95,
    write_anyway: Annotated[
        bool,
        typer.Option("--write-anyway", help="put the set in force even if its report says no"),
    ] = False,
    label: Annotated[str | None, typer.Option(help="what the set is about, for people; default: its name")] = None,
    instead: Annotated[
        str | None, typer.Option(help="what to say instead of answers about it; {label} is filled in")
    ] = None,
    purge: Annotated[
        Path | None, typer.Option(metavar="CASE", help="delete what this case keeps, but for hashes; the set stays")
    ] = None,
    chat_template_kwargs: ChatTemplateKwargs = None,
    device: Annotated[str | None, typer.Option(help="cpu, cuda, cuda:1; default: a GPU if there is one")] = None,
    seed: Annotated[int, typer.Option(help="same seed, request and machine, same set")] = 0,
) -> None:
    """Carry out a request to forget: from the text in hand to forget sets that your server has in force.

    First, within seconds, comes the set NAME-text: it keeps the documents from coming out word for word. Then the
    target is asked what it knows of the names in the request, in many wordings. What it answers with facts of the
    request is trained on; what it does not know is not. Questions about neighbours and everyday things, with its own
    answers, are what must stay. The set NAME is measured on questions that training did not use, and put into SETS
    only if it passes. The same command goes on after a kill. With --server both sets are in force there before the
    command says so; the API key, if that server needs one, is read from UNLEARNGATE_API_KEY.

    Example:  unlearngate forget letter.pdf --target ./target --name acme-takedown --sets ./sets

    Example:  unlearngate forget --about "Everything about Harry Potter" --target ./target --name potter

    CASE holds what is to be forgotten: delete it with --purge CASE once the request is closed. With --server the audit
    log there gets a line that says so (an admin's key).

    Exit codes: 0 in force, 1 the set does not pass and is not in force, 2 an error, 130 Ctrl-C.
    """
    console = Console(highlight=False, soft_wrap=True)
    with errors_as_sentences():
        if purge is not None:
            _purge(purge, server, console)
            return
        if target is None or name is None:
            raise UnlearngateError("give --target FOLDER and --name NAME (or --purge CASE alone)")
        from unlearngate.assistant_training.data.pairs import read_pairs
        from unlearngate.assistant_training.forget.case import Case, file_hash
        from unlearngate.assistant_training.forget.enforcing import Wanted
        from unlearngate.assistant_training.forget.measuring import Limits
        from unlearngate.assistant_training.forget.request import read_request
        from unlearngate.assistant_training.forget.run import carry_out
        from unlearngate.assistant_training.model.loaded_target import load_target
        from unlearngate.families import TARGET_ARCHITECTURES
        from unlearngate.manifest import NAME_PATTERN
        from unlearngate.served import ServedSets

        if not re.fullmatch(NAME_PATTERN, name) or not re.fullmatch(NAME_PATTERN, f"{name}-text") or name == "retain":
            raise UnlearngateError(
                f"--name {name!r} cannot name a forget set: lower-case letters, digits, '.', '_' and '-', at most 59"
            )
        files = request or []
        read = read_request(files, about, name=name)
        keep = [pair for path in retain or [] for pair in read_pairs(path, subject="retain")]
        check_writable(sets)
        asked = {
            "files": [file_hash(path) for path in files],
            "retain": [file_hash(path) for path in retain or []],
            "name": name,
            "target": str(target.resolve()),
            "subjects": subjects,
            "letters": letters,
            "chat_template_kwargs": switches_of(chat_template_kwargs),
            "seed": seed,
        }
        wanted = Wanted(
            *(name, sets, subjects, Limits(leak_at_most, unchanged_at_least), write_anyway),
            label=label,
            instead=instead,
            seed=seed,
            letters=letters,
            server=ServedSets(server) if server else None,
            everyday=cache_folder() / "everyday",
            budget_s=_seconds(budget) if budget else None,
        )
        switches = switches_of(chat_template_kwargs)
        private = {"about": about, "label": label, "instead": instead}
        folder = case or sets.parent / f".{name}.case"
        with _goes_on(folder, wanted), shown_progress() as progress, Case(folder, asked, private) as opened:
            outcome = carry_out(
                *(read, keep, wanted, opened),
                lambda: load_target(target, device=device, architectures=TARGET_ARCHITECTURES).with_switches(switches),
                AssistantSettings(steps=steps),
                progress,
            )
    console.print(Markdown(outcome.report.read_text()))
    console.print(f"{outcome.report} is written", markup=False)
    if outcome.problems and outcome.forget_set is not None:
        console.print(
            f"it does not pass, and is in force; lift it: unlearngate sets remove {name} {sets}",
            style="red",
            markup=False,
        )
    if outcome.forget_set is None:
        console.print("the set is not in force; --write-anyway puts it in force as it is", style="red", markup=False)
        raise typer.Exit(DOES_NOT_PASS)


@contextmanager
def _goes_on(case: Path, wanted: Wanted) -> Iterator[None]:
    """Say what stands after Ctrl-C or on a full disk, and that the same command goes on."""
    try:
        yield
    except (KeyboardInterrupt, OSError) as error:
        if isinstance(error, OSError) and error.errno != errno.ENOSPC:
            raise
        there = [name for name in (wanted.verbatim_name, wanted.name) if (wanted.sets / name).exists()]
        stopped = "interrupted" if isinstance(error, KeyboardInterrupt) else f"the disk is full ({error}); make room"
        said = f"{stopped}. In {wanted.sets}: {', '.join(there) or 'nothing of this request'}. What was finished is in "
        typer.secho(f"{said}{case}; the same command goes on", fg="red", err=True)
        raise typer.Exit(INTERRUPTED if isinstance(error, KeyboardInterrupt) else 2) from None


def _purge(case: Path, server: str | None, console: Console) -> None:
    """Delete what a case keeps, and have the server's audit log say so; a second time notes it again."""
    from unlearngate.assistant_training.forget.case import CASE_FILE, file_hash, purge, read_case
    from unlearngate.served import ServedSets

    gone = purge(case)
    said = f"{len(gone)} files and folders are deleted; {CASE_FILE}, with hashes of the request, stays"
    console.print(f"{case}: {said}", markup=False)
    if server is None:
        return
    digest = file_hash(case / CASE_FILE)
    try:
        ServedSets(server).note_purge(read_case(case)["asked"]["name"], digest)
    except UnlearngateError as error:
        raise UnlearngateError(
            f"it is deleted, but not in the audit log: {error.message}. Then give the same command again"
        ) from error
    console.print(f"{server}: its audit log says so, with {CASE_FILE}'s SHA-256 {digest}", markup=False)


def _seconds(text: str) -> float:
    """Of `90s`, `10m`, `1h` or a number of seconds."""
    unit = {"s": 1, "m": 60, "h": 3600}
    number = text.rstrip("smh")
    try:
        seconds = float(number) * unit[text[len(number) :] or "s"]
    except (KeyError, ValueError):
        seconds = 0.0
    if not 0 < seconds < float("inf"):
        raise UnlearngateError(f"--budget {text!r} is no time: write 90s, 10m or 1h")
    return seconds
