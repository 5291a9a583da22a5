"""What the commands share: how a table is shown, how an error is reported, where the cache is."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.table import Table

from unlearngate.errors import UnlearngateError

ChatTemplateKwargs = Annotated[
    str | None,
    typer.Option(
        metavar="JSON", help='switches of the chat template, as requests are served with: {"enable_thinking": false}'
    ),
]
Label = Annotated[str | None, typer.Option(help="what the set is about, for people; default: the set's name")]


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print an error that a user can fix as one sentence, and exit with 2; others keep their traceback."""
    try:
        yield
    except (UnlearngateError, OSError, ValueError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None


def check_writable(folder: Path) -> None:
    """Whether a folder is there or can be made, and can be written to, before there is something to write.

    Raises: UnlearngateError naming what is in the way.
    """
    there = next(path for path in (folder, *folder.absolute().parents) if path.exists())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        raise UnlearngateError(
            f"{folder} cannot be written: {there} is not {'writable' if there.is_dir() else 'a folder'}"
        )


def switches_of(text: str | None) -> dict[str, Any]:
    """What `--chat-template-kwargs` says; empty without it.

    Raises: UnlearngateError if it is no JSON object.
    """
    try:
        switches = json.loads(text or "{}")
    except ValueError as error:
        raise UnlearngateError(f"--chat-template-kwargs is not JSON ({error}), got {text!r}") from error
    if not isinstance(switches, dict):
        raise UnlearngateError(
            f'--chat-template-kwargs must be a JSON object such as {{"enable_thinking": false}}, got {text!r}'
        )
    return switches


def print_table(title: str, header: list[str], rows: list[list[str]]) -> None:
    """A table on the terminal."""
    table = Table(*header, title=title, title_justify="left")
    for row in rows:
        table.add_row(*row)
    Console().print(table)


def cache_folder() -> Path:
    """Where we keep what can be made again."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "unlearngate"


def demo_folder(tofu: Path | None) -> Path:
    """Where the demo is cached."""
    return cache_folder() / ("demo-tofu" if tofu else "demo")
