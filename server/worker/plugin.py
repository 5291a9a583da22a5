"""Our general plugin for vLLM, which runs it in each of its processes."""

from __future__ import annotations

import atexit
import multiprocessing.spawn
import os
import sys
from typing import NoReturn

from unlearngate.processes import leave_group_and_end_with_parent
from unlearngate.server.contract.branches import ARCHITECTURE
from unlearngate.server.contract.options import OWN_GROUP_VARIABLE


def register() -> None:
    """Register the served model class by name; it is imported only where it is served."""
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"unlearngate.server.worker.model:{ARCHITECTURE}")
    if os.environ.get(OWN_GROUP_VARIABLE) == "1":
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
