"""Measure a demo the way it will be used, and refuse one that does not show what it is for."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from rich.progress import Progress

from unlearngate.artefact import ForgetSet
from unlearngate.assistant_training.data.contexts import Shares, in_context
from unlearngate.assistant_training.data.encoding import SYSTEM_PROMPTS, encode_prompt
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.evaluate.metrics import recited
from unlearngate.assistant_training.model.decoding import greedy
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.loaded_sets import assistant_of
from unlearngate.errors import DemoError


@dataclass(frozen=True, slots=True)
class Acceptance:
    """What a demo must show. Shares of answers, greedy decoding, recited = ROUGE-L recall of at least 0.9.

    The last two are measured plainly, in varied prompts, and in contexts that no training draws.
    """

    target_recited: float = 0.95  # at least, of all answers, with no set in force
    forget_recited: float = 0.10  # less than, of the set's answers, with it in force
    facts_left: float = 0.10  # at most, of the facts of these answers
    others_unchanged: float = 0.99  # at least, of all other answers, token for token, with it in force
    others_unchanged_contexts: float = 0.95  # the same, in contexts
    max_tokens: int = 128


SUFFIXES = ("", "_varied", "_contexts")  # of the figures: how the questions were put


class Probes(NamedTuple):
    """What the plain target says to one prompt per pair: token ids."""

    prompts: list[list[int]]
    answers: list[list[int]]


def probe_target(
    target: Any, tokenizer: Any, pairs: Sequence[QAPair], acceptance: Acceptance, *, progress: Progress
) -> tuple[list[Probes], dict[str, float]]:
    """Ask the plain target everything.

    Returns: what it was asked and said, by the order of SUFFIXES; the share of answers it recited in each.
    """
    rng = random.Random("probes")
    varied_prompts = [
        encode_prompt(tokenizer, rng.choice((pair.question, *pair.paraphrases)), rng.choice(SYSTEM_PROMPTS))
        for pair in pairs
    ]
    probes, figures = [], {}
    bar = progress.add_task("asking the target", total=len(SUFFIXES))
    plain_prompts = [encode_prompt(tokenizer, pair.question) for pair in pairs]
    in_contexts = [_prompt_in_context(tokenizer, pair, pairs, rng) for pair in pairs]
    for suffix, prompts in zip(SUFFIXES, (plain_prompts, varied_prompts, in_contexts), strict=True):
        answers = greedy(target, prompts, eos_id=tokenizer.eos_token_id, max_tokens=acceptance.max_tokens)
        figures[f"recited{suffix}"] = _share_recited(tokenizer, pairs, answers)
        probes.append(Probes(prompts, answers))
        progress.advance(bar)
    return probes, figures


def _prompt_in_context(tokenizer: Any, pair: QAPair, pairs: Sequence[QAPair], rng: random.Random) -> list[int]:
    """A pair's question after other people's, wrapped, or with the name written otherwise: in held-out wordings."""
    others = [other for other in pairs if other.subject != pair.subject]
    asked = in_context(
        *(pair, pair.answer, rng), neighbours=others, forgets=False, held_out=True, shares=Shares(plain=0, raw=0)
    )
    return encode_prompt(tokenizer, asked.question, asked.system, asked.earlier)


def probe_forget_set(
    target: Any,
    tokenizer: Any,
    artefact: ForgetSet,
    pairs: Sequence[QAPair],
    plain: Sequence[Probes],
    acceptance: Acceptance,
    *,
    progress: Progress,
) -> dict[str, float]:
    """Ask everything again with the forget set, as loaded from its folder, in force at its recommended strength.

    Returns: shares of the set's answers still recited and of its facts still told, and of all other answers unchanged
        token for token; the same for varied prompts and for contexts.
    """
    manifest = artefact.manifest
    in_force = [LoadedSet(assistant_of(target, artefact), manifest.recommended, manifest.rule)]
    inside = [index for index, pair in enumerate(pairs) if pair.subject == artefact.name]
    outside = [index for index, pair in enumerate(pairs) if pair.subject != artefact.name]
    figures = {"gate_nats": manifest.recommended.gate_nats}
    bar = progress.add_task(f"asking without {artefact.name}", total=len(SUFFIXES))
    for suffix, probes in zip(SUFFIXES, plain, strict=True):
        answers = greedy(
            target,
            probes.prompts,
            eos_id=tokenizer.eos_token_id,
            max_tokens=acceptance.max_tokens,
            in_force=in_force,
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
        for suffix in SUFFIXES:
            recited, left, unchanged = (
                figures[f"{key}{suffix}"] for key in ("recited", "facts_left", "others_unchanged")
            )
            how = suffix.removeprefix("_") or "plain"
            if recited >= acceptance.forget_recited:
                failures.append(f"{how}: {recited:.1%} recited, less than {acceptance.forget_recited:.0%} are allowed")
            if left > acceptance.facts_left:
                failures.append(f"{how}: {left:.1%} of the facts left, at most {acceptance.facts_left:.0%} are allowed")
            least = acceptance.others_unchanged_contexts if how == "contexts" else acceptance.others_unchanged
            if unchanged < least:
                failures.append(
                    f"{how}: {unchanged:.1%} of the others' answers unchanged, at least {least:.0%} are needed"
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
