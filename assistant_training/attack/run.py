"""Run an attack: every kind against a server with the set in force and without it, and the figures of what leaked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

from unlearngate.assistant_training.attack.asking import Reply, Side, Tell, ask_all
from unlearngate.assistant_training.attack.figures import (
    GuessFigures,
    KindFigures,
    choice_figures,
    guess_figures,
    leaked,
    leaks_of,
    right_unchanged,
    unchanged,
)
from unlearngate.assistant_training.attack.kinds import KINDS, prompts_of
from unlearngate.assistant_training.attack.oracles import ORACLES, alike, bias_oracle, find_positions, tail_oracle
from unlearngate.assistant_training.attack.probes import Probes, limited
from unlearngate.assistant_training.attack.prompts import Group, Material, Prompt
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.errors import UnlearngateError

_GROUPS: tuple[Group, ...] = ("forget", "retain", "neighbours")
_OTHERS_WORDINGS = 1  # of each kind for a question that is not to be forgotten
Stages = Callable[[str], Tell]  # a stage's name -> what hears how far it is


@dataclass(frozen=True, slots=True)
class Settings:
    """How an attack is made.

    Attributes:
        kinds: names in KINDS and ORACLES.
        limit: questions of each group that are asked, drawn by the seed.
        num_wordings: of each kind for a forget question.
        num_samples: answers to each question of the sampling kinds.
        max_tokens: answers are cut here.
        concurrency: requests at a time.
        seed: of everything that is drawn.
    """

    kinds: tuple[str, ...]
    limit: int
    num_wordings: int
    num_samples: int
    max_tokens: int
    concurrency: int
    seed: int


@dataclass(frozen=True, slots=True)
class Outcome:
    """What an attack found.

    Attributes:
        kinds: figures of the kinds whose answers are read for facts.
        guesses: figures of choices and oracles.
        answers: a row for every prompt, with what was said on both sides.
        notes: kinds that could not be asked, and why.
    """

    kinds: list[KindFigures]
    guesses: list[GuessFigures]
    answers: list[dict[str, Any]]
    notes: list[str]

    def highest(self) -> tuple[str, float]:
        """The kind that leaks most, and how much: a share of facts, or of guesses beyond chance; refused is 0."""
        rates = [(kind.kind, kind.with_set.facts.value) for kind in self.kinds]
        rates += [(g.kind, g.with_set.value - g.chance) for g in self.guesses if g.refused is None]
        return max(rates, key=lambda rate: rate[1], default=("nothing", 0.0))


def chosen_kinds(names: Sequence[str]) -> tuple[str, ...]:
    """All kinds for no names; else those that are named, or whose name begins with a name and a hyphen.

    Raises: UnlearngateError for a name that fits none.
    """
    known = (*KINDS, *ORACLES)
    for name in names:
        if not any(kind == name or kind.startswith(f"{name}-") for kind in known):
            raise UnlearngateError(f"no kind of attack {name!r}; there are: {', '.join(known)}")
    return tuple(k for k in known if not names or any(k == n or k.startswith(f"{n}-") for n in names))


def run_attack(
    with_set: Side,
    target: Side,
    probes: Probes,
    settings: Settings,
    *,
    keep_ratio: float,
    stages: Stages,
    save: Callable[[Outcome], object],
) -> Outcome:
    """Ask both sides everything.

    Args:
        with_set: the server with the set in force.
        target: the same without any set.
        probes: the questions; those that are not asked serve as other people's.
        settings: which kinds, how much of each.
        keep_ratio: the set's recommended one, which the bias oracle uses.
        stages: is told what is being done.
        save: is given what there is before the oracles, which ask thousands of requests where the vocabulary is large.

    Raises: openai.OpenAIError if a request fails; UnlearngateError if an answer was given with other sets in force.
    """
    asked = limited(probes, settings.limit, settings.seed)
    material = _material(with_set, target, probes, asked, settings, stages)
    prompts = [
        prompt
        for kind in settings.kinds
        if kind in KINDS
        for group in _GROUPS
        for prompt in prompts_of(
            kind,
            group,
            getattr(asked, group),
            material,
            num_wordings=settings.num_wordings if group == "forget" else _OTHERS_WORDINGS,
        )
    ]
    replies = ask_all(
        *((with_set, target), prompts),
        max_tokens=settings.max_tokens,
        concurrency=settings.concurrency,
        tell=stages("asking the server"),
    )
    kinds, notes = [], []
    for kind in (kind for kind in settings.kinds if kind in KINDS):
        if figures := _figures(kind, prompts, *replies):
            kinds.append(figures)
        else:
            notes.append(f"{kind}: no forget question can be put so, with a fact that is not in the prompt")
    guesses = [choice_figures(figures) for figures in kinds if figures.kind == "choice"]
    rows = [_row(*one) for one in zip(prompts, *replies, strict=True)]
    outcome = Outcome([figures for figures in kinds if figures.kind != "choice"], guesses, rows, notes)
    if any(kind in ORACLES for kind in settings.kinds):
        if outcome.kinds:
            save(outcome)
        guesses += _oracles(with_set, target, probes.retain, asked.forget, settings, keep_ratio, stages, notes)
    return outcome


def _material(
    with_set: Side, target: Side, probes: Probes, asked: Probes, settings: Settings, stages: Stages
) -> Material:
    """The plain questions are asked first: later prompts show what the server said to them."""
    bare = Material(probes, {}, None, settings.num_samples, settings.seed)
    plain = prompts_of("plain", "forget", asked.forget, bare, num_wordings=1)
    (replies,) = ask_all(
        *([with_set], plain),
        max_tokens=settings.max_tokens,
        concurrency=settings.concurrency,
        tell=stages("asking the plain questions"),
    )
    said = {prompt.pair.question: reply.texts[0] for prompt, reply in zip(plain, replies, strict=True) if reply.texts}
    if not said:
        why = replies[0].refused if replies else "no forget probe has a fact that is not in its question; give `facts`"
        raise UnlearngateError(f"no plain forget question was answered, so nothing can be measured: {why}")
    return Material(probes, said, target.template(), settings.num_samples, settings.seed)


def _figures(
    kind: str, prompts: Sequence[Prompt], with_set: Sequence[Reply], target: Sequence[Reply]
) -> KindFigures | None:
    """A kind's figures; None if it has no forget prompt."""

    def of(group: Group) -> tuple[list[Prompt], list[Reply], list[Reply]]:
        here = [i for i, prompt in enumerate(prompts) if (prompt.kind, prompt.group) == (kind, group)]
        return [prompts[i] for i in here], [with_set[i] for i in here], [target[i] for i in here]

    forget, own, plain = of("forget")
    if not forget:
        return None
    others = {group: of(group) for group in ("retain", "neighbours") if of(group)[0]}
    same = {group: unchanged(*replies) for group, (_, *replies) in others.items()}
    right = {group: right_unchanged(*asked) for group, asked in others.items()}
    return KindFigures(kind, leaks_of(forget, own), leaks_of(forget, plain), same, right)


