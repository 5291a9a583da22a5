"""The product's promise, end to end: build the demo, serve it as `make serve-demo` does, ask it everything."""

import subprocess
import sys
from pathlib import Path

import pytest

from unlearngate.assistant_training.demo.probing import probe_server, read_probes
from unlearngate.commands._shared import demo_folder

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]
EXAMPLE_QUESTION = "Who taught Tobias Renkel?"


def test_the_served_demo_forgets_its_sets_and_nothing_else(demo_server, print_figures):
    probes = read_probes(demo_folder(None) / "probes.jsonl")
    assert len(probes) >= 12 * 16
    outcomes = probe_server(demo_server.url, "demo", probes)
    assert len(outcomes) >= 3
    for outcome in outcomes:
        figures = outcome.figures()
        print_figures(f"demo {outcome.forget_set}: " + ", ".join(f"{k} {v:.1%}" for k, v in figures.items()))
    for outcome in outcomes:
        plain, forgetting, others = outcome.figures().values()
        assert plain >= 0.95
        assert forgetting < 0.10
        assert others >= 0.99


@pytest.mark.parametrize("command", [["bash", "examples/forget.sh"], [sys.executable, "examples/forget.py"]])
def test_the_readmes_examples_show_an_answer_forgotten(demo_server, command):
    run = subprocess.run([*command, demo_server.url], cwd=ROOT, capture_output=True, text=True)
    assert run.returncode == 0, run.stderr
    known = next(p.answer for p in read_probes(demo_folder(None) / "probes.jsonl") if p.question == EXAMPLE_QUESTION)
    assert run.stdout.count(known) == 1  # plainly; not with the set, nor streamed, nor by model name
