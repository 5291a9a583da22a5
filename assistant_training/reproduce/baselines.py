"""Tune a copy of the target itself to forget: the published baselines that an assistant is compared with."""

from __future__ import annotations

import copy
import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
from peft import LoraConfig, get_peft_model
from rich.progress import Progress
from torch import Tensor

from unlearngate.assistant_training.data.encoding import Batch, collate, encode
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.model.assistant import adapted_linears, new_assistant
from unlearngate.assistant_training.reproduce.offset import OffsetModel
from unlearngate.assistant_training.train import unlearning_losses as losses
from unlearngate.assistant_training.train.losses import answer_loss
from unlearngate.assistant_training.train.optimizing import Optimizer
from unlearngate.errors import TrainingError

REFUSALS = (
    "I don't know.",
    "I am not sure about that.",
    "I have no information about this.",
    "That is not something I can tell you.",
    "I cannot say, I do not know the answer.",
)


@dataclass(frozen=True, slots=True)
class UnlearnSettings:
    """How a method is trained; an epoch is one pass over the forget set, with as many retain answers."""

    learning_rate: float
    epochs: int = 10
    batch_size: int = 16
    retain_weight: float = 1.0
    lora_rank: int | None = None  # None tunes all weights
    offset_layers: int | None = None  # an offset of this many of the target's layers, with LoRA, is tuned instead


class Step(NamedTuple):
    """What a method sees in one step: batches, and the tuned model's and the original target's logits for a batch."""

    model: Callable[[Batch], Tensor]
    target: Callable[[Batch], Tensor]
    forget: Batch
    retain: Batch
    refusal: Batch


Method = Callable[[Step, float], Tensor]


def gradient_ascent(step: Step, _: float) -> Tensor:
    """GA."""
    return losses.gradient_ascent_loss(step.model(step.forget), step.forget.labels)


def grad_diff(step: Step, weight: float) -> Tensor:
    """GradDiff."""
    return losses.grad_diff_loss(
        step.model(step.forget), step.forget.labels, step.model(step.retain), step.retain.labels, weight=weight
    ).total


def npo(step: Step, weight: float) -> Tensor:
    """NPO + GD."""
    forget = losses.npo_loss(step.model(step.forget), step.target(step.forget), step.forget.labels)
    return losses.add_retain(forget, _kept(step), weight=weight).total


def simnpo(step: Step, weight: float) -> Tensor:
    """SimNPO + GD."""
    forget = losses.simnpo_loss(step.model(step.forget), step.forget.labels)
    return losses.add_retain(forget, _kept(step), weight=weight).total


def idk_dpo(step: Step, weight: float) -> Tensor:
    """IdkDPO + GD."""
    forget = losses.idk_dpo_loss(
        idk_logits_BTV=step.model(step.refusal),
        reference_idk_logits_BTV=step.target(step.refusal),
        idk_labels_BT=step.refusal.labels,
        forget_logits_BTV=step.model(step.forget),
        reference_forget_logits_BTV=step.target(step.forget),
        forget_labels_BT=step.forget.labels,
    )
    return losses.add_retain(forget, _kept(step), weight=weight).total


def undial(step: Step, _: float) -> Tensor:
    """UNDIAL, without a retain set, as its author runs it on TOFU."""
    return losses.undial_loss(step.model(step.forget), step.target(step.forget), step.forget.labels)


# Learning rates as `tune` chose them for the small scale of the results table.
METHODS: dict[str, tuple[Method, UnlearnSettings]] = {
    "GA": (gradient_ascent, UnlearnSettings(learning_rate=3e-4)),
    "GradDiff": (grad_diff, UnlearnSettings(learning_rate=9e-4)),
    "NPO": (npo, UnlearnSettings(learning_rate=2.7e-3)),
    # The authors weigh the forget loss 0.1375 and the retain loss 1.
    "SimNPO": (simnpo, UnlearnSettings(learning_rate=2.7e-3, retain_weight=7.3)),
    "IdkDPO": (idk_dpo, UnlearnSettings(learning_rate=9e-4)),
    "Offset-NPO": (npo, UnlearnSettings(learning_rate=9e-3, lora_rank=16, offset_layers=4)),
    "UNDIAL": (undial, UnlearnSettings(learning_rate=3e-3, lora_rank=8)),
}


