"""vLLM's general plugin, which it runs in every one of its processes."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import signal
import sys

from unlearngate.server.engine.branches import ARCHITECTURE
from unlearngate.server.engine.options import OWN_GROUP_VARIABLE

_PR_SET_PDEATHSIG = 1  # linux/prctl.h


def register() -> None:
    """Make the served model class known by name; it is imported only where it is served."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"unlearngate.server.worker.model:{ARCHITECTURE}")
    if os.environ.get(OWN_GROUP_VARIABLE) == "1":
        leave_group_and_end_with_parent()


def leave_group_and_end_with_parent() -> None:
    """What the engine's processes of our server do about signals; nothing in a process that nobody started so.

    They leave the server's process group: a Ctrl-C in a terminal goes to the whole group and would end the engine at
    once, while the server still lets running streams finish. And they end with the process that started them: a server
    that was killed cannot stop its engine, which vLLM leaves waiting for ever, with the memory that the next one needs.
    """
    parent = multiprocessing.parent_process()
    if parent is None:
        return
    os.setpgid(0, 0)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != parent.pid:  # it ended before that
            os._exit(1)
