"""Texts withheld by a real engine of each of vLLM's runners, in mixed batches with preemption and prompts in parts."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.e2e

TESTS = Path(__file__).parents[2]


RUNS = {
    "v1": ["--requests", "24"],
    "v2": ["--requests", "6", "--v2"],
    "speculation": ["--requests", "4", "--v2", "--speculate", "3"],
}


@pytest.mark.parametrize("options", RUNS.values(), ids=RUNS)
def test_no_run_comes_out_of_an_engine_that_says_the_text_without_the_set(options, tmp_path, seed, print_figures):
    command = [sys.executable, TESTS / "support" / "engine" / "withheld.py", *options, "--work", tmp_path]
    paths = os.pathsep.join(filter(None, [str(TESTS), os.environ.get("PYTHONPATH")]))
    env = {**os.environ, "PYTHONPATH": paths, "UNLEARNGATE_SEED": str(seed)}
    run = subprocess.run([*map(str, command)], env=env, capture_output=True, text=True, timeout=600)
    assert run.returncode == 0, f"{run.stdout[-2000:]}\n{run.stderr[-2000:]}"
    figures = json.loads(run.stdout.splitlines()[-1])
    print_figures(f"withheld {options}: {figures}")
    # Sixty tokens of one character each, of which spaces are no letters.
    assert figures["longest"]["false"] > 40
    assert figures["longest"]["true"] == 23
