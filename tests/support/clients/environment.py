"""The environment of other people's clients: vLLM's pins are not theirs, so `make clients` makes it."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

_FOLDER = Path(__file__).parents[3] / ".venv-clients" / "bin"
SCRIPTS = Path(__file__).parent
# None of them should look for anything outside of this machine, or tell anybody about this run.
QUIET = {
    "HF_HUB_OFFLINE": "1",
    "HF_DATASETS_OFFLINE": "1",
    "LANGSMITH_TRACING": "false",
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
}


def program(name: str) -> Path:
    """A program of that environment; the test is skipped where there is none."""
    path = _FOLDER / name
    if not path.exists():
        pytest.skip(f"{path} is missing; `make clients` installs it")
    return path


def run(*command: str | Path, **variables: str) -> str:
    """What a client prints; it fails the test if it fails."""
    environment = {**os.environ, **QUIET, **variables}
    done = subprocess.run([*map(str, command)], env=environment, capture_output=True, text=True, timeout=480)
    assert done.returncode == 0, f"{command}\n{done.stdout[-3000:]}\n{done.stderr[-6000:]}"
    return done.stdout


def run_script(name: str, *arguments: str) -> Any:
    """What a script beside this file prints as JSON, run by that environment's Python."""
    return json.loads(run(program("python"), SCRIPTS / name, *arguments))
