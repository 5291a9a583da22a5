"""How the engine is started: vLLM options that make forgetting work, in one place for the server and the tests."""

from __future__ import annotations

from typing import Any

from unlearngate.errors import UnsupportedDeploymentError
from unlearngate.families import TARGET_ARCHITECTURES, refusal
from unlearngate.server.contract.branches import ARCHITECTURE, CONFIG_FIELD, BranchOptions
from unlearngate.server.contract.plan import ensure_key
from unlearngate.server.contract.refusals import PROCESSOR

OWN_GROUP_VARIABLE = "UNLEARNGATE_OWN_GROUP"  # with it, the plugin puts the engine's processes in their own groups


def engine_options(branches: BranchOptions, *, max_rank: int, max_loaded: int, max_known: int) -> dict[str, Any]:
    """VLLM engine arguments, by EngineArgs' names, that serve a target with forget sets.

    Sets this launch's signing key in the environment, for the engine's processes to inherit.

    Args:
        branches: where LoRA goes.
        max_rank: the largest LoRA rank.
        max_loaded: combinations of sets that one batch may hold; more wait their turn.
        max_known: combinations kept in memory.

    Raises: UnsupportedDeploymentError if the target's architecture was never tried.
    """
    if branches.target_architecture not in TARGET_ARCHITECTURES:
        raise UnsupportedDeploymentError(refusal(branches.target_architecture))
    ensure_key()
    options: dict[str, Any] = {
        "hf_overrides": {"architectures": [ARCHITECTURE], CONFIG_FIELD: branches.to_config()},
        "logits_processors": [PROCESSOR],
        "logprobs_mode": "processed_logprobs",
    }
    if branches.lora_target_modules():  # none for sets of kind `verbatim` alone
        options |= {
            "enable_lora": True,
            "max_lora_rank": max_rank,
            "max_loras": max_loaded,
            "max_cpu_loras": max(max_loaded, max_known),
            "lora_target_modules": branches.lora_target_modules(),
        }
    return options
