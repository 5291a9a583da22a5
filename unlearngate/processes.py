"""The processes of a server's engine: what they are to the server, and how one begins without importing everything."""

from __future__ import annotations

import ctypes
import gc
import json
import logging.config
import multiprocessing
import multiprocessing.context
import os
import signal
import sys
import threading
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

_PR_SET_PDEATHSIG = 1  # linux/prctl.h
LOG_CONFIG = "VLLM_LOGGING_CONFIG_PATH"


def leave_group_and_end_with_parent() -> None:
    """Detach an engine process from the server's signals, and end it with its parent; do nothing if it has none.

    It leaves the server's process group: a Ctrl-C in a terminal goes to the whole group and would end the engine at
    once, while the server still lets running streams finish. It ends with its parent because a killed server cannot
    stop its engine: vLLM leaves the engine waiting for ever, with the memory that the next one needs.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    assert parent.pid
    os.setpgid(0, 0)
    end_with_parent(parent.pid)


def end_with_parent(parent: int) -> None:
    """On Linux, kill this process when `parent`, the process id of the one that started it, ends."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent:  # it ended before prctl
            os._exit(1)


def may_fork() -> bool:
    """Whether a copy of this process would find nothing that another thread of Python's left half done.

    Threads of libraries are their own care: numpy's and the tokenizers' make new ones, or none, in a copy. OpenMP waits
    there for ever for those that it had, so a process that is to be copied has `use_one_thread` first.
    """
    return sys.platform == "linux" and threading.active_count() == 1


def use_one_thread() -> int:
    """Keep torch from making OpenMP threads in this process, and return how many it would have used."""
    num_threads = torch.get_num_threads()
    torch.set_num_threads(1)
    return num_threads


def collect_from_now() -> None:
    """Let Python's collector begin, and leave to itself what there is: in copies of this process, too."""
    gc.freeze()
    gc.enable()


class ForkContext(multiprocessing.context.ForkContext):
    """Starts engine processes as copies of this one, which has imported vLLM already: seconds for each that spawns.

    A copy differs from a spawned process in what is undone here: it would have the server's signal handlers, its
    listening socket, which then takes connections that nobody answers, its logging, and its one thread.
    """

    def __init__(self, num_threads: int, unwanted: Sequence[int] = ()) -> None:
        """Prepare copies.

        Args:
            num_threads: torch's, in a copy.
            unwanted: file descriptors that a copy closes.
        """
        super().__init__()
        self._changes = {"num_threads": num_threads, "unwanted": unwanted}

    def Process(self, *args: Any, **kwargs: Any) -> multiprocessing.context.ForkProcess:  # type: ignore[override]
        """As `multiprocessing.Process`."""
        process = _Copy(*args, **kwargs)
        process.__dict__.update(self._changes)
        return process


class _Copy(multiprocessing.context.ForkProcess):
    num_threads: int
    unwanted: Sequence[int]

    def run(self) -> None:
        leave_group_and_end_with_parent()
        for number, default in ((signal.SIGTERM, signal.SIG_DFL), (signal.SIGINT, signal.default_int_handler)):
            if signal.getsignal(number) is not signal.SIG_IGN:
                signal.signal(number, default)
        for descriptor in self.unwanted:
            os.close(descriptor)
        if path := os.environ.get(LOG_CONFIG):
            logging.config.dictConfig(json.loads(Path(path).read_text()))
        torch.set_num_threads(self.num_threads)
        super().run()
