"""Shared fixtures. UNLEARNGATE_SEED pins what is otherwise fresh on every run."""

import os
import random

import pytest

from unlearngate.server.engine.plan import ensure_key

ensure_key()


@pytest.fixture
def seed(request):
    """A fresh seed, shown when the test fails."""
    value = int(os.environ.get("UNLEARNGATE_SEED") or random.SystemRandom().randrange(1, 2**31))
    request.node.add_report_section("setup", "seed", f"UNLEARNGATE_SEED={value}")
    return value
