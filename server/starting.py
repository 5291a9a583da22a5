"""A start that a signal ends at once, and that says in one sentence why it failed."""

from __future__ import annotations

import copy
import json
import logging
import os
import re
import shutil
import signal
import tempfile
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import psutil

from unlearngate.errors import StartError, in_one_line
from unlearngate.processes import LOG_CONFIG
from unlearngate.server.contract.start_log import StartLog

logger = logging.getLogger(__name__)

# vLLM's own words for "look further up".
_NO_CAUSE = re.compile(r"initialization failed|See (root cause|stack trace)|Failed core proc|Worker failed with error")
_RAISED = re.compile(r"\] (?:\w+\.)*(\w*(?:Error|Exception|Interrupt|Exit)): (\S.*)")


@contextmanager
def ended_at_once(scratch: Path) -> Iterator[None]:
    """Until others are installed, SIGTERM and SIGINT end this process, its engine and what it wrote in `scratch`.

    An exception would not do: vLLM's start catches some, and waits minutes for an engine that is gone. A signal that
    a supervisor had ignored stays ignored. Behind the `with` block the handlers are those from before it.
    """

    def end(number: int, _frame: object) -> None:
        logger.info("%s while starting: ending", signal.Signals(number).name)
        for _ in range(2):  # an engine that was just killed may have started a worker meanwhile
            for process in psutil.Process().children(recursive=True):
                with suppress(psutil.Error):  # one that nobody reaps stays, dead
                    process.kill()
                    process.wait(1)
        shutil.rmtree(scratch, ignore_errors=True)
        os._exit(128 + number)

    before = {number: signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT)}
    for number, handler in before.items():
        if handler is not signal.SIG_IGN:
            signal.signal(number, end)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def explained(scratch: Path, logging_config: dict[str, Any]) -> Iterator[None]:
    """Start an engine inside: if it fails, one sentence says why, and its log stays in a file, with the traceback.

    Args:
        scratch: a folder that lives as long as the server.
        logging_config: vLLM's default, as `logging.config.dictConfig` takes it.

    Raises: StartError with the cause.
    """
    log = (
        None if LOG_CONFIG in os.environ else _keep_log(scratch, logging_config)
    )  # an operator's own logging has it all
    try:
        yield
    except Exception as error:
        cause = (log and _NO_CAUSE.search(str(error)) and _cause(log)) or in_one_line(error)
        if log:
            with log.open("a") as file:
                traceback.print_exc(file=file)
            where = f"its log is kept in {_kept(log)}"
        else:
            logging.getLogger("vllm").exception("the engine did not start")
            where = f"its log is where {LOG_CONFIG} says"
        raise StartError(f"the engine did not start: {cause}; {where}") from error
    if log:
        log.unlink()


def _keep_log(scratch: Path, logging_config: dict[str, Any]) -> Path:
    """Let the engine's processes, which read the environment, log into a file besides."""
    log, chosen = scratch / "start.log", scratch / "logging.json"
    log.touch()
    config = copy.deepcopy(logging_config)
    kind = f"{StartLog.__module__}.{StartLog.__qualname__}"
    config["handlers"]["start"] = {"class": kind, "formatter": "vllm", "filename": str(log)}
    config["loggers"]["vllm"]["handlers"].append("start")
    chosen.write_text(json.dumps(config))
    os.environ[LOG_CONFIG] = str(chosen)
    return log


def _kept(log: Path) -> str:
    """A copy that outlives `scratch`."""
    handle, name = tempfile.mkstemp(prefix="unlearngate-start-", suffix=".log")
    os.close(handle)
    return str(shutil.copy(log, name))


def _cause(log: Path) -> str | None:
    """The last exception in the log that says more than that there was one."""
    lines = log.read_text(encoding="utf-8", errors="replace").split("\n")
    causes = []
    for number, line in enumerate(lines):
        found = _RAISED.search(line)
        if found and not _NO_CAUSE.search(found[2]):
            listed = _listed(lines[number + 1 :], line[: found.start() + 1]) if found[2].rstrip().endswith(":") else []
            causes.append(f"{' '.join([found[2].rstrip(), *listed]).rstrip('. ')} ({found[1]})")
    return causes[-1] if causes else None


def _listed(lines: Sequence[str], place: str) -> list[str]:
    """The lines that go on with a message, as it does where it ends with a colon: what was logged at the same place."""
    said: list[str] = []
    for line in lines:
        text = line.removeprefix(place).strip()
        if not line.startswith(place) or not text:
            break
        said.append(text)
    return said
