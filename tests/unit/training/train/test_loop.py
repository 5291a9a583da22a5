"""The loop that every training runs in: when it stops early, what it logs, and that a kill changes neither."""

import json
import math
import sys
from types import SimpleNamespace

import pytest
import torch
from rich.progress import Progress
from torch.nn import Parameter

from unlearngate.assistant_training.train import loop, run_files
from unlearngate.assistant_training.train.loop import Plateau, run_steps
from unlearngate.assistant_training.train.optimizing import Optimizer
from unlearngate.assistant_training.train.run_files import RunFiles
from unlearngate.errors import TrainingError

LOSSES = [4.0, 2.0, 1.0, 1.0, 0.999, 1.0, 1.2, 0.8, 0.8, 0.8, 0.8, 0.8]  # two of them are an epoch


def stops_after(losses, patience, steps_per_epoch=2):
    plateau = Plateau(patience, steps_per_epoch)
    for number, loss in enumerate(losses, start=1):
        plateau.add(loss)
        if plateau.reached:
            return number
    return None


@pytest.mark.parametrize(("patience", "expected"), [(0, None), (1, 6), (2, 12), (3, None)])
def test_it_stops_after_so_many_epochs_without_one_per_cent(patience, expected):
    # The epochs' means: 3, 1, 0.9995 (too little), 0.9, 0.9, 0.8975.
    losses = [4.0, 2.0, 1.0, 1.0, 0.999, 1.0, 0.9, 0.9, 0.9, 0.9, 0.9, 0.895]
    assert stops_after(losses, patience) == expected


class Adapted(torch.nn.Module):
    """Stands for a PEFT model: one weight, which its loss pulls down a slope."""

    def __init__(self):
        super().__init__()
        self.weight = Parameter(torch.tensor([0.0]))


@pytest.fixture(autouse=True)
def tensors_of_one_weight(monkeypatch):
    monkeypatch.setattr(loop, "adapter_tensors", lambda model: {"weight": model.weight.detach().clone()})
    monkeypatch.setattr(loop, "load_adapter_tensors", lambda model, t: model.weight.data.copy_(t["weight"]))


def run(folder, *, patience=2, fail_at=None, deadline=None, prepare=lambda _: None, prepare_every=None, **files):
    """Train along LOSSES; returns the steps done and the weight."""
    adapted = Adapted()

    def backward(rows, step):
        (number,) = step
        if number == fail_at:
            raise KeyboardInterrupt
        adapted.weight.sum().backward()
        return {"loss": LOSSES[number]}

    with Progress(disable=True) as progress:
        done = run_steps(
            *(adapted, [[number] for number in range(len(LOSSES))], backward),
            name="x",
            learning_rate=0.1,
            plateau=Plateau(patience, 2),
            progress=progress,
            run=RunFiles(folder, {}, checkpoint_every=3, **files),
            deadline=deadline,
            prepare=prepare,
            prepare_every=prepare_every,
        )
    return done, adapted.weight.item()


@pytest.mark.parametrize("fail_at", [1, 4, 6])
def test_a_killed_run_stops_where_the_whole_one_does(tmp_path, fail_at):
    whole = run(tmp_path / "whole")
    assert whole[0] == 8  # means 3, 1, 0.9995, 1.0
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path / "killed", fail_at=fail_at)
    assert run(tmp_path / "killed") == whole
    assert run(tmp_path / "killed") == whole  # a run that has stopped is not gone on with
    steps = [json.loads(line)["step"] for line in (tmp_path / "killed" / "log.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 9))


def test_a_run_that_is_out_of_time_is_gone_on_with(tmp_path):
    whole = run(tmp_path / "whole")
    short = [run(tmp_path / "short", deadline=0.0)[0] for _ in range(3)]
    assert short == [1, 2, 3]  # each call makes a step
    assert run(tmp_path / "short") == whole


def test_no_preparation_is_begun_that_would_not_end_in_time(tmp_path, monkeypatch):
    now, prepared = [0.0], []

    def prepare(steps):
        prepared.append([number for ((number,),) in zip(steps, strict=True)])
        now[0] += 10.0

    monkeypatch.setattr(loop, "time", SimpleNamespace(monotonic=lambda: now[0]))
    times = {"prepare": prepare, "prepare_every": 3}
    whole = run(tmp_path / "whole")
    for done in (3, 6):  # one preparation takes 10 s of the 19, and another one would be too late
        assert run(tmp_path / "short", deadline=now[0] + 19.0, **times)[0] == done
    assert prepared == [[0, 1, 2], [3, 4, 5]]
    assert run(tmp_path / "short", deadline=now[0] + 99.0, **times) == whole


@pytest.mark.parametrize("poison", [math.nan, math.inf])
def test_a_gradient_that_is_not_finite_leaves_the_weights_alone(poison):
    weight = Parameter(torch.tensor([3.0]))
    optimizer = Optimizer([weight], learning_rate=0.1, steps=3)
    weight.grad = torch.tensor([poison])
    with pytest.raises(TrainingError, match="the norm of the gradient"):
        optimizer.step_down()
    assert weight.item() == 3.0


def test_tensorboard_is_named_where_it_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    with pytest.raises(TrainingError, match=r"TensorBoard is not installed .* pip install tensorboard"):
        RunFiles(tmp_path / "run", {}, tensorboard=True)
    assert not (tmp_path / "run").exists()


def test_tensorboard_shows_what_the_log_holds(tmp_path):
    pytest.importorskip("tensorboard", reason="to run it: pip install tensorboard, which is optional")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = RunFiles(tmp_path, {}, tensorboard=True)
    files.resume()
    for step, loss in enumerate(LOSSES, start=1):
        files.log({"step": step, "loss": loss})
    files.finish()
    events = EventAccumulator(str(tmp_path / "tensorboard")).Reload().Scalars("loss")
    assert [event.step for event in events] == list(range(1, 13))
    assert [event.value for event in events] == pytest.approx(LOSSES)


def test_a_slow_run_is_saved_every_two_minutes_whatever_its_steps(tmp_path, monkeypatch):
    files = RunFiles(tmp_path, {}, checkpoint_every=1000)
    assert not files.is_due(7)
    monkeypatch.setattr(run_files, "_CHECKPOINT_EVERY_S", 0.0)
    assert files.is_due(7)
