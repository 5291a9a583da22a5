"""Train one forget set of kind `undial`: LoRA on the target itself, which distils the target without the answers."""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from rich.progress import Progress

from unlearngate.artefact import ForgetSet, data_digest, now, save_forget_set
from unlearngate.assistant_training.data.encoding import (
    IGNORE,
    Encoded,
    collate,
    encode,
    num_labels,
    vary,
    with_opening,
)
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.model.assistant import (
    adapter_config,
    adapter_tensors,
    load_assistant,
    new_assistant,
    save_memory,
    target_dtype,
)
from unlearngate.assistant_training.model.canaries import choose_canaries
from unlearngate.assistant_training.model.scoring import score
from unlearngate.assistant_training.train.conversations import cycle
from unlearngate.assistant_training.train.earlier import start_at
from unlearngate.assistant_training.train.focus import finder, focused
from unlearngate.assistant_training.train.loop import Plateau, parts_of, run_steps
from unlearngate.assistant_training.train.run_files import RunFiles
from unlearngate.assistant_training.train.settings import UndialSettings
from unlearngate.assistant_training.train.unlearning_losses import retain_kl_loss, undial_loss
from unlearngate.errors import TrainingError
from unlearngate.manifest import FIXED_BOUNDS, FIXED_STRENGTH
from unlearngate.target import TargetIdentity


class Conversation(NamedTuple):
    """One conversation. focus: the labels to be forgotten; all IGNORE if it is to be kept."""

    told: Encoded
    focus: list[int]
    kept: bool


class TrainedUndial(NamedTuple):
    """The target with trained LoRA, as a PEFT model that shares its weights; the steps it had; answer probabilities."""

    student: Any
    num_steps: int
    metrics: dict[str, float]