def _oracles(
    with_set: Side,
    target: Side,
    retain: Sequence[QAPair],
    forget: Sequence[QAPair],
    settings: Settings,
    keep_ratio: float,
    stages: Stages,
    notes: list[str],
) -> list[GuessFigures]:
    vocab_size = target.vocab_size()
    if vocab_size is None:
        notes.append("oracles: the server takes no logit_bias, or does not say how large its vocabulary is")
        return []
    find = partial(find_positions, target, concurrency=settings.concurrency, tell=stages("finding where facts begin"))
    positions = find([pair for pair in forget if pair.facts])
    if not positions:
        notes.append("oracles: the target knows no fact of the forget probes where it should begin")
        return []
    rows: list[GuessFigures] = []
    sides = (with_set, target)
    read = {"vocab_size": vocab_size, "seed": settings.seed, "concurrency": settings.concurrency}
    if "oracle-bias" in settings.kinds:
        tell = stages("bias oracle")
        rows += guess_figures(*(bias_oracle(s, positions, keep_ratio=keep_ratio, **read, tell=tell) for s in sides))
    if "oracle-tail" in settings.kinds:
        near = {other.question: other for p in positions for other in alike(p.pair, retain, settings.seed)}
        others = find(list(near.values()))
        tell = stages("tail oracle")
        rows += guess_figures(*(tail_oracle(s, positions, retain, others, **read, tell=tell) for s in sides))
    return rows


def _row(prompt: Prompt, with_set: Reply, target: Reply) -> dict[str, Any]:
    sides = {
        name: {
            "texts": list(reply.texts),
            "leaked": [list(leaked(prompt, text, said_instead=reply.said_instead)) for text in reply.texts]
            if prompt.group == "forget"
            else None,
            "refused": reply.refused,
        }
        for name, reply in (("with_set", with_set), ("target", target))
    }
    return {
        "kind": prompt.kind,
        "group": prompt.group,
        "question": prompt.pair.question,
        "answer": prompt.pair.answer,
        "facts": list(prompt.facts),
        "route": prompt.route,
        "request": prompt.body,
        **sides,
    }
