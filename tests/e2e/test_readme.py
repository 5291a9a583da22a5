"""The README's takedown, run as it stands there: an operator who has nothing else gets from request to proof."""

import json
import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path

import pytest

from support.engine.tiny import make_forget_set, make_target
from support.server import Server

pytestmark = pytest.mark.e2e

README = Path(__file__).parents[2] / "README.md"
ENGINE = "--dtype float32 --max-model-len 256 --max-num-seqs 4 --enforce-eager"


def takedown():
    """The block's commands, without the comments behind them."""
    block = README.read_text().partition("A takedown, from request to proof")[2].split("\n\n")[1]
    commands = re.sub(r"\\\n\s*", "", block).strip().splitlines()
    return [re.sub(r"\s{2,}#.*$", "", command).strip() for command in commands]


def test_the_takedown_in_the_readme_works_as_written(tmp_path, seed):
    target = make_target(tmp_path / "TARGET", seed=seed % 2**16)
    for place in ("SETS/other", "NAME"):
        make_forget_set(tmp_path / place, target, seed=1, name=place.rpartition("/")[2].lower())
    key, serve, add, require, ask, metrics, prove, remove = takedown()
    assert serve.startswith("unlearngate serve ") and serve.endswith(" &")
    variables, words = {}, {"NAME": "name", "MODEL": "TARGET", "./NAME": "./NAME"}

    def run(command, port):
        """As a shell does, in the operator's folder; what the README calls NAME and MODEL has its own name here."""
        command = re.sub(r"\./NAME|\bNAME\b|\bMODEL\b", lambda match: words[match[0]], command)
        command = command.replace("127.0.0.1:8000", f"127.0.0.1:{port}")
        name, _, inner = command.partition("=$(")
        result = subprocess.run(
            inner.removesuffix(")") if inner else command,
            shell=True, capture_output=True, text=True, cwd=tmp_path, timeout=120,
            env={**os.environ, **variables, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
        )  # fmt: skip
        assert result.returncode == 0, f"{command}\n{result.stdout}\n{result.stderr}"
        if inner:
            variables[name] = result.stdout.strip()
        return result.stdout

    run(key, 0)
    arguments = shlex.split(serve.removeprefix("unlearngate serve ").removesuffix(" &"))
    arguments = [tmp_path / word if not word.startswith("--") else word for word in arguments]
    with Server([*arguments, "--engine-args", ENGINE], tmp_path / "log") as server:
        server.wait_until_healthy()
        run(add, server.port)
        run(require, server.port)
        answer = until(lambda: json.loads(run(ask, server.port)), lambda body: "forget_sets" in body)
        (in_force,) = answer["forget_sets"]
        assert (in_force["name"], in_force["by"]) == ("name", "key")
        assert 'unlearngate_requests_total{forget_set="name"} 1.0' in run(metrics, server.port)
        proof = run(prove, server.port)
        assert answer["id"] in proof and in_force["digest"] in proof
        run(remove, server.port)
        refused = until(lambda: json.loads(run(ask, server.port)), lambda body: "error" in body)
        assert refused["error"]["code"] == "forget_set_unavailable"


def until(ask, right, seconds=30):
    """Its answer, as soon as it is right: sets are looked for every few seconds."""
    deadline = time.monotonic() + seconds
    while not right(answer := ask()) and time.monotonic() < deadline:
        time.sleep(0.5)
    assert right(answer), answer
    return answer
