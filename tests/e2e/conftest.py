"""Figures that the end-to-end tests measure are printed under the results."""

import pytest

_FIGURES = pytest.StashKey[list[str]]()


@pytest.fixture
def print_figures(request):
    """Call it with a line to have it printed at the end, pass or fail."""
    return request.config.stash.setdefault(_FIGURES, []).append


def pytest_terminal_summary(terminalreporter, config):
    if lines := config.stash.get(_FIGURES, []):
        terminalreporter.section("figures")
        for line in lines:
            terminalreporter.write_line(line)
