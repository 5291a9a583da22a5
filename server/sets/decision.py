"""What was decided for one request: the forget sets in force, how strongly, and why."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple

from unlearngate.artefact import ForgetSet
from unlearngate.manifest import Strength, row_ratios
from unlearngate.server.contract.plan import Plan, Term, VerbatimSet

By = Literal["server", "key", "gateway", "request", "default"]


class InForce(NamedTuple):
    """One set, and who put it in force: of several the first, in the order in which `By` lists them.

    sentence has the token ids of what is said instead of an answer; empty: nothing is.
    """

    forget_set: ForgetSet
    strength: Strength
    by: By
    sentence: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Decision:
    """What one request gets, by name: {A, B} and {B, A} share one adapter."""

    in_force: tuple[InForce, ...]

    @property
    def sets(self) -> list[ForgetSet]:
        """The sets, by name."""
        return [held.forget_set for held in self.in_force]

    @property
    def bound(self) -> list[ForgetSet]:
        """The sets that need an adapter, in the order in which it binds them."""
        return [forget_set for forget_set in self.sets if forget_set.manifest.kind != "verbatim"]

    def plan(self, adapter_id: int) -> Plan:
        """What the engine is told, once the sets are bound to branches by this adapter; 0 for none."""
        branches = [held for held in self.in_force if held.forget_set.manifest.kind == "uld"]
        terms = tuple(
            Term(
                branch,
                held.strength.weight,
                held.strength.gate_nats,
                lowers=held.forget_set.manifest.rule == "lower",
                sentence=held.sentence,
            )
            for branch, held in enumerate(branches)
        )
        # One row has one keep rule and one tail cut: of each the strictest that any of its sets asks for.
        keep_ratio, tail_ratio = row_ratios((held.forget_set.manifest.rule, held.strength) for held in branches)
        verbatim = tuple(
            VerbatimSet(forget_set.digest, str(forget_set.folder))
            for forget_set in self.sets
            if forget_set.manifest.kind == "verbatim"
        )
        return Plan(
            adapter_id,
            keep_ratio,
            terms,
            tail_ratio=tail_ratio,
            verbatim=verbatim,
            adapts_target=len(branches) < len(self.bound),
        )

    @property
    def speaking(self) -> list[str]:
        """The names of the sets that say something instead of answers."""
        return [held.forget_set.name for held in self.in_force if held.sentence]

    def report(self, said: Mapping[str, bool | None] | None = None) -> list[dict[str, Any]]:
        """For the response's body: what was in force, and by whom.

        Args:
            said: by a speaking set's name, whether an answer was its sentence, None if that is not known.
        """
        said = said or {}
        return [
            {
                "name": held.forget_set.name,
                "version": held.forget_set.manifest.version,
                "digest": held.forget_set.digest,
                **held.strength.model_dump(),
                "by": held.by,
                **({"instead": said[held.forget_set.name]} if held.forget_set.name in said else {}),
            }
            for held in self.in_force
        ]

    def header(self, said: Mapping[str, bool | None] | None = None) -> str:
        """For the response's `x-forget-sets`: `name@digest;weight=1;by=request, ...`, or `none`.

        A set whose sentence is known to have been said, as in `report`, has `;instead` at its end.
        """
        said = said or {}
        sets = [
            f"{held.forget_set.reference};weight={held.strength.weight:g};by={held.by}"
            + (";instead" if said.get(held.forget_set.name) else "")
            for held in self.in_force
        ]
        return ", ".join(sets) or "none"
