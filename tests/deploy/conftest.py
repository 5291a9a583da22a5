"""Run by `make test-deploy`, which fetches nginx and the checkers below build/deploy first."""

import random

import pytest

from support.deploy.replicas import two_replicas
from support.engine.tiny import VOCAB_SIZE


@pytest.fixture(scope="session")
def replicas(tmp_path_factory):
    """Two real servers for all tests."""
    with two_replicas(tmp_path_factory.mktemp("replicas")) as two:
        yield two


@pytest.fixture(scope="session")
def gateway(replicas):
    """The gateway before both."""
    with replicas.gateway("gateway") as nginx:
        yield nginx


@pytest.fixture
def prompts(seed):
    """A few, of random tokens."""
    rng = random.Random(seed)
    return [[rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(5, 60))] for _ in range(4)]
