"""Which speculative decoding is served, and why no other is. Import-light."""

from __future__ import annotations

from typing import Any

from unlearngate.families import FAMILIES, Family

# Drafts that are looked up in the sequence's own tokens; on the V2 runner both names mean the same.
LOOKUPS = ("ngram", "ngram_gpu")
# Those of a model, which knows more than the sequence: what the target knows.
DRAFTERS = ("eagle", "eagle3")
_TRIED = ", ".join((*LOOKUPS, *DRAFTERS))
_REASONS = {
    "mtp": "vLLM has such modules for other architectures alone (DeepSeek, GLM, Qwen3-Next and others), of which none "
    "is a target here",
    "draft_model": "a second model beside the branches was never tried",
    "extract_hidden_states": "it writes the target's hidden states out",
}


def has_drafter(speculation: Any) -> bool:
    """Whether drafts come from a model: vLLM's `speculative_config`, or None."""
    return speculation is not None and speculation.method in DRAFTERS


def speculation_checks(config: Any, architecture: str) -> list[tuple[bool, str]]:
    """What would show draft tokens that the composition did not choose, and what was never tried.

    Args:
        config: vLLM's.
        architecture: the target's.

    Returns: whether each fails, and the reason for refusing it.
    """
    speculation = config.speculative_config
    if speculation is None:
        return []
    if not config.use_v2_model_runner:
        return [(True, "speculative decoding drops the logits processor on vLLM's V1 runner")]
    method, accepting = speculation.method, getattr(speculation, "rejection_sample_method", "standard")
    reason = _REASONS.get(method, "it was never tried")
    return [
        (
            method not in LOOKUPS + DRAFTERS,
            f"speculative decoding by {method!r} is not supported: {reason} (supported: {_TRIED})",
        ),
        (
            method in DRAFTERS and not FAMILIES.get(architecture, Family()).drafted,
            f"speculative decoding by {method!r} was never tried with a target of architecture {architecture!r}, with "
            f"which there is 'ngram' (tried: {', '.join(name for name, one in FAMILIES.items() if one.drafted)})",
        ),
        (
            getattr(speculation, "parallel_drafting", False),
            "a drafter that makes all its tokens at once (parallel_drafting) was never tried",
        ),
        (
            accepting == "synthetic",
            "rejection_sample_method is 'synthetic', which shows draft tokens that were not verified",
        ),
        (
            accepting not in ("standard", "synthetic"),
            f"rejection_sample_method is {accepting!r}, which was never tried (tried: standard)",
        ),
        (
            getattr(speculation, "num_speculative_tokens_per_batch_size", None) is not None
            or getattr(speculation, "enable_adaptive_verification", False),
            "a number of draft tokens that changes from step to step was never tried",
        ),
    ]
