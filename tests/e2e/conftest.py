"""One demo serves all tests that only ask it."""

import subprocess
import sys

import pytest

from support.server import Server

# What vLLM wants to hear before it serves tools.
TOOLS = "--enable-auto-tool-choice --tool-call-parser hermes"


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory):
    """The demo, built if it is not cached and served as `make serve` does it."""
    subprocess.run([sys.executable, "-m", "unlearngate.cli", "demo", "build"], check=True)
    with Server(["--engine-args", TOOLS], tmp_path_factory.mktemp("demo") / "log") as running:
        yield running.wait_until_healthy()
        assert running.stop() == 0
