"""What was decided for one request: the forget sets in force, how strongly, and why."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from unlearngate.artefact import ForgetSet
from unlearngate.manifest import Strength
from unlearngate.server.contract.plan import Plan, Term

By = Literal["server", "key", "gateway", "request", "default"]


class InForce(NamedTuple):
    """One set, and who put it in force: of several the first, in the order in which `By` lists them."""

    forget_set: ForgetSet
    strength: Strength
    by: By


@dataclass(frozen=True, slots=True)
class Decision:
    """What one request gets, by name: {A, B} and {B, A} share one adapter."""

    in_force: tuple[InForce, ...]

    @property
    def sets(self) -> list[ForgetSet]:
        """The sets, in the order in which an adapter binds them."""
        return [held.forget_set for held in self.in_force]

    def plan(self, adapter_id: int) -> Plan:
        """What the engine is told, once the sets are bound to branches by this adapter; 0 for none."""
        composed = [held.strength for held in self.in_force if held.forget_set.manifest.kind == "uld"]
        terms = tuple(Term(branch, v.weight, v.gate_nats) for branch, v in enumerate(composed))
        # One row has one keep rule: the strictest that any of its sets asks for.
        return Plan(adapter_id, max((v.keep_ratio for v in composed), default=0.0), terms)

    def report(self) -> list[dict[str, Any]]:
        """For the response's body: what was in force, and by whom."""
        return [
            {
                "name": held.forget_set.name,
                "version": held.forget_set.manifest.version,
                "digest": held.forget_set.digest,
                **held.strength.model_dump(),
                "by": held.by,
            }
            for held in self.in_force
        ]

    def header(self) -> str:
        """For the response's `x-forget-sets`: `name@digest;weight=1;by=request, ...`, or `none`."""
        sets = [f"{held.forget_set.reference};weight={held.strength.weight:g};by={held.by}" for held in self.in_force]
        return ", ".join(sets) or "none"
