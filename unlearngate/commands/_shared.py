"""How every command of ours reports an error."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import typer

from unlearngate.errors import UnlearngateError


@contextmanager
def errors_as_sentences() -> Iterator[None]:
    """Print an error that a user can mend as one sentence, and exit with 2; others keep their traceback."""
    try:
        yield
    except (UnlearngateError, OSError, ValueError) as error:
        typer.secho(f"error: {error}", fg="red", err=True)
        raise typer.Exit(2) from None
