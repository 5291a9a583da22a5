"""Answers that are sampled behind draft tokens have the composed distribution, no other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

TESTS = Path(__file__).parents[2]


def test_sampled_answers_have_the_composed_distribution(tmp_path, seed, print_figures):
    command = [sys.executable, TESTS / "support" / "engine" / "sampled.py", "--requests", "120", "--work", tmp_path]
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "UNLEARNGATE_SEED": str(seed)}
    run = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    print_figures(f"sampled behind drafts: {json.loads(run.stdout.splitlines()[-1])}")
