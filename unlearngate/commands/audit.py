"""`unlearngate audit`: is a log whole, and what was in force for a request?"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated

import typer

from unlearngate.commands._shared import errors_as_sentences
from unlearngate.server.audit.trail import Trail, read_trail

app = typer.Typer(help="Read the audit log of `unlearngate serve --audit`.", no_args_is_help=True)

Files = Annotated[
    list[Path], typer.Argument(metavar="FILE...", help="the log's files in any order, or their folder", exists=True)
]
Anchor = Annotated[str | None, typer.Option(help="digest of a line, noted elsewhere, that must be among them")]


@app.command()
def verify(files: Files, anchor: Anchor = None) -> None:
    """Check that no line was changed, removed or inserted; exit 1 if one was.

    Prints the number and digest of the last line. Store it elsewhere and pass it with --anchor: that is the only way to
    detect lines that are cut off the end.
    """
    with errors_as_sentences():
        trail = read_trail(_log_files(files), anchor=anchor)
    _report(trail)
    raise typer.Exit(1 if trail.problems else 0)


@app.command()
def show(
    request_id: Annotated[str, typer.Argument(help="the id of the response, or the x-request-id that was sent")],
    files: Files,
    tenant: Annotated[str | None, typer.Option(help="only this tenant's lines")] = None,
    key: Annotated[str | None, typer.Option(help="only lines of the API key with this id")] = None,
    anchor: Anchor = None,
) -> None:
    """Print which forget sets were in force for a request, and check the log; exit 1 if either fails.

    A client chooses its x-request-id, so several may have sent the same: --tenant and --key tell them apart.
    """
    with errors_as_sentences():
        trail = read_trail(_log_files(files), request_id=request_id, tenant=tenant, key=key, anchor=anchor)
    for line in trail.found:
        typer.echo(json.dumps(line, indent=2))
    if not trail.found:
        of = "".join(f" of {what} {value!r}" for what, value in (("tenant", tenant), ("key", key)) if value)
        typer.secho(f"no request {request_id!r}{of} in these files", fg="red", err=True)
    if len(trail.tenants) > 1:
        names = ", ".join(trail.tenants)
        typer.secho(f"these are lines of several tenants: {names}; --tenant shows one's only", fg="yellow", err=True)
    _report(trail)
    raise typer.Exit(0 if trail.found and not trail.problems else 1)


def _log_files(paths: list[Path]) -> list[Path]:
    """The files themselves; of a folder, those named *.jsonl."""
    files = [file for path in paths for file in (sorted(path.glob("*.jsonl")) if path.is_dir() else [path])]
    if not files:
        raise FileNotFoundError(f"{', '.join(map(str, paths))}: no file there is named *.jsonl")
    return files


def _report(trail: Trail) -> None:
    for problem in trail.problems:
        typer.secho(f"broken: {problem}", fg="red", err=True)
    if not trail.problems:
        typer.secho(f"whole: {trail.num_lines} lines, {trail.first} to {trail.last}", fg="green", err=True)
    if trail.first > 1:
        typer.secho(f"lines 1 to {trail.first - 1} are in older files that were not given", err=True)
    if trail.open_requests:
        typer.secho(f"admitted without an end (running, or the server was killed): {trail.open_requests}", err=True)
    typer.secho(f"last line: {trail.last} {trail.digest}", err=True)
