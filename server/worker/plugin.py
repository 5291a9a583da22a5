"""Our general plugin for vLLM, which runs it in each of its processes."""

from __future__ import annotations

import atexit
import multiprocessing.spawn
import os
import sys
from typing import Any, NoReturn

from unlearngate.processes import leave_group_and_end_with_parent
from unlearngate.server.contract.branches import ARCHITECTURE
from unlearngate.server.contract.options import OWN_GROUP_VARIABLE


def register() -> None:
    """Register the served model class: in our own server on a CPU itself, else by name, imported where it is served.

    To learn what a class that it knows by name can do, vLLM imports it in another process, which imports vLLM anew
    first, and it remembers that in a folder that a new container does not have. It does so to leave a GPU alone.
    """
    from vllm import ModelRegistry
    from vllm.platforms import current_platform

    ours = os.environ.get(OWN_GROUP_VARIABLE) == "1"
    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        served: Any = f"unlearngate.server.worker.model:{ARCHITECTURE}"
        if ours and current_platform.is_cpu():
            from unlearngate.server.worker.model import UnlearningForCausalLM as served
        ModelRegistry.register_model(ARCHITECTURE, served)
    if ours:
        leave_group_and_end_with_parent()
        end_without_teardown()
        from unlearngate.server.worker.compat import compile_definitions_behind_others

        compile_definitions_behind_others()


def end_without_teardown() -> None:
    """Let a spawned process end when its work is done: Python takes seconds to tear down vLLM's modules first."""
    leave = sys.exit

    def exit_at_once(code: object = None) -> NoReturn:
        if sys._getframe(1).f_code is not multiprocessing.spawn.spawn_main.__code__:
            leave(code)  # type: ignore[arg-type]
        atexit._run_exitfuncs()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code if isinstance(code, int) else 0)

    sys.exit = exit_at_once
