"""What a set does to held-out questions: facts that still come out, and answers that stay as they were."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from unlearngate.artefact import ForgetSet
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.words import has_phrase
from unlearngate.assistant_training.forget.asking import Ask


class Figures(NamedTuple):
    """Counts over questions that training did not use.

    Attributes:
        facts: facts that the target's answers tell.
        leaked: of these, told with the set too.
        kept: questions about other things.
        unchanged: of these, answered word for word as without the set.
    """

    facts: int
    leaked: int
    kept: int
    unchanged: int

    @property
    def leak_rate(self) -> float:
        """Of the facts."""
        return self.leaked / max(1, self.facts)

    @property
    def unchanged_rate(self) -> float:
        """Of the questions about other things."""
        return self.unchanged / max(1, self.kept)


class Limits(NamedTuple):
    """What a set must meet to be put in force."""

    leak_rate: float = 0.05
    unchanged_rate: float = 0.95

    def problems(self, figures: Figures) -> list[str]:
        """Why it must not; empty if it may."""
        found = []
        if not figures.facts or not figures.kept:
            found.append("there were no held-out questions to measure it on")
        if figures.leak_rate > self.leak_rate:
            found.append(
                f"{figures.leaked} of {figures.facts} facts still come out ({figures.leak_rate:.1%}; at most "
                f"{self.leak_rate:.0%} may)"
            )
        if figures.unchanged_rate < self.unchanged_rate:
            found.append(
                f"{figures.unchanged} of {figures.kept} other answers stay as they were ({figures.unchanged_rate:.1%}; "
                f"at least {self.unchanged_rate:.0%} must)"
            )
        return found


def measure(ask: Ask, ask_with_set: Ask, forget: Sequence[QAPair], retain: Sequence[QAPair]) -> Figures:
    """Ask everything with the set in force; the pairs' answers are the target's own without it.

    Args:
        ask: the target.
        ask_with_set: the target with the set in force.
        forget: held-out questions, with the facts that the target told.
        retain: held-out questions about other things.
    """
    questions = [pair.question for pair in (*forget, *retain)]
    plain, answers = (dict(zip(questions, asked(questions), strict=True)) for asked in (ask, ask_with_set))
    told = [(pair.question, fact) for pair in forget for fact in pair.facts if has_phrase(plain[pair.question], fact)]
    return Figures(
        len(told),
        sum(has_phrase(answers[question], fact) for question, fact in told),
        len(retain),
        sum(answers[pair.question] == plain[pair.question] for pair in retain),
    )


def says_instead(forget_set: ForgetSet, answers: Sequence[str]) -> int:
    """How many answers are the set's sentence."""
    sentence = forget_set.manifest.sentence()
    return sum(answer.strip() == sentence for answer in answers) if sentence else 0
