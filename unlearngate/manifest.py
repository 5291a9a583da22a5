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
LEAST_LETTERS = 24  # of what a `verbatim` set withholds: shorter runs are words that anybody uses
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


class Windows(BaseModel):
    """What a `verbatim` set keeps from being said, and how its seeds were made (passages.py)."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    letters: int = Field(
        ge=LEAST_LETTERS, le=10_000, description="a run of so many letters of a text never comes out; shorter ones may"
    )
    seed_letters: int = Field(ge=LEAST_LETTERS // 2, le=32, description="letters of a window, of which a seed is made")
    hash: Literal["blake2b-mix32"] = Field(description="how a seed is made of a window's letters")
    salt: str = Field(pattern=r"^[0-9a-f]{16}$", description="the set's own 64 bits, hexadecimal, mixed into each seed")

    @model_validator(mode="after")
    def _a_long_token_has_a_window(self) -> Self:
        # A token that goes from no run to a whole one then has a window of its own: see server/worker/withheld.py.
        if 2 * self.seed_letters > self.letters + 1:
            raise ValueError(
                f"seed_letters must be at most half of letters {self.letters}, rounded up, got {self.seed_letters}"
            )
        return self

    @property
    def salt_number(self) -> int:
        """The salt as a number."""
        return int(self.salt, 16)


# A set of kind "undial" or "verbatim" is in force or not: it has no assistant to be weighed, filtered or gated.
FIXED_STRENGTH = Strength(weight=1.0, keep_ratio=0.0, gate_nats=0.0)
FIXED_BOUNDS = StrengthBounds(
    weight=Bounds(low=1.0, high=1.0), keep_ratio=Bounds(low=0.0, high=0.0), gate_nats=Bounds(low=0.0, high=0.0)
)


class ForgetSetManifest(BaseModel):
    """`forget_set.json`. Digests are sha256, hexadecimal; the training data itself is never stored."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    format: Literal[1] = 1
    name: str = Field(pattern=NAME_PATTERN)
    version: str = Field(pattern=r"^[0-9A-Za-z._-]{1,64}$")
    kind: Literal["uld", "undial", "verbatim"] = Field(
        description="uld: LoRA on an assistant, whose logits are subtracted; undial: LoRA on the target itself; "
        "verbatim: texts of which no long run is said, by any target"
    )
    rule: Rule = Field(
        default="contrast",
        description="contrast: the assistant's centred logits are subtracted, which raises what it thinks unlikely; "
        "lower: only what is above (ln V) / 2, so no token is raised",
    )
    target: TargetIdentity | None = Field(description="what the set was trained on; verbatim: null, it fits any target")
    tap_layer: int = Field(ge=0, description="the first of the target's layers that the set has; 0 = the embeddings")
    num_layers: int = Field(ge=0, description="decoder layers that the set has; undial: all; verbatim: 0")
    rank: int = Field(ge=0, le=512, description="LoRA rank; verbatim: 0")
    windows: Windows | None = Field(
        default=None,
        exclude_if=lambda windows: windows is None,  # the manifests of other kinds stay what they were
        description="verbatim: what is withheld, and how the seeds were made",
    )
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
        for field in Strength.model_fields:
            bounds: Bounds = getattr(self.bounds, field)
            value: float = getattr(self.recommended, field)
            if not bounds.low <= value <= bounds.high:
                raise ValueError(f"recommended {field} {value} is outside its bounds [{bounds.low}, {bounds.high}]")
        if self.kind != "uld":
            self._check_fixed()
        if self.kind == "verbatim":
            self._check_verbatim()
        else:
            self._check_layers()
        return self

    @property
    def made_for(self) -> TargetIdentity:
        """The target that a set with LoRA was trained on."""
        assert self.target is not None, "a set of kind 'verbatim' has no target"
        return self.target

    def sentence(self, text: str | None = None) -> str | None:
        """What is said instead, with the label filled in: `text`, or the manifest's own; None if there is neither."""
        chosen = self.instead if text is None else text
        return None if chosen is None else fill_in(chosen, self.label or self.name)

    def _check_layers(self) -> None:
        """What holds for sets with LoRA."""
        if self.target is None or self.windows is not None:
            raise ValueError(f"a set of kind {self.kind!r} needs a target, and has no windows")
        for field in ("num_layers", "rank"):
            if getattr(self, field) < 1:
                raise ValueError(f"{field} must be at least 1, got {getattr(self, field)}")
        if self.tap_layer + self.num_layers > self.target.num_layers:
            raise ValueError(
                f"tap_layer {self.tap_layer} + num_layers {self.num_layers} exceeds "
                f"the target's {self.target.num_layers} layers"
            )
        if self.kind == "undial" and self.num_layers != self.target.num_layers:
            raise ValueError(
                f"a set of kind 'undial' adapts the whole target: num_layers must be {self.target.num_layers}, "
                f"got {self.num_layers}"
            )

    def _check_fixed(self) -> None:
        """What holds for sets that are in force or not."""
        if self.rule != "contrast":
            raise ValueError(
                f"a set of kind {self.kind!r} subtracts nothing: rule must be 'contrast', got {self.rule!r}"
            )
        if self.recommended != FIXED_STRENGTH or self.bounds != FIXED_BOUNDS:
            raise ValueError(
                f"a set of kind {self.kind!r} is in force or not: recommended must be weight 1, keep_ratio 0, "
                f"gate_nats 0, and their bounds [1, 1], [0, 0], [0, 0], got {self.recommended} in {self.bounds}"
            )
        if self.instead is not None:
            raise ValueError(
                f"a set of kind {self.kind!r} has no gate that could say when, so it cannot have `instead`"
            )

    def _check_verbatim(self) -> None:
        if self.windows is None:
            raise ValueError("a set of kind 'verbatim' needs windows: what is withheld, and how its seeds were made")
        if self.target is not None or self.tap_layer or self.num_layers or self.rank:
            raise ValueError(
                "a set of kind 'verbatim' fits any target: target must be null, tap_layer, num_layers and rank 0"
            )
        if self.canaries or self.chat_template_kwargs:
            raise ValueError("a set of kind 'verbatim' was not trained: it has no canaries and no chat_template_kwargs")
