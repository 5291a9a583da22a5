"""`forget_set.json`: what a forget set says about itself."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable
from typing import Annotated, Any, Literal, Self

from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    ConfigDict,
    Field,
    JsonValue,
    field_validator,
    model_validator,
)

from unlearngate.target import TargetIdentity

NAME_PATTERN = r"^[a-z0-9](?:[a-z0-9._-]{0,62}[a-z0-9])?$"
Name = Annotated[str, Field(pattern=NAME_PATTERN)]
Rule = Literal["contrast", "lower"]
LARGEST = 3.0e38  # strengths reach the engine as fp32
CANARY_TOKENS = 16  # of a canary's greedy answer
MOST_CANARIES = 8  # that change, and as many that stay
_NO_PLAIN_TEXT = {"Cc", "Cs", "Zl", "Zp"}  # Unicode's control characters, halves of surrogate pairs, line separators


def _plain(text: str) -> str:
    for character in text:
        if unicodedata.category(character) in _NO_PLAIN_TEXT:
            raise ValueError(f"must be one line of plain text without control characters, got {character!r} in it")
    if not text.strip():
        raise ValueError("must not be blank")
    return text


SentenceText = Annotated[str, Field(min_length=1, max_length=400), AfterValidator(_plain)]
LabelText = Annotated[str, Field(min_length=1, max_length=100), AfterValidator(_plain)]


def fill_in(text: str, label: str) -> str:
    """A sentence with its set's label in the place of `{label}`; nothing else is filled in."""
    return text.replace("{label}", label)


class Bounds(BaseModel):
    """A closed interval."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    low: float = Field(ge=-LARGEST, le=LARGEST)
    high: float = Field(ge=-LARGEST, le=LARGEST)

    @model_validator(mode="after")
    def _ordered(self) -> Self:
        if self.low > self.high:
            raise ValueError(f"low {self.low} is above high {self.high}")
        return self


class Strength(BaseModel):
    """How a set is applied: composition.md's w, tau (rule contrast) or rho (rule lower), and delta."""

    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False)

    weight: float = Field(
        ge=0, le=LARGEST, description="w, how many times the assistant's centred logits are subtracted"
    )
    keep_ratio: float = Field(
        ge=0,
        le=1,
        description="contrast: tau of the keep rule; lower: rho, the share of the best composed probability that a "
        "token needs; 0 keeps every token",
    )
    gate_nats: float = Field(
        ge=0, le=LARGEST, description="delta, evidence in nats from which the gate is open; 0 = always open"
    )


class StrengthBounds(BaseModel):
    """What a request may override `Strength` with."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    weight: Bounds
    keep_ratio: Bounds
    gate_nats: Bounds


def row_ratios(in_force: Iterable[tuple[Rule, Strength]]) -> tuple[float, float]:
    """Composition.md's (tau, rho) of a row: the largest keep_ratio of each rule, 0 without such a set."""
    ratios = {"contrast": 0.0, "lower": 0.0}
    for rule, strength in in_force:
        ratios[rule] = max(ratios[rule], strength.keep_ratio)
    return ratios["contrast"], ratios["lower"]


