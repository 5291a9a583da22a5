"""One demo serves all tests that only ask it."""

import pytest

from support.demo import build_demo
from support.server import Server

# What vLLM wants to hear before it serves tools.
TOOLS = "--enable-auto-tool-choice --tool-call-parser hermes"


@pytest.fixture(scope="session")
def demo_server(tmp_path_factory):
    """The demo, built if it is not cached and served as `make serve-demo` does it."""
    base = tmp_path_factory.mktemp("demo")
    build_demo(base)
    with Server(["--engine-args", TOOLS], base / "log") as running:
        yield running.wait_until_healthy()
        assert running.stop() == 0
