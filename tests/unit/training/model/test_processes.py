"""Several processes train what one trains: real processes, joined by gloo on the CPU."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from typer.testing import CliRunner

from support import preloaded
from support.engine.tiny import make_target
from support.server import free_port
from unlearngate.cli import app

# Shorter answers first, so that the processes' shares are of different lengths.
ROWS = {name: [(f"{name} {i}?", "1" * (3 + i)) for i in range(count)] for name, count in (("forget", 5), ("retain", 9))}
KINDS = {
    "uld": [
        "--layers",
        "2",
        "--rank",
        "4",
        "--forget-batch",
        "3",
        "--retain-batch",
        "6",
        "--steps",
        "3",
        "--write-anyway",
    ],
    "undial": ["--batch", "3", "--learning-rate", "1e-3"],
}
SHORT = ["--epochs", "2", "--checkpoint-every", "2", "--patience", "5"]


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("processes")
    make_target(folder / "target", seed=11)
    for name, rows in ROWS.items():
        lines = [json.dumps({"question": question, "answer": answer}) + "\n" for question, answer in rows]
        (folder / f"{name}.jsonl").write_text("".join(lines))
    return folder


def train(files: Path, kind: str, name: str, *, processes: int) -> tuple[Path, str]:
    out = files / kind / name
    arguments = ["train", kind, str(files / "target"), str(out), *KINDS[kind], *SHORT]
    for option in ROWS:
        arguments += [f"--{option}", str(files / f"{option}.jsonl")]
    if processes == 1:
        done = CliRunner().invoke(app, arguments)
        assert done.exit_code == 0, done.output
        return out, done.output
    if kind == "uld":
        return out, launched(arguments, processes)
    return out, joined(arguments, processes, files)


def launched(arguments: list[str], processes: int) -> str:
    """By torch's launcher; what the processes print."""
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "unlearngate.cli"]
    command = [sys.executable, "-m", *launcher, *arguments]
    done = subprocess.run(command, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def joined(arguments: list[str], processes: int, base: Path) -> str:
    """Copies of a process that has imported what they need, told apart by the launcher's variables."""
    variables = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port()), "WORLD_SIZE": str(processes)}
    logs = [base / f"process-{rank}.log" for rank in range(processes)]
    started = [
        preloaded.run(
            "unlearngate.cli",
            arguments,
            log,
            {**os.environ, **variables, "OMP_NUM_THREADS": "1", "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank, log in enumerate(logs)
    ]
    said = "".join(log.read_text() for process, log in zip(started, logs, strict=True) if process.wait(240) == 0)
    assert all(process.returncode == 0 for process in started), [log.read_text() for log in logs]
    return said


def log_of(out: Path) -> list[list[float]]:
    rows = [json.loads(line) for line in (out.parent / f".{out.name}.training" / "log.jsonl").read_text().splitlines()]
    return [[row[key] for key in ("step", "loss", "forget", "retain", "learning_rate")] for row in rows]


@pytest.mark.parametrize("kind", KINDS)
def test_two_processes_train_what_one_trains(files, kind):
    """Up to rounding: the same losses at every step and the same tensors; one artefact, one log, one report."""
    one, _ = train(files, kind, "one", processes=1)
    two, said = train(files, kind, "two", processes=2)
    assert said.count("is written to") == 1
    for mine, theirs in zip(log_of(two), log_of(one), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    tensors, expected = load_file(two / "adapter_model.safetensors"), load_file(one / "adapter_model.safetensors")
    assert tensors.keys() == expected.keys()
    for name, tensor in tensors.items():
        assert torch.allclose(tensor, expected[name], atol=1e-4), (name, (tensor - expected[name]).abs().max())
    assert sorted(path.name for path in two.parent.iterdir()) == [".one.training", ".two.training", "one", "two"]
    assert not (two.parent / ".two.training" / "checkpoint.pt").exists()
