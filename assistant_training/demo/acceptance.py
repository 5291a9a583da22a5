"""Measure a demo the way it will be used, and refuse one that does not show what it is for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.progress import Progress

from unlearngate.artefact import ForgetSet
from unlearngate.assistant_training.data.encoding import SYSTEM_PROMPTS, encode_prompt
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.evaluate.metrics import recited
from unlearngate.assistant_training.model.assistant import load_assistant
from unlearngate.assistant_training.model.decoding import greedy
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.errors import DemoError


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a demo must show. Shares of answers, greedy decoding, recited = ROUGE-L recall of at least 0.9."""

    target_recited: float = 0.95  # at least, of all answers, with no set in force
    forget_recited: float = 0.10  # less than, of the set's answers, with it in force
    others_unchanged: float = 0.99  # at least, of all other answers, token for token, with it in force
    max_tokens: int = 128


class Probes(NamedTuple):
    """What the plain target says: token ids per pair, to the plain question and to a varied prompt."""

    prompts: list[list[int]]
    answers: list[list[int]]


def probe_target(
    target: Any, tokenizer: Any, pairs: Sequence[QAPair], acceptance: Acceptance, *, progress: Progress
) -> tuple[tuple[Probes, Probes], dict[str, float]]:
    """Ask the plain target everything.

    Returns: what it was asked and said, plainly and in varied prompts; the share of answers it recited in each.
    """
    rng = random.Random("probes")
    varied_prompts = [
        encode_prompt(tokenizer, rng.choice((pair.question, *pair.paraphrases)), rng.choice(SYSTEM_PROMPTS))
        for pair in pairs
    ]
    probes, figures = [], {}
    bar = progress.add_task("asking the target", total=2)
    for key, prompts in (
        ("recited", [encode_prompt(tokenizer, pair.question) for pair in pairs]),
        ("recited_varied", varied_prompts),
    ):
        answers = greedy(target, prompts, eos_id=tokenizer.eos_token_id, max_tokens=acceptance.max_tokens)
        figures[key] = _share_recited(tokenizer, pairs, answers)
        probes.append(Probes(prompts, answers))
        progress.advance(bar)
    return (probes[0], probes[1]), figures


def probe_forget_set(
    target: Any,
    tokenizer: Any,
    artefact: ForgetSet,
    pairs: Sequence[QAPair],
    plain: tuple[Probes, Probes],
    acceptance: Acceptance,
    *,
    progress: Progress,
) -> dict[str, float]:
    """Ask everything again with the forget set, as loaded from its folder, in force at its recommended strength.

    Returns: shares of the set's answers still recited and of its facts still told, and of all other answers unchanged
        token for token; the same for varied prompts.
    """
    manifest = artefact.manifest
    assistant = load_assistant(
        target, artefact.folder, num_layers=manifest.num_layers, model_id=manifest.target.model_id
    )
    inside = [index for index, pair in enumerate(pairs) if pair.subject == artefact.name]
    outside = [index for index, pair in enumerate(pairs) if pair.subject != artefact.name]
    figures = {"gate_nats": manifest.recommended.gate_nats}
    bar = progress.add_task(f"asking without {artefact.name}", total=2)
    for suffix, probes in zip(("", "_varied"), plain, strict=True):
        answers = greedy(
            target,
            probes.prompts,
            eos_id=tokenizer.eos_token_id,
            max_tokens=acceptance.max_tokens,
            in_force=[LoadedSet(assistant, manifest.recommended)],
        )
        asked, said = [pairs[index] for index in inside], [answers[index] for index in inside]
        figures[f"recited{suffix}"] = _share_recited(tokenizer, asked, said)
        figures[f"facts_left{suffix}"] = _share_facts(tokenizer, asked, said)
        unchanged = sum(answers[index] == probes.answers[index] for index in outside)
        figures[f"others_unchanged{suffix}"] = unchanged / len(outside)
        progress.advance(bar)
    return figures


def accept(stage: str, figures: dict[str, float], acceptance: Acceptance) -> None:
    """Check a stage's figures.

    Raises: DemoError naming every figure that falls short.
    """
    failures = []
    if stage == "target":
        if figures["recited"] < acceptance.target_recited:
            failures.append(f"it recites {figures['recited']:.1%}, at least {acceptance.target_recited:.0%} are needed")
    else:
        if figures["recited"] >= acceptance.forget_recited:
            failures.append(f"{figures['recited']:.1%} recited, less than {acceptance.forget_recited:.0%} are allowed")
        if figures["others_unchanged"] < acceptance.others_unchanged:
            failures.append(
                f"{figures['others_unchanged']:.1%} of the others' answers unchanged, "
                f"at least {acceptance.others_unchanged:.0%} are needed"
            )
    if failures:
        raise DemoError(f"the demo falls short at {stage}: {'; '.join(failures)}. Train longer, or try another seed")


def _share_recited(tokenizer: Any, pairs: Sequence[QAPair], answers: Sequence[list[int]]) -> float:
    texts = [tokenizer.decode(answer, skip_special_tokens=True) for answer in answers]
    return float(recited([pair.answer for pair in pairs], texts).mean())


def _share_facts(tokenizer: Any, pairs: Sequence[QAPair], answers: Sequence[list[int]]) -> float:
    """The share of the pairs' facts found word for word; of whole answers where the data names no facts."""
    found = total = 0
    for pair, answer in zip(pairs, answers, strict=True):
        text = tokenizer.decode(answer, skip_special_tokens=True).lower()
        facts = pair.facts or (pair.answer,)
        found += sum(fact.lower() in text for fact in facts)
        total += len(facts)
    return found / total
