"""vLLM's general plugin, which it runs in every one of its processes."""

from __future__ import annotations

import multiprocessing
import os

from unlearngate.server.branches import ARCHITECTURE

OWN_GROUP_VARIABLE = "UNLEARNGATE_OWN_GROUP"


def register() -> None:
    """Make the served model class known by name; it is imported only where it is served.

    In the engine's processes of our server, also leave the server's process group: a Ctrl-C in a terminal goes to the
    whole group and would end the engine at once, while the server still lets running streams finish.
    """
    from vllm import ModelRegistry

    if ARCHITECTURE not in ModelRegistry.get_supported_archs():
        ModelRegistry.register_model(ARCHITECTURE, f"unlearngate.server.model:{ARCHITECTURE}")
    if os.environ.get(OWN_GROUP_VARIABLE) == "1" and multiprocessing.parent_process() is not None:
        os.setpgid(0, 0)
