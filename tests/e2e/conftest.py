"""Figures that the end-to-end tests measure are printed under the results; one demo serves all who only ask it."""

import subprocess
import sys

import pytest

from support.server import Server

_FIGURES = pytest.StashKey[list[str]]()
# What vLLM wants to hear before it serves tools.
TOOLS = "--enable-auto-tool-choice --tool-call-parser hermes"


@pytest.fixture
def print_figures(request):
    """Call it with a line to have it printed at the end, pass or fail."""
    return request.config.stash.setdefault(_FIGURES, []).append


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory):
    """The demo, built if it is not cached and served as `make serve` does it."""
    subprocess.run([sys.executable, "-m", "unlearngate.cli", "demo", "build"], check=True)
    with Server(["--engine-args", TOOLS], tmp_path_factory.mktemp("demo") / "log") as running:
        yield running.wait_until_healthy()
        assert running.stop() == 0


def pytest_terminal_summary(terminalreporter, config):
    if lines := config.stash.get(_FIGURES, []):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
