"""A start in a process of its own: ended by a signal, and explained when it fails."""

import logging
import multiprocessing
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import psutil
import pytest
from vllm.config.logging import LoggingConfig
from vllm.logger import DEFAULT_LOGGING_CONFIG, configure_logging

from unlearngate.errors import StartError
from unlearngate.server.starting import ended_at_once, explained

STARTING = textwrap.dedent(
    """
    import multiprocessing, os, signal, sys, threading, time
    from pathlib import Path
    from unlearngate.server.starting import ended_at_once

    def engine(places):
        os.setpgid(0, 0)
        worker = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
        worker.start()
        Path(places, "pids").write_text(f"{os.getpid()} {worker.pid}")
        time.sleep(600)

    if __name__ == "__main__":
        scratch = Path(sys.argv[1]) / "scratch"
        scratch.mkdir()
        signal.signal(signal.SIGINT, signal.default_int_handler)  # who runs the tests may ignore it
        with ended_at_once(scratch):
            multiprocessing.get_context("fork").Process(target=engine, args=(sys.argv[1],)).start()
            try:
                threading.Event().wait()
            except BaseException:  # as a start that takes no exception for an answer
                time.sleep(600)
    """
)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_ends_a_start_and_all_that_it_started(tmp_path, number):
    (tmp_path / "start.py").write_text(STARTING)
    start = subprocess.Popen([sys.executable, tmp_path / "start.py", tmp_path], start_new_session=True)
    pids = tmp_path / "pids"
    while not pids.exists() or not pids.read_text():
        time.sleep(0.05)
    os.kill(start.pid, number)
    assert start.wait(timeout=120) == 128 + number
    assert not (tmp_path / "scratch").exists()
    for pid in pids.read_text().split():
        assert not Path("/proc", pid).exists() or "Z" in Path("/proc", pid, "stat").read_text().split()[2]


AS_PROCESS_1 = ["unshare", "--user", "--map-root-user", "--pid", "--fork", "--kill-child"]


@pytest.mark.skipif(
    not shutil.which("unshare") or subprocess.run([*AS_PROCESS_1, "true"], capture_output=True).returncode != 0,
    reason="this user may not make a pid namespace",
)
def test_sigterm_ends_process_1_of_a_container_while_it_still_imports(tmp_path):
    started = tmp_path / "started"
    (tmp_path / "typer.py").write_text(
        f"import pathlib, time\npathlib.Path({str(started)!r}).touch()\ntime.sleep(600)\n"
    )
    code = f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import unlearngate.cli"
    with subprocess.Popen([*AS_PROCESS_1, sys.executable, "-c", code]) as container:
        try:
            while not started.exists():
                assert container.poll() is None
                time.sleep(0.05)
            (process_1,) = psutil.Process(container.pid).children()
            process_1.terminate()
            assert container.wait(timeout=30) == 128 + signal.SIGTERM
        finally:
            container.kill()


@pytest.fixture
def interruptible():
    """Also where whoever runs the tests ignores SIGINT, as a shell's background does; a start leaves that as it is."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


def test_behind_a_start_signals_do_what_they_did_before(tmp_path, interruptible):
    before = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(StartError), ended_at_once(tmp_path):
        assert all(signal.getsignal(number) not in before for number in (signal.SIGTERM, signal.SIGINT))
        raise StartError("no")
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)] == before


@pytest.fixture
def logging_as_before(monkeypatch, tmp_path):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "")
    monkeypatch.delenv("VLLM_LOGGING_CONFIG_PATH")
    yield
    os.environ.pop("VLLM_LOGGING_CONFIG_PATH", None)


MEMORY = "Available memory on node 0 is less than requested.\nReduce it."


def fail_as_an_engine(reason: str) -> None:
    """Configure logging from the environment, as vLLM's processes do, and log why it ends."""
    configure_logging(LoggingConfig())
    log = logging.getLogger("vllm.v1.engine.core")
    try:
        try:
            raise ValueError(reason)
        except ValueError:
            log.exception("WorkerProc failed to start.")
            raise RuntimeError("Worker failed with error 'Available memory', please check") from None
    except RuntimeError:
        log.exception("EngineCore failed to start.")


