"""The command line, put together. Only `commands/` knows both the offline and the online side."""

from __future__ import annotations

import os
import signal

# Process 1 of a container ignores a signal without a handler, and the imports below take seconds.
if os.getpid() == 1 and signal.getsignal(signal.SIGTERM) is signal.SIG_DFL:
    signal.signal(signal.SIGTERM, lambda number, _frame: os._exit(128 + number))

import typer

from unlearngate.commands import audit, demo, evaluate, keys, models, sets, train
from unlearngate.commands.attack import attack
from unlearngate.commands.calibrate import calibrate
from unlearngate.commands.forget import forget
from unlearngate.commands.reproduce import reproduce
from unlearngate.commands.serve import serve

app = typer.Typer(
    help="Serve an LLM and take chosen knowledge away from it per request, with its weights untouched.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(demo.app, name="demo")
app.add_typer(models.app, name="models")
app.add_typer(sets.app, name="sets")
app.add_typer(keys.app, name="keys")
app.add_typer(train.app, name="train")
app.add_typer(evaluate.app, name="evaluate")
app.add_typer(audit.app, name="audit")
app.command()(attack)
app.command()(calibrate)
app.command()(forget)
app.command()(reproduce)
app.command()(serve)

if __name__ == "__main__":
    app()