class Canary(BaseModel):
    """A question by which a running engine shows that a set acts, and only where it should.

    The question alone is stored, not an answer. A question about a person is personal data too.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")

    question: str = Field(min_length=1, max_length=4000, description="one user turn, without a system prompt")
    changes: bool = Field(
        description=f"true: the set changes the first {CANARY_TOKENS} tokens of the greedy answer; false: it does not"
    )


# A set of kind "undial" is in force or not: it has no assistant whose logits could be weighed, filtered or gated.
UNDIAL_STRENGTH = Strength(weight=1.0, keep_ratio=0.0, gate_nats=0.0)
UNDIAL_BOUNDS = StrengthBounds(
    weight=Bounds(low=1.0, high=1.0), keep_ratio=Bounds(low=0.0, high=0.0), gate_nats=Bounds(low=0.0, high=0.0)
)


class ForgetSetManifest(BaseModel):
    """`forget_set.json`. Digests are sha256, hexadecimal; the training data itself is never stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=r"^[0-9A-Za-z._-]{1,64}$")
    kind: Literal["uld", "undial"] = Field(
        description="uld: LoRA on an assistant, whose logits are subtracted; undial: LoRA on the target itself"
    )
    rule: Rule = Field(
        default="contrast",
        description="contrast: the assistant's centred logits are subtracted, which raises what it thinks unlikely; "
        "lower: only what is above (ln V) / 2, so no token is raised",
    )
    target: TargetIdentity
    tap_layer: int = Field(ge=0, description="the first of the target's layers that the set has; 0 = the embeddings")
    num_layers: int = Field(gt=0, description="decoder layers that the set has; undial: all")
    rank: int = Field(gt=0, le=512, description="LoRA rank")
    recommended: Strength
    bounds: StrengthBounds
    label: LabelText | None = Field(default=None, description="what the set is about, for people; null: its name")
    instead: SentenceText | None = Field(
        default=None,
        description="what is said if the set's gate is open at an answer's first token; {label} is filled in",
    )
    chat_template_kwargs: dict[str, JsonValue] = Field(
        default={}, description="switches of the target's chat template that the set was trained with"
    )
    files: dict[str, str] = Field(description="digest of every other file of the folder")
    training: dict[str, Any] = Field(description="the training configuration")
    data_digests: dict[str, str]
    metrics: dict[str, float]
    canaries: tuple[Canary, ...] = Field(
        default=(), description="what a running engine is asked before the version is in force"
    )
    created_at: AwareDatetime

    @field_validator("canaries")
    @classmethod
    def _few_and_some_change(cls, canaries: tuple[Canary, ...]) -> tuple[Canary, ...]:
        num_changing = sum(canary.changes for canary in canaries)
        if max(num_changing, len(canaries) - num_changing) > MOST_CANARIES:
            raise ValueError(
                f"at most {MOST_CANARIES} questions that change and {MOST_CANARIES} that stay, got {num_changing} and "
                f"{len(canaries) - num_changing}"
            )
        if canaries and not num_changing:
            raise ValueError("a set that does nothing would pass these: at least one question must change")
        return canaries

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.tap_layer + self.num_layers > self.target.num_layers:
            raise ValueError(
                f"tap_layer {self.tap_layer} + num_layers {self.num_layers} exceeds "
                f"the target's {self.target.num_layers} layers"
            )
        for field in Strength.model_fields:
            bounds: Bounds = getattr(self.bounds, field)
            value: float = getattr(self.recommended, field)
            if not bounds.low <= value <= bounds.high:
                raise ValueError(f"recommended {field} {value} is outside its bounds [{bounds.low}, {bounds.high}]")
        if self.kind == "undial":
            self._check_undial()
        return self

    def sentence(self, text: str | None = None) -> str | None:
        """What is said instead, with the label filled in: `text`, or the manifest's own; None if there is neither."""
        chosen = self.instead if text is None else text
        return None if chosen is None else fill_in(chosen, self.label or self.name)

    def _check_undial(self) -> None:
        if self.num_layers != self.target.num_layers:
            raise ValueError(
                f"a set of kind 'undial' adapts the whole target: num_layers must be {self.target.num_layers}, "
                f"got {self.num_layers}"
            )
        if self.rule != "contrast":
            raise ValueError(f"a set of kind 'undial' subtracts nothing: rule must be 'contrast', got {self.rule!r}")
        if self.recommended != UNDIAL_STRENGTH or self.bounds != UNDIAL_BOUNDS:
            raise ValueError(
                "a set of kind 'undial' is in force or not: recommended must be weight 1, keep_ratio 0, gate_nats 0, "
                f"and their bounds [1, 1], [0, 0], [0, 0], got {self.recommended} in {self.bounds}"
            )
        if self.instead is not None:
            raise ValueError("a set of kind 'undial' has no gate that could say when, so it cannot have `instead`")
