"""Which forget sets are in force for a request, and how strongly.

What a request says, in order of precedence:
    field `forget_sets`                 absent or null: the next line; []: none; names or {"name", "weight", ...}: those
    `model` written NAME:forget=A+B     those; NAME:forget= is none
    neither                             the deployment's default sets
Saying it in both places is an error: two answers to one question.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from unlearngate.artefact import ForgetSet
from unlearngate.errors import InvalidRequestError
from unlearngate.manifest import Bounds, Strength
from unlearngate.server.plan import Plan, Term
from unlearngate.server.registry import Registry

MODEL_SEPARATOR = ":forget="
_SHAPE = 'forget_sets must be a list of names or of objects {"name", "weight", "keep_ratio", "gate_nats"}'


class ForgetSetChoice(BaseModel):
    """One forget set, as a request names it; what is left out is the set's recommended value."""

    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)

    name: str
    weight: float | None = Field(default=None, description="times the assistant's logits are subtracted")
    keep_ratio: float | None = Field(default=None, description="share of the best probability that a token needs")
    gate_nats: float | None = Field(default=None, description="evidence from which the set acts; 0 = everywhere")


@dataclass(frozen=True, slots=True)
class Decision:
    """What one request gets: the sets with their strengths; those of kind `uld` are in branch order."""

    in_force: tuple[tuple[ForgetSet, Strength], ...]

    @property
    def sets(self) -> list[ForgetSet]:
        """The sets, in the order in which an adapter binds them."""
        return [forget_set for forget_set, _ in self.in_force]

    def plan(self, adapter_id: int) -> Plan:
        """What the engine is told, once the sets are bound to branches by this adapter; 0 for none."""
        composed = [v for forget_set, v in self.in_force if forget_set.manifest.kind == "uld"]
        terms = tuple(Term(branch, v.weight, v.gate_nats) for branch, v in enumerate(composed))
        # One row has one keep rule: the strictest that any of its sets asks for.
        return Plan(adapter_id, max((v.keep_ratio for v in composed), default=0.0), terms)

    def report(self) -> list[dict[str, Any]]:
        """For the response's body: what was in force."""
        return [
            {
                "name": forget_set.name,
                "version": forget_set.manifest.version,
                "digest": forget_set.digest,
                **strength.model_dump(),
            }
            for forget_set, strength in self.in_force
        ]

    def header(self) -> str:
        """For the response's `x-forget-sets`: `name@digest;weight=1, ...`, or `none`."""
        return ", ".join(f"{s.reference};weight={v.weight:g}" for s, v in self.in_force) or "none"


class Policy:
    """Turns what a request says into a Decision, or refuses it with a reason."""

    def __init__(self, registry: Registry, *, served_name: str, num_branches: int, default_sets: Sequence[str]) -> None:
        self.registry = registry
        self.served_name = served_name
        self.default_sets = tuple(default_sets)
        self._num_branches = num_branches
        if MODEL_SEPARATOR in served_name:
            raise InvalidRequestError(f"a model cannot be called {served_name!r}: {MODEL_SEPARATOR!r} begins its sets")
        self.decide(None, None)  # a default that cannot be honoured must not wait for its first request

    def decide(self, model: str | None, choices: Sequence[ForgetSetChoice | str] | None) -> Decision:
        """Decide one request.

        Raises: InvalidRequestError (400) or UnknownForgetSetError (404) with what was expected and got.
        """
        named_by_model = self._sets_in_model(model)
        if named_by_model is not None and choices is not None:
            raise InvalidRequestError(
                f"model {model!r} and forget_sets both name forget sets; name them in one place", param="forget_sets"
            )
        if choices is None:
            choices = self.default_sets if named_by_model is None else named_by_model
        chosen = [ForgetSetChoice(name=c) if isinstance(c, str) else c for c in choices]
        self._check_count(chosen)
        # Branch order is by name, so that {A, B} and {B, A} share one adapter.
        return Decision(tuple(self._with_strength(c) for c in sorted(chosen, key=lambda c: c.name)))

    def _sets_in_model(self, model: str | None) -> list[str] | None:
        if model is None or model == self.served_name:
            return None
        name, separator, sets = model.partition(MODEL_SEPARATOR)
        if name != self.served_name:
            raise InvalidRequestError(
                f"model {model!r} is not served; this server has {self.served_name!r}, or "
                f"'{self.served_name}{MODEL_SEPARATOR}A+B' with forget sets A and B",
                param="model",
                http_status=404,
                code="model_not_found",
            )
        if not separator:
            return None
        return sets.split("+") if sets else []

    def _check_count(self, chosen: Sequence[ForgetSetChoice]) -> None:
        names = [c.name for c in chosen]
        if len(set(names)) != len(names):
            raise InvalidRequestError(f"forget_sets names a set twice: {', '.join(names)}", param="forget_sets")
        self._check_kinds([self.registry.get(name) for name in names])

    def _check_kinds(self, sets: Sequence[ForgetSet]) -> None:
        uld = [s.name for s in sets if s.manifest.kind == "uld"]
        undial = [s.name for s in sets if s.manifest.kind == "undial"]
        if len(uld) > self._num_branches:
            raise InvalidRequestError(
                f"at most {self._num_branches} forget sets of kind 'uld' can be in force in one request, "
                f"got {len(uld)}: {', '.join(uld)}; start the server with --max-sets-per-request {len(uld)} to allow "
                "it",
                param="forget_sets",
            )
        if len(undial) > 1:
            raise InvalidRequestError(
                "at most one forget set of kind 'undial' can be in force in one request, because each was trained as "
                f"the only change to the target; got {len(undial)}: {', '.join(undial)}",
                param="forget_sets",
            )
        if undial and uld and self.registry.tap_layer:
            raise InvalidRequestError(
                f"forget set {undial[0]!r} of kind 'undial' changes what the assistant of {uld[0]!r} starts from, the "
                f"target's hidden states before layer {self.registry.tap_layer}; name one of them, or use a server "
                "whose assistants start at the embeddings",
                param="forget_sets",
            )

    def _with_strength(self, choice: ForgetSetChoice) -> tuple[ForgetSet, Strength]:
        forget_set = self.registry.get(choice.name)
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
        return forget_set, Strength(**values)


def parse_choices(value: object) -> list[ForgetSetChoice] | None:
    """Read the request field `forget_sets`.

    Raises: InvalidRequestError that says what was expected and got.
    """
    if value is None:
        return None
    if not isinstance(value, list):
        raise InvalidRequestError(f"{_SHAPE}, got {_shown(value)}", param="forget_sets")
    return [_parse_choice(index, item) for index, item in enumerate(value)]


def _parse_choice(index: int, item: object) -> ForgetSetChoice:
    if isinstance(item, ForgetSetChoice):
        return item
    if isinstance(item, str):
        return ForgetSetChoice(name=item)
    if not isinstance(item, dict):
        raise InvalidRequestError(f"{_SHAPE}, got {_shown(item)} at position {index}", param="forget_sets")
    try:
        return ForgetSetChoice.model_validate(item)
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(str(part) for part in first["loc"])
        raise InvalidRequestError(
            f"forget_sets[{index}].{where}: {first['msg']}, got {_shown(first['input'])}", param="forget_sets"
        ) from None


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:80]}..."
