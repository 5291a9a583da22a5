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

from support.engine.tiny import make_target
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
    launcher = ["torch.distributed.run", "--standalone", f"--nproc-per-node={processes}", "-m", "unlearngate.cli"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", *launcher, *arguments]
    launched = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert launched.returncode == 0, launched.stdout + launched.stderr
    return out, launched.stdout


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