def run_an_engine_that_fails(reason: str = MEMORY) -> int:
    """In a process of its own, as vLLM's on a CPU: a copy of this one."""
    engine = multiprocessing.get_context("fork").Process(target=fail_as_an_engine, args=(reason,))
    engine.start()
    engine.join()
    return engine.exitcode


def test_a_failed_start_is_one_sentence_with_the_cause_and_its_log_stays(tmp_path, logging_as_before):
    with pytest.raises(StartError) as raised, explained(tmp_path, DEFAULT_LOGGING_CONFIG):
        assert run_an_engine_that_fails() == 0
        raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    (log,) = tmp_path.glob("unlearngate-start-*.log")
    assert str(raised.value) == (
        "the engine did not start: Available memory on node 0 is less than requested (ValueError); "
        f"its log is kept in {log}"
    )
    assert "EngineCore failed to start." in log.read_text()


def test_a_cause_that_lists_its_reasons_is_said_with_them(tmp_path, logging_as_before):
    reason = "Failed to find a kernel. Reasons: \n  One cannot: it is a GPU's.\n Other cannot: fp16 only.\n"
    with pytest.raises(StartError) as raised, explained(tmp_path, DEFAULT_LOGGING_CONFIG):
        assert run_an_engine_that_fails(reason) == 0
        raise RuntimeError("Engine core initialization failed. See root cause above. Failed core proc(s): {}")
    said = "Failed to find a kernel. Reasons: One cannot: it is a GPU's. Other cannot: fp16 only (ValueError); its log"
    assert str(raised.value).startswith(f"the engine did not start: {said}")


def test_the_log_of_a_start_is_gone_when_the_server_is_up_and_nothing_brings_it_back(tmp_path, logging_as_before):
    with explained(tmp_path, DEFAULT_LOGGING_CONFIG):
        pass
    assert list(tmp_path.glob("*.log")) == []
    assert run_an_engine_that_fails() == 0
    assert list(tmp_path.glob("*.log")) == []


def test_a_failure_without_a_cause_in_the_log_keeps_its_own_words(tmp_path, logging_as_before, monkeypatch):
    with pytest.raises(
        StartError, match=r"did not start: Failed core proc\(s\): EngineCore_0: -9 \(RuntimeError\); its"
    ):
        with explained(tmp_path, DEFAULT_LOGGING_CONFIG):
            raise RuntimeError("Failed core proc(s): EngineCore_0: -9")
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "/etc/logging.json")
    with pytest.raises(StartError, match="its log is where VLLM_LOGGING_CONFIG_PATH says"):
        with explained(tmp_path, DEFAULT_LOGGING_CONFIG):
            raise RuntimeError("no")


@pytest.mark.parametrize(
    "error, said",
    [
        (KeyError("no parser of\nthis name."), "no parser of this name (KeyError)"),
        (TypeError("has not been registered"), "has not been registered (TypeError)"),
        (AssertionError(), "AssertionError"),
    ],
    ids=repr,
)
def test_any_exception_of_a_start_is_one_sentence_and_its_traceback_is_in_the_log(
    tmp_path, logging_as_before, monkeypatch, caplog, error, said
):
    with pytest.raises(StartError) as raised, explained(tmp_path, DEFAULT_LOGGING_CONFIG):
        assert run_an_engine_that_fails() == 0  # what the engine had logged before is not the cause
        raise error
    (log,) = tmp_path.glob("unlearngate-start-*.log")
    assert str(raised.value) == f"the engine did not start: {said}; its log is kept in {log}"
    assert "Traceback" in log.read_text() and "in test_any_exception" in log.read_text()
    monkeypatch.setenv("VLLM_LOGGING_CONFIG_PATH", "/etc/logging.json")
    monkeypatch.setattr(logging.getLogger("vllm"), "propagate", True)
    with pytest.raises(StartError), explained(tmp_path, DEFAULT_LOGGING_CONFIG):
        raise error
    assert "in test_any_exception" in caplog.text
