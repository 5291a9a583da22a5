"""A start of the real server that a signal ends, or that fails."""

import random
import signal
import time
from pathlib import Path

import psutil
import pytest

from support.engine.tiny import make_forget_set, make_target
from support.server import Server

pytestmark = pytest.mark.e2e

ENGINE = "--dtype float32 --max-model-len 512 --enforce-eager"


@pytest.fixture(scope="module")
def arguments(tmp_path_factory):
    base = tmp_path_factory.mktemp("start")
    target = make_target(base / "tiny", seed=1)
    make_forget_set(base / "sets" / "anna", target, seed=1)
    return [target, "--forget-sets", base / "sets", "--engine-args"]


def descendants(server, deep):
    """The engine's process; deep: its workers'."""
    try:
        children = psutil.Process(server.process.pid).children()
        engines = [child for child in children if "resource_tracker" not in " ".join(child.cmdline())]
        return [worker for engine in engines for worker in engine.children()] if deep else engines
    except psutil.NoSuchProcess:  # what vLLM asks about the machine ends as soon as it has answered
        return []


@pytest.mark.parametrize("deep", [False, True], ids=["engine", "worker"])
def test_sigterm_ends_a_start_at_once_with_all_its_processes(tmp_path, arguments, deep):
    seconds = random.uniform(0, 6)
    print(f"{seconds:.1f} s after the {'worker' if deep else 'engine'} appeared")
    with Server([*arguments, ENGINE], tmp_path / "log", fresh=True) as server:
        while not descendants(server, deep):
            assert server.process.poll() is None, server.log[-3000:]
            time.sleep(0.1)
        time.sleep(seconds)
        started = psutil.Process(server.process.pid).children(recursive=True)
        server.process.send_signal(signal.SIGTERM)  # to the server alone, as a supervisor does
        assert server.process.wait(timeout=30) in (0, 128 + signal.SIGTERM), server.log[-3000:]
        psutil.wait_procs(started, timeout=10)
        # Who is dead and has lost its parent waits for process 1.
        assert [one for one in started if one.is_running() and one.status() != psutil.STATUS_ZOMBIE] == []


def test_a_failed_start_ends_in_one_sentence_with_the_cause(tmp_path, arguments):
    with Server([*arguments, ENGINE], tmp_path / "log", {"VLLM_CPU_KVCACHE_SPACE": "999999"}, fresh=True) as server:
        assert server.process.wait(timeout=200) == 2
        last = server.log.rstrip().splitlines()[-1]
    assert last.startswith("error: the engine did not start: Available memory on node"), last
    kept = Path(last.rsplit(" ", 1)[-1])
    assert "Decrease --kv-cache-memory-bytes" in kept.read_text()
    kept.unlink()
