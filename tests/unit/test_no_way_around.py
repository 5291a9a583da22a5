"""Ways around the forget sets that need no running server: what docs/security.md's table says of each is tried here."""

import json
import os
import subprocess
import sys
from pathlib import Path

TESTS = Path(__file__).parents[1]


def test_both_runners_sample_from_the_same_distribution_whatever_steers_it(tmp_path, seed):
    """A2-penalties, A2-logit-bias: vLLM's own samplers, V2's with Triton interpreted, on the same random requests."""
    command = [sys.executable, TESTS / "support" / "both_runners.py", "--requests", "40", "--seed", seed]
    env = {**os.environ, "PYTHONPATH": str(TESTS)}
    run = subprocess.run([*map(str, command), "--work", tmp_path], env=env, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr[-3000:]
    figures = json.loads(run.stdout.splitlines()[-1])
    assert figures["penalised"] > 5
    assert figures["difference"] < 1e-6
