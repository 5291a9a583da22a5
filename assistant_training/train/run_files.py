"""The files of a training run: a checkpoint to resume from after a kill, and a log of its losses."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

import torch

from unlearngate.errors import TrainingError
from unlearngate.files import complete_lines

CHECKPOINT_FILE = "checkpoint.pt"
_CHECKPOINT_EVERY_S = 120.0
LOG_FILE = "log.jsonl"
TENSORBOARD_FOLDER = "tensorboard"


class RunFiles:
    """One run's folder.

    Args:
        folder: made if it is not there.
        identity: everything that decides the run, as JSON values; a checkpoint of another run is refused.
        checkpoint_every: steps between checkpoints.
        tensorboard: also log for TensorBoard.

    Raises: TrainingError if TensorBoard is wanted and not installed.
    """

    def __init__(
        self, folder: Path, identity: dict[str, Any], *, checkpoint_every: int = 50, tensorboard: bool = False
    ) -> None:
        self.folder = folder
        self.checkpoint = folder / CHECKPOINT_FILE
        self._checkpoint_every = checkpoint_every
        self._saved_at = time.monotonic()
        # Through JSON, as the checkpoint stores it: a tuple and a list of the same values then compare equal.
        self._identity: dict[str, Any] = json.loads(json.dumps(identity))
        self._writer_class = _summary_writer() if tensorboard else None
        self._writer: Any = None
        folder.mkdir(parents=True, exist_ok=True)

    def resume(self, *, writes: bool = True) -> dict[str, Any] | None:
        """The last saved state, or None for a new run; the log continues from there.

        Args:
            writes: whether this process writes; the others only read.

        Raises: TrainingError if the checkpoint cannot be read, or belongs to another run.
        """
        state = self._read_checkpoint() if self.checkpoint.exists() else None
        step = int(state["step"]) if state else 0
        if writes:
            self._truncate_log(step)
            if self._writer_class is not None:
                self._writer = self._writer_class(str(self.folder / TENSORBOARD_FOLDER), purge_step=step + 1)
        return state

    def is_due(self, step: int) -> bool:
        """Whether a checkpoint is due after this step: every so many, and after two minutes without one."""
        return step % self._checkpoint_every == 0 or time.monotonic() - self._saved_at >= _CHECKPOINT_EVERY_S

    def save(self, state: dict[str, Any]) -> None:
        """Replace the checkpoint atomically by this state, which holds "step" and may hold tensors.

        Raises: TrainingError if it cannot be written; the previous checkpoint is kept.
        """
        new = self.checkpoint.with_suffix(".new")
        try:
            torch.save({"identity": json.dumps(self._identity), "state": state}, new)
            os.replace(new, self.checkpoint)
            self._saved_at = time.monotonic()
        except (OSError, RuntimeError) as error:  # torch's writer raises RuntimeError on a full disk
            new.unlink(missing_ok=True)
            kept = "the checkpoint before it is kept" if self.checkpoint.exists() else "there is none before it"
            raise TrainingError(f"the checkpoint of step {state['step']} cannot be saved ({error}); {kept}") from error

    def log(self, row: dict[str, float]) -> None:
        """Append one step's figures to the log.

        Raises: TrainingError if it cannot be written.
        """
        try:
            with (self.folder / LOG_FILE).open("a", encoding="utf-8") as file:
                file.write(json.dumps(row) + "\n")
            if self._writer is not None:
                for key in row.keys() - {"step"}:
                    self._writer.add_scalar(key, row[key], int(row["step"]))
        except OSError as error:
            raise TrainingError(
                f"{self.folder / LOG_FILE} cannot be written ({error}); make room and give the same command again: "
                "it goes on from its last checkpoint"
            ) from error

    def finish(self) -> None:
        """The run is over and its result is safe: the checkpoint goes, the log stays."""
        self.checkpoint.unlink(missing_ok=True)
        if self._writer is not None:
            self._writer.close()

    def _read_checkpoint(self) -> dict[str, Any]:
        try:
            checkpoint = torch.load(self.checkpoint, weights_only=True, map_location="cpu")
            identity, state = json.loads(checkpoint["identity"]), checkpoint["state"]
        except Exception as error:  # torch.load raises errors of many types for a damaged file
            raise TrainingError(
                f"{self.checkpoint} cannot be read ({error}); delete {self.folder} to start again"
            ) from error
        if changed := [key for key in {**identity, **self._identity} if identity.get(key) != self._identity.get(key)]:
            raise TrainingError(
                f"{self.checkpoint} is of a run with another {' and '.join(sorted(changed))}; "
                f"finish that run first, or delete {self.folder} to start again"
            )
        return dict(state)

    def _truncate_log(self, step: int) -> None:
        """Drop the steps after the checkpoint: they will be done again."""
        path = self.folder / LOG_FILE
        if not path.exists():
            return
        kept = [line for line in complete_lines(path) if json.loads(line)["step"] <= step]
        new = path.with_suffix(".new")
        try:
            new.write_text("".join(f"{line}\n" for line in kept), encoding="utf-8")
            os.replace(new, path)
        except OSError as error:
            new.unlink(missing_ok=True)
            raise TrainingError(f"{path} cannot be written ({error}); make room and try again") from error


def _summary_writer() -> Any:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError(
            f"TensorBoard is not installed ({error}); pip install tensorboard, or log without"
        ) from error
    return SummaryWriter
