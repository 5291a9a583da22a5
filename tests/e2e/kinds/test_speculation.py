"""Answers that are sampled behind draft tokens have the composed distribution, no other."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

TESTS = Path(__file__).parents[2]
WAYS = {"drawn by EAGLE-3": ["--drafter", "eagle3", "--draws"]}
if "PARITY_REQUESTS" in os.environ:  # `make test-parity`
    WAYS |= {"looked up": [], "of EAGLE-3": ["--drafter", "eagle3"]}


@pytest.mark.parametrize("way", WAYS)
def test_sampled_answers_have_the_composed_distribution(tmp_path, seed, print_figures, way):
    program = TESTS / "support" / "engine" / "sampled.py"
    command = [sys.executable, program, "--requests", "120", "--work", tmp_path, *WAYS[way]]
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "UNLEARNGATE_SEED": str(seed)}
    run = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, timeout=900)
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    print_figures(f"sampled behind drafts {way}: {json.loads(run.stdout.splitlines()[-1])}")
