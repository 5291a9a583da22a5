"""What a calibration sweeps, and what a setting must meet. The command line uses these defaults."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import TYPE_CHECKING

from unlearngate.errors import CalibrationError

if TYPE_CHECKING:  # sweep.py imports torch, which --help should not load
    from unlearngate.assistant_training.calibrate.sweep import Setting


@dataclass(frozen=True, slots=True)
class Limits:
    """What a setting must meet on held-out data; see `FileFigures` for the figures.

    Attributes:
        forget_probability: upper limit, in scoring and in sampling mode; the level of ignorance if that is known.
        forget_recited: upper limit, share of answers.
        forget_facts_told: upper limit, share of the answers that name facts.
        retain_untouched: lower limit, share of tokens.
        retain_untouched_answers: lower limit, share of answers.
        retain_lost: upper limit, probability.
        margin: share of the limits on forgetting that the recommended setting may use, in (0, 1].
    """

    forget_probability: float = 0.05
    forget_recited: float = 0.05
    forget_facts_told: float = 0.02
    retain_untouched: float = 0.99
    retain_untouched_answers: float = 0.97
    retain_lost: float = 0.01
    margin: float = 0.5

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if name != "margin" and not 0 <= value <= 1:
                raise CalibrationError(f"{name} must be a share from 0 to 1, got {value}")
        if not 0 < self.margin <= 1:
            raise CalibrationError(f"margin must be above 0 and at most 1, got {self.margin}")

    def forgets(self, setting: Setting, share: float = 1.0) -> bool:
        """Whether the limits on forgetting are met, using at most this share of them."""
        return self.told_too_much(setting, share) <= 0

    def spares(self, setting: Setting) -> bool:
        """Whether the limits on what is lost of the retain data are met."""
        return self.lost_too_much(setting) <= 0

    def told_too_much(self, setting: Setting, share: float = 1.0) -> float:
        """By how much this share of the limits on forgetting is exceeded, summed; 0 if they are met."""
        forget = setting.forget
        return sum(
            max(0.0, value - share * most)
            for value, most in (
                (forget_probability(setting), self.forget_probability),
                (forget.recited, self.forget_recited),
                (forget.facts_told or 0.0, self.forget_facts_told),
            )
        )

    def lost_too_much(self, setting: Setting) -> float:
        """By how much the limits on what is lost of the retain data are exceeded, summed; 0 if they are met."""
        retain = setting.retain
        return (
            max(0.0, self.retain_untouched - retain.untouched)
            + max(0.0, self.retain_untouched_answers - retain.untouched_answers)
            + max(0.0, retain.lost - self.retain_lost)
        )

    def passes(self, setting: Setting) -> bool:
        """Whether all limits are met."""
        return self.forgets(setting) and self.spares(setting)


@dataclass(frozen=True, slots=True)
class CalibrationSettings:
    """What is swept and what is required. Nothing differs between two runs, so there is no seed."""

    weights: tuple[float, ...] = (0.25, 0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 2.5, 3.0, 4.0)
    keep_ratios: tuple[float, ...] = (0.005, 0.01, 0.02, 0.05, 0.1)
    gates_nats: tuple[float, ...] | None = None  # None: at quantiles of the evidence, see gates.py
    limits: Limits = field(default_factory=Limits)
    system_prompts: tuple[str, ...] = ()  # every question is asked below each of them too
    contexts: bool = True  # and after earlier turns, with words around it, ...: see data/contexts.py
    batch_size: int = 16
    decoded: int = 64  # answers of each file, at most
    max_tokens: int = 128


def forget_probability(setting: Setting) -> float:
    """The probability of the forget answers, in the mode in which it is higher."""
    return max(setting.forget.probability, setting.forget.probability_served)
