"""How far a long command is: bars on a terminal, elsewhere (a log file, a container) a line a minute."""

from __future__ import annotations

import sys
import time
from typing import Any

from rich.console import Console
from rich.progress import Progress, ProgressColumn, TaskID

EVERY_S = 60.0


def shown_progress(*columns: ProgressColumn, disable: bool = False) -> Progress:
    """Progress on stderr, to be entered; `columns` are a terminal's."""
    if disable or sys.stderr.isatty():
        return Progress(*columns, console=Console(stderr=True), disable=disable)
    return _Lines()


class _Lines(Progress):
    """Writes a task's state when it has moved, at most once a minute."""

    def __init__(self) -> None:
        super().__init__(disable=True)
        self._said = time.monotonic()

    def update(self, task_id: TaskID, **fields: Any) -> None:
        super().update(task_id, **fields)
        self._say(task_id)

    def advance(self, task_id: TaskID, advance: float = 1) -> None:
        super().advance(task_id, advance)
        self._say(task_id)

    def _say(self, task_id: TaskID) -> None:
        if time.monotonic() - self._said < EVERY_S:
            return
        self._said = time.monotonic()
        task = self._tasks[task_id]
        of = f" of {task.total:g}" if task.total else ""
        print(f"{task.description}: {task.completed:g}{of}", file=sys.stderr, flush=True)
