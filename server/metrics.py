"""Our own Prometheus metrics, counted in the HTTP process. GET /metrics also serves vLLM's.

Labels are bounded: sets come from the registry, codes and endings from docs/http.md. `contract/tally.py` has what the
engine's process counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from prometheus_client import Counter

if TYPE_CHECKING:
    from unlearngate.artefact import ForgetSet

REQUESTS = Counter("unlearngate_requests_total", "Requests by forget set in force ('none' if none was)", ["forget_set"])
ENDINGS = Counter("unlearngate_endings_total", "How admitted requests ended", ["finish"])
TOKENS = Counter("unlearngate_tokens_total", "Completion tokens by forget set in force", ["forget_set"])
GATE_TOKENS = Counter(
    "unlearngate_gate_tokens_total",
    "Completion tokens by forget set and its gate: open, closed or unknown (not counted in time)",
    ["forget_set", "gate"],
)
INSTEAD_ANSWERS = Counter(
    "unlearngate_instead_answers_total", "Answers that were what a forget set says instead, by set", ["forget_set"]
)
REFUSALS = Counter("unlearngate_refusals_total", "Requests answered with an error, by code", ["code"])
ADAPTER_LOADS = Counter("unlearngate_adapter_loads_total", "Combinations of forget sets loaded into the engine")
ADAPTER_EVICTIONS = Counter("unlearngate_adapter_evictions_total", "Combinations removed to make room for others")
CANARY_FAILURES = Counter(
    "unlearngate_canary_failures_total", "Versions that failed their canaries after they were in force", ["forget_set"]
)
AUDIT_LINES = Counter("unlearngate_audit_lines_total", "Lines written to the audit log")
AUDIT_FAILURES = Counter("unlearngate_audit_failures_total", "Lines that could not be written to the audit log")


def count_request(
    sets: Sequence[ForgetSet],
    finish: str,
    num_tokens: int,
    open_tokens: dict[str, int | None],
    instead_answers: dict[str, int | None],
) -> None:
    """Count an admitted request that has ended.

    Args:
        sets: in force.
        finish: how it ended.
        num_tokens: completion tokens.
        open_tokens: of the sets with a gate, None if not known.
        instead_answers: of the sets that say something instead, None if not known.
    """
    ENDINGS.labels(finish).inc()
    for name in [s.name for s in sets] or ["none"]:
        REQUESTS.labels(name).inc()
        TOKENS.labels(name).inc(num_tokens)
    for name, num_open in open_tokens.items():
        if num_open is None:
            GATE_TOKENS.labels(name, "unknown").inc(num_tokens)
        else:
            GATE_TOKENS.labels(name, "open").inc(num_open)
            GATE_TOKENS.labels(name, "closed").inc(num_tokens - num_open)
    for name, num_said in instead_answers.items():
        INSTEAD_ANSWERS.labels(name).inc(num_said or 0)
