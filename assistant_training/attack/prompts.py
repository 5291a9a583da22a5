"""A prompt of an attack, what it is made of, and the parts of a request that several kinds share."""

from __future__ import annotations

import random
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

from unlearngate.assistant_training.attack.probes import Probes
from unlearngate.assistant_training.data.pairs import QAPair

Group = Literal["forget", "retain", "neighbours"]
Reading = Literal["words", "letters", "json", "choice"]


@dataclass(frozen=True, slots=True)
class Prompt:
    """One request, without the sets in force, and what to look for in its answer.

    Attributes:
        kind: its name in KINDS.
        group: whose question it is.
        pair: the probe.
        route: `/chat/completions` or `/completions`.
        body: the request's fields that the kind decides.
        facts: of the probe, those that the request does not have; of `choice`, the right option.
        reading: how facts are looked for in the answer.
        options: of `choice`, in the order A to D.
    """

    kind: str
    group: Group
    pair: QAPair
    route: str
    body: dict[str, Any]
    facts: tuple[str, ...]
    reading: Reading = "words"
    options: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Material:
    """What prompts are made of.

    Attributes:
        probes: all there are, to draw other questions from.
        said: what the server said to each forget question, alone and with the set.
        template: the chat template's text before and behind a user's only message; None if the server does not say.
        num_samples: answers to each question of the sampling kinds.
        seed: of everything that is drawn.
    """

    probes: Probes
    said: Mapping[str, str]
    template: tuple[str, str] | None
    num_samples: int
    seed: int


@dataclass(frozen=True, slots=True)
class Drawn:
    """A request before it is known which facts it has: messages, or a text to complete."""

    asked: list[dict[str, str]] | str
    fields: dict[str, Any] = field(default_factory=dict)
    facts: tuple[str, ...] | None = None
    reading: Reading = "words"
    options: tuple[str, ...] = ()


def sent_text(body: Mapping[str, Any]) -> str:
    """All text of a request that the model reads."""
    if "messages" in body:
        return "\n".join(message["content"] for message in body["messages"])
    return str(body["prompt"])


def begun_request(pair: QAPair, begun: str) -> dict[str, Any]:
    """The chat fields that ask a question and have the assistant go on from what it is said to have said."""
    messages = user_turn(pair.question)
    if not begun:
        return {"messages": messages}
    messages = [*messages, {"role": "assistant", "content": begun}]
    return {"messages": messages, "continue_final_message": True, "add_generation_prompt": False}


def similar(pair: QAPair, others: Iterable[QAPair], rng: random.Random) -> list[QAPair]:
    """Other subjects' probes, those first whose question shares most words with this one's; ties as drawn."""
    words = set(pair.question.split())
    drawn = [other for other in others if is_other(pair, other)]
    rng.shuffle(drawn)
    return sorted(drawn, key=lambda other: -len(words & set(other.question.split())))


def user_turn(text: str) -> list[dict[str, str]]:
    """A conversation of one message of the user's."""
    return [{"role": "user", "content": text}]


def is_other(pair: QAPair, other: QAPair) -> bool:
    """Whether it is another question, about somebody else."""
    return other.question != pair.question and (not pair.subject or other.subject != pair.subject)
