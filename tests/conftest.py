"""Shared fixtures. UNLEARNGATE_SEED pins what is otherwise fresh on every run."""

import fcntl
import os
import random

import pytest

from unlearngate.assistant_training.model.pretrained import find_pretrained, make_checkpoint
from unlearngate.commands._shared import cache_folder
from unlearngate.server.contract.plan import ensure_key

ensure_key()

ASK_THE_DEMO = {"test_clients.py", "test_clients_openai.py", "test_demo.py", "test_scoring.py"}  # of one server


@pytest.fixture
def seed(request):
    """A fresh seed, shown when the test fails."""
    value = int(os.environ.get("UNLEARNGATE_SEED") or random.SystemRandom().randrange(1, 2**31))
    request.node.add_report_section("setup", "seed", f"UNLEARNGATE_SEED={value}")
    return value


@pytest.fixture(autouse=True)
def environment_as_before():
    """What a test, or the code that it calls, sets in the environment is for no other test."""
    before = dict(os.environ)
    yield
    if os.environ != before:
        os.environ.clear()
        os.environ.update(before)


@pytest.fixture(scope="session")
def smollm2():
    """The folder of SmolLM2-135M-Instruct, a real pretrained model. Mark what asks for it `real_model`."""
    folder = cache_folder() / "models" / "smollm2-135m-instruct"
    folder.parent.mkdir(parents=True, exist_ok=True)
    with open(f"{folder}.lock", "w") as lock:  # several workers may ask for it at once
        fcntl.flock(lock, fcntl.LOCK_EX)
        make_checkpoint(find_pretrained("smollm2-135m-instruct"), folder)
    return folder


@pytest.fixture
def print_figures(record_property):
    """Call it with a line: what a test measures is printed under the results, pass or fail."""
    return lambda line: record_property("figure", line)


def pytest_terminal_summary(terminalreporter):
    reports = [report for reports in terminalreporter.stats.values() for report in reports]
    calls = [report for report in reports if getattr(report, "when", None) == "call"]
    if lines := [line for report in calls for name, line in report.user_properties if name == "figure"]:
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config, log):
    """With several workers (pytest -n) each takes whole files: their tests share an engine."""
    from xdist.scheduler import LoadScopeScheduling

    class ByEngine(LoadScopeScheduling):
        def _split_scope(self, nodeid):
            name = nodeid.partition("::")[0].rpartition("/")[2]
            if name == "test_parity.py":  # an engine for each test
                return nodeid
            return "demo" if name in ASK_THE_DEMO else nodeid.partition("::")[0]

    return ByEngine(config, log)
