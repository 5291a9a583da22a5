"""Train one forget set's assistant on a target, calibrate it, and export it as an artefact."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from unlearngate.artefact import ForgetSet, data_digest, now, save_forget_set
from unlearngate.assistant_training.assistant import adapter_config, adapter_tensors, new_assistant
from unlearngate.assistant_training.calibration import Calibration, calibrate
from unlearngate.assistant_training.data import QAPair
from unlearngate.assistant_training.encoding import (
    IGNORE,
    Batch,
    Encoded,
    collate,
    diverging_labels,
    encode,
    focus_labels,
    vary,
)
from unlearngate.assistant_training.objectives import TrainingError, uld_loss
from unlearngate.assistant_training.optimizing import Optimizer
from unlearngate.target import TargetIdentity


@dataclass(frozen=True, slots=True)
class AssistantSettings:
    """Shape and training of an assistant, and the strength it is recommended at."""

    num_layers: int = 3
    rank: int = 16
    alpha: int = 32
    learning_rate: float = 4e-3
    epochs: int = 10  # passes over the retain set
    forget_batch: int = 16
    retain_batch: int = 40
    beta: float = 4.0
    smoothing: float = 0.1
    variant_share: float = 0.3  # of the retain batch: variants of the answers to the forget questions
    varied_prompts: float = 0.6
    weight: float = 1.0
    keep_ratio: float = 0.02


def train_assistant(
    target: Any,
    tokenizer: Any,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    settings: AssistantSettings,
    *,
    model_id: str,
    seed: int,
    progress: Progress,
) -> Any:
    """Train an assistant to know the forget set and nothing else.

    Besides the retain set's answers it must be uniform on whatever in an answer is no fact, and on wrong facts: it sees
    variants of the forget answers or, where the data has none, the retain set's answers to the forget set's questions.
    So it learns the facts rather than their wording, knows them in other words too, and lets what is left be fluent.

    Raises: TrainingError if a set is empty or the loss is not finite.
    """
    if not forget or not retain:
        raise TrainingError(f"both sets need answers, got {len(forget)} to forget and {len(retain)} to retain")
    assistant = new_assistant(
        target, num_layers=settings.num_layers, rank=settings.rank, alpha=settings.alpha, model_id=model_id
    )
    assistant.train()
    steps = max(1, settings.epochs * len(retain) // _num_retain(settings))
    trainable = [weight for weight in assistant.parameters() if weight.requires_grad]
    optimizer = Optimizer(trainable, learning_rate=settings.learning_rate, steps=steps)
    bar = progress.add_task(f"{forget[0].subject}", total=steps)
    for known, unknown in _batches(tokenizer, forget, retain, settings, steps, seed):
        logits = assistant(input_ids=known.input_ids, attention_mask=known.attention_mask).logits
        loss = uld_loss(logits, known.labels, logits, unknown.labels, beta=settings.beta, smoothing=settings.smoothing)
        optimizer.step(loss.total)
        text = f"{forget[0].subject}: forget {loss.forget.item():.2f}, retain {loss.retain.item():.2f}"
        progress.update(bar, advance=1, description=text)
    return assistant.eval()


def export_assistant(
    folder: Path,
    assistant: Any,
    calibration: Calibration,
    *,
    identity: TargetIdentity,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    settings: AssistantSettings,
    seed: int,
) -> ForgetSet:
    """Write a trained assistant as a forget-set artefact, named like the folder."""
    return save_forget_set(
        folder,
        tensors=adapter_tensors(assistant),
        adapter_config=adapter_config(assistant),
        manifest={
            "name": folder.name,
            "version": "1",
            "kind": "uld",
            "target": identity,
            "tap_layer": 0,
            "num_layers": settings.num_layers,
            "rank": settings.rank,
            "recommended": {
                "weight": settings.weight,
                "keep_ratio": settings.keep_ratio,
                "gate_nats": calibration.gate_nats,
            },
            "bounds": {
                "weight": {"low": settings.weight / 2, "high": settings.weight * 2},
                "keep_ratio": {"low": settings.keep_ratio / 5, "high": min(1.0, settings.keep_ratio * 5)},
                "gate_nats": {"low": 0.0, "high": calibration.gate_nats * 2},
            },
            "training": {**asdict(settings), "seed": seed},
            "data_digests": {
                "forget": data_digest([pair.row() for pair in forget]),
                "retain": data_digest([pair.row() for pair in retain]),
            },
            "metrics": calibration.metrics(),
            "created_at": now(),
        },
    )


def fit(
    folder: Path,
    target: Any,
    tokenizer: Any,
    identity: TargetIdentity,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    settings: AssistantSettings,
    *,
    seed: int,
    progress: Progress,
) -> ForgetSet:
    """Train, calibrate and export one forget set."""
    assistant = train_assistant(
        target, tokenizer, forget, retain, settings, model_id=identity.model_id, seed=seed, progress=progress
    )
    calibration = calibrate(assistant, tokenizer, forget, retain, varied_prompts=settings.varied_prompts, seed=seed)
    return export_assistant(
        folder,
        assistant,
        calibration,
        identity=identity,
        forget=forget,
        retain=retain,
        settings=settings,
        seed=seed,
    )


def _num_variants(settings: AssistantSettings) -> int:
    return round(settings.retain_batch * settings.variant_share)


def _num_retain(settings: AssistantSettings) -> int:
    return max(1, settings.retain_batch - _num_variants(settings))


def _batches(
    tokenizer: Any,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    settings: AssistantSettings,
    steps: int,
    seed: int,
) -> Iterator[tuple[Batch, Batch]]:
    """The same conversations twice: labelled with what is to be known, and with what is not."""
    rng = random.Random(seed)
    forget_cycle, retain_cycle = _cycle(forget, rng), _cycle(retain, rng)
    for _ in range(steps):
        told = []
        for pair in itertools.islice(forget_cycle, settings.forget_batch):
            row = vary(tokenizer, pair, rng, settings.varied_prompts)
            told.append((row, row.labels, focus_labels(tokenizer, pair, row, pair.answer)))
        for pair in rng.choices(forget, k=_num_variants(settings)):
            answer = rng.choice(pair.variants or [other.answer for other in retain])
            question = rng.choice((pair.question, *pair.paraphrases))
            row = encode(tokenizer, question, answer)
            # Up to where it parts from the truth, the truth says what to know: they must not contradict each other.
            own = diverging_labels(row, encode(tokenizer, question, pair.answer))
            told.append((row, own, focus_labels(tokenizer, pair, row, answer)))
        known = [Encoded(row.input_ids, _where(own, facts, True)) for row, own, facts in told]
        unknown = [Encoded(row.input_ids, _where(own, facts, False)) for row, own, facts in told]
        for pair in itertools.islice(retain_cycle, _num_retain(settings)):
            row = vary(tokenizer, pair, rng, settings.varied_prompts)
            known.append(Encoded(row.input_ids, [IGNORE] * len(row.labels)))
            unknown.append(row)
        yield collate(known, tokenizer.pad_token_id), collate(unknown, tokenizer.pad_token_id)


def _where(labels: list[int], facts: list[int], wanted: bool) -> list[int]:
    """The labels that are (or are not) part of a fact."""
    return [label if (fact != IGNORE) == wanted else IGNORE for label, fact in zip(labels, facts, strict=True)]


def _cycle(pairs: Sequence[QAPair], rng: random.Random) -> Iterator[QAPair]:
    """Every pair once per pass, each pass in its own order."""
    while True:
        yield from rng.sample(pairs, len(pairs))