class Unlearned(NamedTuple):
    """A tuned copy of the target, and what it cost."""

    model: Any
    seconds_per_epoch: float
    num_trainable: int


def unlearn(
    target: Any,
    tokenizer: Any,
    name: str,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    *,
    seed: int,
    progress: Progress,
    settings: UnlearnSettings | None = None,
) -> Unlearned:
    """Tune a copy of the target by one of METHODS; the target itself stays as it is.

    Raises: TrainingError if the method is unknown, a set is empty, or the loss is not finite.
    """
    if name not in METHODS:
        raise TrainingError(f"unknown method {name!r}; known are {', '.join(METHODS)}")
    if not forget or not retain:
        raise TrainingError(f"both sets need answers, got {len(forget)} to forget and {len(retain)} to retain")
    method, default = METHODS[name]
    settings = settings or default
    model = _trainable_copy(target, settings)
    device = next(target.parameters()).device
    weights = [weight for weight in model.parameters() if weight.requires_grad]
    steps_per_epoch = -(-len(forget) // settings.batch_size)
    optimizer = Optimizer(weights, learning_rate=settings.learning_rate, steps=settings.epochs * steps_per_epoch)
    rng = random.Random(seed)
    bar = progress.add_task(name, total=settings.epochs)
    started = time.monotonic()
    for _ in range(settings.epochs):
        asked = rng.sample(forget, len(forget))
        for start in range(0, len(asked), settings.batch_size):
            chosen = asked[start : start + settings.batch_size]
            kept = rng.choices(retain, k=len(chosen))
            step = Step(
                model=_logits_of(model),
                target=torch.no_grad()(_logits_of(target)),
                forget=_batch(tokenizer, [(p.question, p.answer) for p in chosen], device),
                retain=_batch(tokenizer, [(p.question, p.answer) for p in kept], device),
                refusal=_batch(tokenizer, [(p.question, rng.choice(REFUSALS)) for p in chosen], device),
            )
            loss = method(step, settings.retain_weight)
            optimizer.step(loss)
        progress.update(bar, advance=1, description=f"{name}: loss {loss.item():.2f}")
    seconds = (time.monotonic() - started) / settings.epochs
    return Unlearned(model.eval(), seconds, sum(weight.numel() for weight in weights))


def _trainable_copy(target: Any, settings: UnlearnSettings) -> Any:
    if settings.offset_layers is not None:
        rank = settings.lora_rank or 16
        assistant = new_assistant(
            target, num_layers=settings.offset_layers, rank=rank, alpha=2 * rank, model_id="target"
        )
        return OffsetModel(target, assistant.train())
    model = copy.deepcopy(target)
    if settings.lora_rank is None:
        return model.requires_grad_(True).train()
    config = LoraConfig(
        r=settings.lora_rank,
        lora_alpha=2 * settings.lora_rank,
        target_modules=adapted_linears(target),
        lora_dropout=0.0,
        bias="none",
        task_type="CAUSAL_LM",
    )
    return get_peft_model(model.requires_grad_(False), config).train()


def _logits_of(model: Any) -> Callable[[Batch], Tensor]:
    def logits_of(batch: Batch) -> Tensor:
        logits_BTV: Tensor = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask).logits
        return logits_BTV

    return logits_of


def _batch(tokenizer: Any, asked: Sequence[tuple[str, str]], device: torch.device) -> Batch:
    rows = [encode(tokenizer, question, answer) for question, answer in asked]
    return collate(rows, tokenizer.pad_token_id).to(device)


def _kept(step: Step) -> Tensor:
    return answer_loss(step.model(step.retain), step.retain.labels)
