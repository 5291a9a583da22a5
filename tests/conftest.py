"""Shared fixtures. UNLEARNGATE_SEED pins what is otherwise fresh on every run."""

import os
import random

import pytest

from unlearngate.server.contract.plan import ensure_key

ensure_key()


@pytest.fixture
def seed(request):
    """A fresh seed, shown when the test fails."""
    value = int(os.environ.get("UNLEARNGATE_SEED") or random.SystemRandom().randrange(1, 2**31))
    request.node.add_report_section("setup", "seed", f"UNLEARNGATE_SEED={value}")
    return value


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


@pytest.hookimpl(wrapper=True)  # around pytest-xdist's, which reads the marks
def pytest_collection_modifyitems(items):
    """Two tests of a file share its engine, so with several workers (pytest -n) one of them has the whole file."""
    for item in items:
        if item.get_closest_marker("xdist_group") is None:
            item.add_marker(pytest.mark.xdist_group(item.nodeid.partition("::")[0]))
    return (yield)