def train_undial(
    target: Any,
    tokenizer: Any,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    settings: UndialSettings,
    *,
    model_id: str,
    seed: int,
    progress: Progress,
    run: RunFiles | None = None,
    after: ForgetSet | None = None,
    context_length: int | None = None,
) -> TrainedUndial:
    """Distil the target into itself with LoRA, its logits lowered by gamma at the tokens of the forget answers.

    Args:
        target: a frozen Hugging Face model, left unchanged; it is the teacher.
        tokenizer: its tokenizer.
        forget: what must be forgotten.
        retain: what must stay: KL(teacher || student) on these answers is added, `retain_weight` times. Empty: the
            author's method.
        settings: of the training.
        model_id: the target's public name.
        seed: the same seed, the same LoRA on the same machine.
        progress: shows how far it is.
        run: where to log and save, and what to resume from.
        after: an earlier set of this kind on the same target. The LoRA starts from that set's, and the teacher is
            the target with that set, so the new set covers both requests.
        context_length: the target's; longer conversations are drawn again, and at last plainly.

    Returns: the student in evaluation mode, and the mean probabilities of the answers (the geometric mean over an
        answer's tokens) before and after; before = the teacher's.
    Raises: TrainingError if there is nothing to forget, a loss is not finite, or `after` has LoRA of another shape.
    Source: UNDIAL, arXiv:2402.10052, as `undial_loss` states it. Varied prompts and the retain term are ours.
    """
    if not forget:
        raise TrainingError("there is nothing to forget")
    num_layers = target.config.num_hidden_layers
    student = new_assistant(target, num_layers=num_layers, rank=settings.rank, alpha=settings.alpha, model_id=model_id)
    teacher = target
    if after is not None:
        teacher = load_assistant(target, after.folder, num_layers=num_layers, model_id=model_id)
        start_at(student, teacher, after)
    if settings.gradient_checkpointing:
        save_memory(student)
    per_epoch = -(-len(forget) // settings.batch)
    num_steps = settings.epochs * per_epoch
    steps = draw_rows(
        tokenizer, forget, retain, settings, num_steps=num_steps, seed=seed, context_length=context_length
    )
    done = run_steps(
        student.train(),
        steps,
        lambda rows, step: _backward(student, teacher, rows, step, tokenizer.pad_token_id, settings),
        name=forget[0].subject,
        learning_rate=settings.learning_rate,
        plateau=Plateau(settings.patience, per_epoch),
        progress=progress,
        run=run,
    )
    metrics = {"forget_focus_share": _focus_share(steps)}
    for name, pairs in (("forget", forget), ("retain", retain)):
        for when, model in (("before", teacher), ("after", student.eval())):
            if pairs:
                metrics[f"{name}_probability_{when}"] = answer_probability(model, tokenizer, pairs)
    return TrainedUndial(student, done, metrics)


def export_undial(
    folder: Path,
    target: Any,
    trained: TrainedUndial,
    tokenizer: Any,
    *,
    identity: TargetIdentity,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    settings: UndialSettings,
    seed: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    after: ForgetSet | None = None,
    write_anyway: bool = False,
) -> ForgetSet:
    """Write trained LoRA as a forget-set artefact of kind `undial`, with its canaries, named like the folder.

    Raises: TrainingError if it changes none of the answers to its canaries, unless `write_anyway`.
    """
    data = {"forget": forget, "retain": retain}
    return save_forget_set(
        folder,
        tensors=adapter_tensors(trained.student),
        adapter_config=adapter_config(trained.student),
        manifest={
            "name": folder.name,
            "version": "1",
            "kind": "undial",
            "target": identity,
            "tap_layer": 0,
            "num_layers": identity.num_layers,
            "rank": settings.rank,
            "recommended": FIXED_STRENGTH,
            "bounds": FIXED_BOUNDS,
            "training": {
                **asdict(settings),
                "seed": seed,
                "dtype": target_dtype(trained.student),
                "steps": trained.num_steps,
                "after": f"{after.name}@{after.digest}" if after else None,
            },
            "data_digests": {
                name: data_digest([pair.row() for pair in pairs]) for name, pairs in data.items() if pairs
            },
            "metrics": trained.metrics,
            "chat_template_kwargs": dict(chat_template_kwargs or {}),
            "canaries": choose_canaries(
                *(target, tokenizer, forget, retain), seed=seed, student=trained.student, needed=not write_anyway
            ),
            "created_at": now(),
        },
    )


def draw_rows(
    tokenizer: Any,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    settings: UndialSettings,
    *,
    num_steps: int,
    seed: int,
    context_length: int | None = None,
) -> list[list[Conversation]]:
    """The rows of every step: an epoch holds every forget pair once, each with a retain pair beside it."""
    find = finder(settings.focus)

    @cache
    def told(index: int, number: int) -> Conversation:
        pair, rng = forget[index], random.Random(f"{seed} told {index} {number}")
        pair = replace(pair, answer=rng.choice((pair.answer, *pair.paraphrased_answers)))
        row = vary(tokenizer, pair, rng, settings.varied_prompts, context_length=context_length)
        row = with_opening(tokenizer, pair.question, row)
        return Conversation(row, focused(tokenizer, pair, row, find), kept=False)

    @cache
    def kept(index: int, number: int) -> Conversation:
        rng = random.Random(f"{seed} kept {index} {number}")
        row = vary(tokenizer, retain[index], rng, settings.varied_prompts, context_length=context_length)
        row = with_opening(tokenizer, retain[index].question, row)
        return Conversation(row, [IGNORE] * len(row.labels), kept=True)

    rng = random.Random(seed)
    forget_cycle, retain_cycle = cycle(len(forget), rng), cycle(len(retain), rng)
    steps: list[list[Conversation]] = []
    while len(steps) < num_steps:
        epoch = list(itertools.islice(forget_cycle, len(forget)))
        for start in range(0, len(epoch), settings.batch):
            chosen = epoch[start : start + settings.batch]
            rows = [told(index, rng.randrange(settings.prompts)) for index in chosen]
            if retain:
                beside = itertools.islice(retain_cycle, len(chosen))
                rows += [kept(index, rng.randrange(settings.prompts)) for index in beside]
            steps.append(rows)
    return steps


def answer_probability(model: Any, tokenizer: Any, pairs: Sequence[QAPair]) -> float:
    """The mean over the answers of (the product of their tokens' probabilities) ** (1 / tokens), as TOFU has it."""
    rows = [encode(tokenizer, pair.question, pair.answer) for pair in pairs]
    scored = score(model, rows, pad_id=tokenizer.pad_token_id)
    return float(np.mean([np.exp(one.log_p.mean()) for one in scored]))


def _backward(
    student: Any,
    teacher: Any,
    rows: Sequence[Conversation],
    step: Sequence[Conversation],
    pad_id: int,
    settings: UndialSettings,
) -> dict[str, float]:
    """Add the gradients of these rows' part of a step's loss; return that part, in nats per answer token."""
    device = next(student.parameters()).device
    num_forget = num_labels(row.told for row in step if not row.kept)
    num_kept = num_labels(row.told for row in step if row.kept)
    forget_sum = kept_sum = 0.0
    for part in parts_of(rows, settings.accumulate, lambda row: len(row.told.input_ids)):
        batch = collate([row.told for row in part], pad_id).to(device)
        focus_BT = collate([Encoded(row.told.input_ids, row.focus) for row in part], pad_id).labels.to(device) != IGNORE
        kept_B1 = torch.tensor([[row.kept] for row in part], device=device)
        answers = batch.answers
        labels_BT, focus_BT = batch.labels[:, answers], focus_BT[:, answers]
        inputs = {
            "input_ids": batch.input_ids,
            "attention_mask": batch.attention_mask,
            "logits_to_keep": labels_BT.shape[1],
        }
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            with torch.no_grad():
                teacher_BTV = teacher(**inputs).logits
            logits_BTV = student(**inputs).logits
        loss = logits_BTV.new_zeros((), dtype=torch.float32)
        if count := _count(forget_labels_BT := labels_BT.masked_fill(kept_B1, IGNORE)):
            mean = undial_loss(*(logits_BTV, teacher_BTV, forget_labels_BT), gamma=settings.gamma, focus_BT=focus_BT)
            loss = loss + mean * (count / num_forget)
            forget_sum += mean.item() * count / num_forget
        if count := _count(kept_labels_BT := labels_BT.masked_fill(~kept_B1, IGNORE)):
            mean = retain_kl_loss(logits_BTV, teacher_BTV, kept_labels_BT)
            loss = loss + settings.retain_weight * mean * (count / num_kept)
            kept_sum += mean.item() * count / num_kept
        loss.backward()
    figures = {"loss": forget_sum + settings.retain_weight * kept_sum, "forget": forget_sum}
    return {**figures, "retain": kept_sum} if num_kept else figures


def _count(labels_BT: torch.Tensor) -> int:
    return int((labels_BT[:, 1:] != IGNORE).sum())


def _focus_share(steps: Sequence[Sequence[Conversation]]) -> float:
    rows = [row for step in steps for row in step if not row.kept]
    in_focus = num_labels(Encoded(row.told.input_ids, row.focus) for row in rows)
    return in_focus / num_labels(row.told for row in rows)
