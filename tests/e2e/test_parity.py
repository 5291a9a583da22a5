"""The heart: a real engine against Hugging Face + PEFT, token for token. support/engine/parity.py is one run."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from support import preloaded

pytestmark = pytest.mark.e2e

IN_FULL = "PARITY_REQUESTS" in os.environ  # `make test-parity`
REQUESTS = int(os.environ.get("PARITY_REQUESTS", "60"))  # of each run
COMPILED = ["--default-compilation", "--layers", "3", "--branch-layers", "1"]  # each layer takes seconds to compile
# Each pair of family, tap, kind of set and way to run, but for compiled code without a tap, which serves the demo.
RUNS = {
    "llama-eager": ["--family", "llama"],
    "mistral-tapped": ["--family", "mistral", "--tap", "1"],
    "qwen3-undial-tapped": ["--family", "qwen3", "--undial", "--tap", "2"],
    "llama-undial-tapped-default": ["--family", "llama", "--undial", "--tap", "1", *COMPILED],
    "llama-undial-tensor-parallel-2": ["--family", "llama", "--undial", "--tensor-parallel", "2"],
}
if IN_FULL:
    RUNS |= {
        "llama-default": ["--family", "llama", "--default-compilation"],
        "llama-tapped": ["--family", "llama", "--tap", "1"],
        "llama-undial-default": ["--family", "llama", "--undial", "--default-compilation"],
        "mistral-eager": ["--family", "mistral"],
        "mistral-tapped-default": ["--family", "mistral", "--tap", "1", "--default-compilation"],
        "qwen3-eager": ["--family", "qwen3"],
        "llama-v2": ["--family", "llama", "--v2"],
        "llama-undial-tapped-v2": ["--family", "llama", "--undial", "--tap", "1", "--v2"],
    }

# One that starts a second time, to be as right with the compiled code that the first start left.
AGAIN = "llama-undial-tapped-default"
LINE = (
    "parity {name}: {requests} requests, {tokens} tokens, {ties} ties, {wrong} wrong; "
    "logprobs within {max_logprob_error} over {logprobs_compared} rows; {preemptions} preemptions, "
    "{aborted} aborted, {prefix_cache_hits} prefix cache hits, {adapter_loads} adapter loads, "
    "{open_gates} gates open, {closed_gates} closed, {keep_rule_decided} tokens decided by the keep rule or tail cut, "
    "{own_decided} by the target's own logits in {steered} steered requests, "
    "{student_decided} by an undial set; "
    "{mode}, {engine_seconds} s, seed {seed}"
)


def start(name, arguments, log, env):
    """A copy of a process that has imported vLLM, or where that is to take V2, a process that has not."""
    if "--v2" not in RUNS[name]:
        return preloaded.run("support.engine.parity", arguments, log, env)
    command = [sys.executable, "-m", "support.engine.parity", *map(str, arguments)]
    with log.open("w") as out:
        env |= {"PYTHONPATH": str(Path(__file__).parents[1])}
        return subprocess.Popen(command, stdout=out, stderr=subprocess.STDOUT, env=env)


def run(name, folder, num_requests, print_figures, seed=None):
    """One process per engine, so every worker (pytest -n) may take one."""
    arguments = [*RUNS[name], "--requests", num_requests, "--work", folder / "work"]
    env = {**os.environ, "VLLM_CACHE_ROOT": str(folder / "cache")}
    env |= {"UNLEARNGATE_SEED": str(seed)} if seed else {}
    process = start(name, arguments, folder / "log", env)
    process.wait(timeout=900)
    log = (folder / "log").read_text()
    lines = [line for line in log.splitlines() if line.startswith('{"family"')]
    assert lines, f"no figures; the run ended with {process.returncode}:\n{log[-8000:]}"
    figures = {"adapter_loads": "uncounted", "student_decided": 0, **json.loads(lines[-1])}
    title = name if seed is None else f"{name}, second start"
    print_figures(LINE.format(**figures, name=title, wrong=len(figures["problems"])))
    assert figures["problems"] == [], f"UNLEARNGATE_SEED={figures['seed']}"
    # A tie may go either way, but a run full of ties proves nothing.
    assert figures["ties"] <= figures["tokens"] * 0.01
    return figures, log


@pytest.mark.parametrize("name", RUNS)
def test_every_token_is_the_one_the_formula_chooses(name, tmp_path, print_figures):
    figures, _ = run(name, tmp_path, REQUESTS, print_figures)
    assert figures["requests"] >= REQUESTS
    if name == AGAIN:
        _, log = run(name, tmp_path, 60, print_figures, figures["seed"])
        assert log.count("Directly load AOT compilation") == 3  # the target, and in lockstep with one branch and two
        assert "Compiling model again" not in log
