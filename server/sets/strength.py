"""How strongly a set acts that a request names: inside its bounds, and what is required stays as it is."""

from __future__ import annotations

from collections.abc import Mapping

from unlearngate.artefact import ForgetSet
from unlearngate.errors import ForbiddenError, InvalidRequestError
from unlearngate.manifest import Bounds, Strength
from unlearngate.server.sets.choices import ForgetSetChoice
from unlearngate.server.sets.decision import InForce

REQUIRED_CODE = "required_forget_set"


def strength_of(forget_set: ForgetSet, choice: ForgetSetChoice) -> Strength:
    """What the request asks for, and the set's recommended values for what it leaves out.

    Raises: InvalidRequestError if a value is outside the manifest's bounds.
    """
    manifest = forget_set.manifest
    values: dict[str, float] = {}
    for field in Strength.model_fields:
        asked: float | None = getattr(choice, field)
        bounds: Bounds = getattr(manifest.bounds, field)
        if asked is not None and not bounds.low <= asked <= bounds.high:
            raise InvalidRequestError(
                f"{field} of forget set {choice.name!r} must be between {bounds.low:g} and {bounds.high:g} "
                f"(its manifest's bounds), got {asked:g}",
                param="forget_sets",
            )
        values[field] = getattr(manifest.recommended, field) if asked is None else asked
    return Strength(**values)


def refuse_weakening(forget_set: ForgetSet, strength: Strength, required: Mapping[str, InForce]) -> None:
    """Refuse what could take from a required set: less of itself, another version, or another keep rule for the row.

    A larger keep_ratio of a contrast set leaves fewer tokens by its ratio and more by its rank (composition.md), so
    neither direction is the safe one. A larger one of a lower set only cuts more of the row, and a smaller one of a set
    that is not required takes nothing from those that are: the largest counts. From the logprobs z1 and z2 at weights 1
    and 2 anybody computes the target's: 2 z1 - z2.

    Raises: ForbiddenError saying what is allowed.
    """
    recommended, rule = forget_set.manifest.recommended, forget_set.manifest.rule
    held = required.get(forget_set.name)
    problem = None
    if rule == "contrast" and strength.keep_ratio != recommended.keep_ratio:
        problem = (
            f"keep_ratio of forget set {forget_set.name!r} must stay {recommended.keep_ratio:g}, got "
            f"{strength.keep_ratio:g}: all sets in force share one keep rule, and {', '.join(sorted(required))} must "
            "be in force"
        )
    elif held and rule == "lower" and strength.keep_ratio < recommended.keep_ratio:
        problem = (
            f"keep_ratio of forget set {forget_set.name!r}, which is required, must be at least "
            f"{recommended.keep_ratio:g}, got {strength.keep_ratio:g}: less of the answers' tail would be cut"
        )
    elif held and held.forget_set.digest != forget_set.digest:
        problem = f"{held.forget_set.reference} is required, not another version of it, got {forget_set.reference}"
    elif held and strength.weight != recommended.weight:
        problem = (
            f"weight of forget set {forget_set.name!r}, which is required, must stay {recommended.weight:g}, got "
            f"{strength.weight:g}: answers at two weights give away the target's own logprobs"
        )
    elif held and strength.gate_nats > recommended.gate_nats:
        problem = (
            f"gate_nats of forget set {forget_set.name!r}, which is required, must be at most "
            f"{recommended.gate_nats:g}, got {strength.gate_nats:g}"
        )
    if problem:
        raise ForbiddenError(problem, param="forget_sets", code=REQUIRED_CODE)
