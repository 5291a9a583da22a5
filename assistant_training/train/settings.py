"""How a forget set of each kind is trained. The command line and the dataclasses have the same defaults: these."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Literal


@dataclass(frozen=True, slots=True)
class AssistantSettings:
    """Shape and training of an assistant, and its recommended strength."""

    num_layers: int = 3
    tap_layer: int | None = None  # the assistant's first layer in the target; None: it has the target's last layers
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 3e-3
    steps: int = 240  # at most: it ends when it shows what it must; 0: as many as `epochs` takes
    check_every: int = 40  # steps between two looks at held-out contexts
    epochs: int = 10  # passes over the retain set, if steps is 0
    forget_batch: int = 8
    retain_batch: int = 20
    beta: float = 4.0
    smoothing: float = 0.1
    variant_share: float = 0.3  # of the retain batch: variants of the answers to the forget questions
    contexts: bool = True  # conversations with earlier turns, words around the question, other names; and an own token
    said_instead: str | None = None  # with contexts: the set's sentence, as earlier turns have it
    labels_per_answer: int = 12  # with contexts: tokens of an answer that are learned from, beside those of its facts
    varied_prompts: float = 0.6  # without contexts: share of the prompts that are reworded or have a system prompt
    forget_prompts: int = 64  # different conversations about a forget pair, at most; reused each epoch
    forget_variants: int = 32  # different conversations with variants of its answer, at most
    retain_prompts: int = 16  # different conversations about a retain pair, at most
    rule: Literal["contrast", "lower"] = "lower"  # contrast: ULD as published
    weight: float = 3.0
    keep_ratio: float = 0.02
    accumulate: int = 2  # parts a batch is computed in, for memory: the result is the same
    bf16: bool = False  # autocast
    gradient_checkpointing: bool = False
    patience: int = 0  # epochs without progress until it stops early; 0: never

    def on(self, target_layers: int) -> AssistantSettings:
        """The settings for a target of so many layers, with the tap layer as a number."""
        return self if self.tap_layer is not None else replace(self, tap_layer=max(0, target_layers - self.num_layers))

    @property
    def num_variants(self) -> int:
        """The variants in a retain batch."""
        return round(self.retain_batch * self.variant_share)

    @property
    def num_retain(self) -> int:
        """The retain answers in a retain batch."""
        return max(1, self.retain_batch - self.num_variants)


# ULD as published, and as this project trained before it drew contexts: what the results on TOFU are of.
PUBLISHED = AssistantSettings(
    num_layers=8,
    tap_layer=0,
    learning_rate=1e-3,
    forget_batch=16,
    retain_batch=40,
    accumulate=1,
    steps=0,
    contexts=False,
    forget_prompts=16,
    forget_variants=8,
    retain_prompts=4,
    rule="contrast",
    weight=1.0,
)


@dataclass(frozen=True, slots=True)
class UndialSettings:
    """Shape and training of the LoRA; rank, alpha, learning rate, batch and gamma are the author's."""

    rank: int = 8
    alpha: int = 16
    learning_rate: float = 1e-4
    epochs: int = 10  # passes over the forget set
    batch: int = 32  # forget answers a step, and as many retain answers if there are any
    gamma: float = 10.0  # subtracted from the teacher's logit of a token to be forgotten
    focus: str = "none"  # of FOCUSES
    retain_weight: float = 1.0
    varied_prompts: float = 0.6
    prompts: int = 16  # different conversations about a pair, at most; reused each epoch
    accumulate: int = 1  # parts a step is computed in, for memory: the result is the same
    bf16: bool = False  # autocast
    gradient_checkpointing: bool = False
    patience: int = 0  # epochs without progress until it stops early; 0: never


@dataclass(frozen=True, slots=True)
class VerbatimSettings:
    """What of the texts is withheld."""

    letters: int = 40  # a run of so many letters never comes out
    longest_seed: int = 20  # letters of a window: enough that ordinary text shares few, and a seed tells little

    @property
    def seed_letters(self) -> int:
        """The letters of a window: at most half a run, so that no token goes from no window to a whole run unseen."""
        return min(self.longest_seed, (self.letters + 1) // 2)
