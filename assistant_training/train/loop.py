"""The training loop of every adapter: it shares steps among processes, logs, saves, resumes and stops early."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any, TypeVar

from rich.progress import Progress

from unlearngate.assistant_training.model.assistant import adapter_tensors, load_adapter_tensors
from unlearngate.assistant_training.model.processes import Processes
from unlearngate.assistant_training.train.optimizing import Optimizer
from unlearngate.assistant_training.train.run_files import RunFiles
from unlearngate.errors import TrainingError

_TIMED_STEPS = 4  # after so many it says how long the others take
_LEAST = 0.01  # an epoch that lowers the loss by less than this share is no progress

Row = TypeVar("Row")


def parts_of(rows: Sequence[Row], num_parts: int, length: Callable[[Row], int]) -> Iterator[list[Row]]:
    """A step's rows in at most `num_parts` parts, one per pass, each of rows of similar length to save padding."""
    by_length = sorted(rows, key=length)
    size = max(1, -(-len(rows) // num_parts))
    for start in range(0, len(rows), size):
        yield by_length[start : start + size]


class Plateau:
    """When to stop early: after `patience` epochs in a row whose mean loss is not 1 % below the best.

    Args:
        patience: epochs; 0 never stops.
        steps_per_epoch: steps that are averaged.
    """

    def __init__(self, patience: int, steps_per_epoch: int) -> None:
        self._patience, self._steps_per_epoch = patience, steps_per_epoch
        self._best, self._waited = float("inf"), 0
        self._losses: list[float] = []

    @property
    def reached(self) -> bool:
        """Whether to stop."""
        return 0 < self._patience <= self._waited

    def add(self, loss: float) -> None:
        """Take a step's loss into account."""
        self._losses.append(loss)
        if len(self._losses) < self._steps_per_epoch:
            return
        mean, self._losses = sum(self._losses) / len(self._losses), []
        better = mean < self._best - _LEAST * abs(self._best) if self._best < float("inf") else True
        self._waited = 0 if better else self._waited + 1
        self._best = min(self._best, mean)

    def state(self) -> dict[str, Any]:
        """The state to save."""
        return {"best": self._best, "waited": self._waited, "losses": list(self._losses)}

    def load_state(self, state: dict[str, Any]) -> None:
        """Continue from a saved state."""
        self._best, self._waited, self._losses = state["best"], state["waited"], list(state["losses"])


def run_steps(
    adapted: Any,
    steps: Sequence[Sequence[Row]],
    backward: Callable[[Sequence[Row], Sequence[Row]], dict[str, float]],
    *,
    name: str,
    learning_rate: float,
    plateau: Plateau,
    progress: Progress,
    run: RunFiles | None = None,
    prepare: Callable[[Sequence[Sequence[Row]]], None] = lambda _: None,
    prepare_every: int | None = None,
    is_enough: Callable[[int], bool] = lambda _: False,
    may_be_enough_at_once: bool = False,
    deadline: float | None = None,
) -> int:
    """Train a model's LoRA.

    Under `accelerate launch` every process computes its share of each step's rows, and the gradients are summed: the
    result is that of one process up to rounding. Only the main process writes files.

    Args:
        adapted: a PEFT model, or a `TappedAssistant` around one, in training mode.
        steps: the rows of every step.
        backward: adds the gradients of some of a step's rows, given (some, all); returns these rows' figures, in nats,
            which sum to the step's. One of them is `loss`.
        name: for the progress bar.
        learning_rate: its peak.
        plateau: when to stop early.
        progress: shows how far it is.
        run: where to log and save, and what to resume from.
        prepare: called with this process's rows of the steps to come, before the first of them.
        prepare_every: for so many steps at a time, as training may end before the last; None: for all at once.
        is_enough: called after every step with the number of steps done; True ends the training there.
        may_be_enough_at_once: whether that is also asked before the first step.
        deadline: of time.monotonic(): the step after which it has passed is the last of this call, or the one before
            a preparation that would pass it, as long as the one before took; the next call goes on from there. For one
            process.

    Returns: the number of steps the weights have been trained for.
    Raises: TrainingError if a loss or gradient is not finite, the disk is full, or the checkpoint is of another run.
    """
    processes = Processes()
    weights = [weight for weight in adapted.parameters() if weight.requires_grad]
    processes.equalise(weights)
    optimizer = Optimizer(weights, learning_rate=learning_rate, steps=len(steps))
    done, ended = 0, False
    if run is not None and (state := run.resume(writes=processes.is_main)) is not None:
        done = int(state["step"])
        load_adapter_tensors(adapted, state["adapter"])
        optimizer.load_state(state["optimizer"])
        plateau.load_state(state["plateau"])
        ended = bool(state["ended"])
    elif may_be_enough_at_once:
        prepare([])
        ended = is_enough(0)
    todo = [] if ended else steps[done:]
    window, prepare_s = prepare_every or max(1, len(todo)), 0.0
    started = time.monotonic()
    bar = progress.add_task(name, total=len(steps), completed=done)
    for index, rows in enumerate(todo):
        if index % window == 0:
            preparing = time.monotonic()
            prepare([processes.share(rows) for rows in todo[index : index + window]])
            prepare_s = time.monotonic() - preparing
        rate = optimizer.learning_rate
        try:
            figures = backward(processes.share(rows), rows)
            processes.sum_gradients(weights)
            figures = processes.sum(figures)
            optimizer.step_down()
        except TrainingError as error:
            raise TrainingError(f"step {done + 1}: {error}{_saved(run)}") from error
        done += 1
        plateau.add(figures["loss"])
        ended = is_enough(done) or plateau.reached
        # A step is not begun whose preparation would not end in time.
        next_s = prepare_s if (index + 1) % window == 0 else 0.0
        late = deadline is not None and time.monotonic() + next_s >= deadline
        shown = ", ".join(f"{key} {value:.2f}" for key, value in figures.items())
        progress.update(bar, completed=done, description=f"{name}: {shown}")
        if done == len(steps) - len(todo) + _TIMED_STEPS and processes.is_main:
            step_s = (time.monotonic() - started - prepare_s) / _TIMED_STEPS
            left_s = step_s * (len(steps) - done) + prepare_s * ((len(todo) - 1) // window)
            progress.console.print(f"{name}: all steps would take {left_s:,.0f} s more", highlight=False)
        if run is not None and processes.is_main:
            seconds = round(time.monotonic() - started, 3)
            run.log({"step": done, **figures, "learning_rate": rate, "seconds": seconds})
            if run.is_due(done) or done == len(steps) or ended or late:
                run.save(
                    {
                        "step": done,
                        "ended": ended,
                        "adapter": adapter_tensors(adapted),
                        "optimizer": optimizer.state(),
                        "plateau": plateau.state(),
                    }
                )
        if ended or late:
            break
    return done


def _saved(run: RunFiles | None) -> str:
    if run is None or not run.checkpoint.exists():
        return ""
    return f" ({run.checkpoint} is kept; delete it to start again with other settings)"
