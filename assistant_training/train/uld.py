"""Train one forget set's assistant on a target, choose its gate, and export it as an artefact."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from unlearngate.artefact import ForgetSet, data_digest, now, save_forget_set
from unlearngate.assistant_training.data.encoding import collate, num_labels, predicting
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.model.assistant import (
    adapter_config,
    adapter_tensors,
    head,
    last_hidden,
    load_assistant,
    new_assistant,
    own_token,
    save_memory,
    target_dtype,
)
from unlearngate.assistant_training.model.canaries import choose_canaries
from unlearngate.assistant_training.model.in_force import LoadedSet
from unlearngate.assistant_training.model.tapped import TappedAssistant
from unlearngate.assistant_training.train.check import ENOUGH, Limits, measure, refuse_short, shortfall
from unlearngate.assistant_training.train.conversations import Example, draw_steps
from unlearngate.assistant_training.train.earlier import as_before, start_at
from unlearngate.assistant_training.train.gate import fit_gate
from unlearngate.assistant_training.train.loop import Plateau, parts_of, run_steps
from unlearngate.assistant_training.train.losses import uld_loss
from unlearngate.assistant_training.train.run_files import RunFiles
from unlearngate.assistant_training.train.settings import AssistantSettings
from unlearngate.errors import TrainingError
from unlearngate.manifest import Strength, fill_in
from unlearngate.target import TargetIdentity


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
    run: RunFiles | None = None,
    context_length: int | None = None,
    deadline: float | None = None,
    after: ForgetSet | None = None,
) -> Any:
    """Train an assistant to know the forget set and nothing else.

    With `run`, every step's losses are logged, and training resumes from that run's checkpoint if there is one, to the
    same losses as without the interruption.

    The assistant must be uniform on the retain answers, on all words that are not facts, and on wrong facts. It sees
    variants of the forget answers or, where the data has none, the retain set's answers to the forget set's questions.
    So it learns the facts and not their wording, knows them in other words too, and leaves the other words fluent.

    It starts from the LoRA of `after`, if there is such a set, and ends at once if that shows enough, or as much as it
    did on the target that it was trained on.

    Raises: TrainingError if a set is empty, the loss is not finite, or `after` is of another shape.
    """
    if not forget or not retain:
        raise TrainingError(f"both sets need answers, got {len(forget)} to forget and {len(retain)} to retain")
    settings = settings.on(target.config.num_hidden_layers)
    assistant = new_assistant(
        target,
        num_layers=settings.num_layers,
        rank=settings.rank,
        alpha=settings.alpha,
        model_id=model_id,
        tap_layer=settings.tap_layer or 0,
    )
    if after is not None:
        shape = {"num_layers": after.manifest.num_layers, "tap_layer": after.manifest.tap_layer or 0}
        if (own := {"num_layers": settings.num_layers, "tap_layer": settings.tap_layer}) != shape:
            raise TrainingError(f"{after.name} has {shape}, and the set that goes on from it {own}; give the same")
        start_at(assistant, load_assistant(target, after.folder, model_id=model_id, **shape), after)
    assistant.train()
    num_steps = settings.steps or max(1, settings.epochs * len(retain) // settings.num_retain)
    if settings.gradient_checkpointing:
        save_memory(assistant)

    def keep_hidden(todo: Sequence[Sequence[Example]]) -> None:
        if isinstance(assistant, TappedAssistant):
            assistant.keep([row.known.input_ids for rows in todo for row in rows], progress)

    def shows_enough(done: int) -> bool:
        if not settings.contexts or done % settings.check_every or done == num_steps:
            return False
        evidence = measure(
            *(assistant.eval(), tokenizer, forget, retain),
            instead=settings.said_instead,
            seed=seed,
            context_length=context_length,
        )
        assistant.train()
        at_end, to_serve = evidence.gates()
        if after is not None and not done and shortfall(evidence.metrics(to_serve), as_before(after)) is None:
            return True
        return shortfall(evidence.metrics(at_end), ENOUGH) is None

    steps = draw_steps(
        *(tokenizer, forget, retain, settings),
        own_token=own_token(target, _not_own(tokenizer, forget, target.config.vocab_size))
        if settings.contexts
        else None,
        num_steps=num_steps,
        seed=seed,
        context_length=context_length,
    )
    progress.console.print(_announced(assistant, steps, settings, context_length), highlight=False, soft_wrap=True)
    run_steps(
        assistant,
        steps,
        lambda rows, step: _backward(assistant, rows, step, tokenizer.pad_token_id, settings),
        name=forget[0].subject,
        learning_rate=settings.learning_rate,
        plateau=Plateau(settings.patience, max(1, len(retain) // settings.num_retain)),
        progress=progress,
        run=run,
        prepare=keep_hidden,
        prepare_every=settings.check_every if settings.contexts else None,
        is_enough=shows_enough,
        may_be_enough_at_once=after is not None,
        deadline=deadline,
    )
    return assistant.eval()


def _announced(
    assistant: Any, steps: Sequence[Sequence[Example]], settings: AssistantSettings, context_length: int | None
) -> str:
    """What is about to be done, the memory that is known beforehand, and what is too long for the target."""
    lengths = {id(row.known.input_ids): len(row.known.input_ids) for rows in steps for row in rows}
    num_tokens = sum(lengths.values())
    weights = sum(weight.numel() for weight in assistant.parameters() if weight.requires_grad)
    text = (
        f"{'at most ' if settings.contexts else ''}{len(steps):,} steps of {len(steps[0])} conversations; "
        f"{len(lengths):,} different ones, {num_tokens:,} tokens; {weights:,} weights are trained"
    )
    if isinstance(assistant, TappedAssistant):
        head_VH = head(assistant).weight_VH
        hidden_bytes = num_tokens * head_VH.shape[1] * head_VH.element_size()
        text += f"; {hidden_bytes / 2**20:,.0f} MiB for what the layers before the tap make of them"
    if context_length and (num_long := sum(length > context_length for length in lengths.values())):
        text += f"; {num_long:,} of them are longer than the target's context of {context_length:,} tokens"
    return text


def _not_own(tokenizer: Any, forget: Sequence[QAPair], vocab_size: int) -> set[int]:
    """The tokens of the forget answers, the special and added ones, and the rows of the head that no token has."""
    answers = [text for pair in forget for text in (pair.answer, *pair.paraphrased_answers)]
    said = {token for ids in tokenizer(answers, add_special_tokens=False)["input_ids"] for token in ids}
    nobodys = set(range(vocab_size)) - set(tokenizer.get_vocab().values())
    return said | set(tokenizer.all_special_ids) | set(tokenizer.get_added_vocab().values()) | nobodys


def _backward(
    assistant: Any, rows: Sequence[Example], step: Sequence[Example], pad_id: int, settings: AssistantSettings
) -> dict[str, float]:
    """Add the gradients of these rows' part of a step's ULD loss; return that part, in nats per answer token."""
    device = next(assistant.parameters()).device
    own_head = head(assistant)
    num_tokens = (num_labels(row.known for row in step), num_labels(row.unknown for row in step))
    forget_sum = retain_sum = 0.0
    for part in parts_of(rows, settings.accumulate, lambda row: len(row.known.input_ids)):
        batch = collate([row.known for row in part], pad_id).to(device)
        unknown_BT = collate([row.unknown for row in part], pad_id).labels.to(device)
        with torch.autocast(device.type, torch.bfloat16, enabled=settings.bf16):
            read_BT = predicting(batch.labels.maximum(unknown_BT))
            hidden_BTH = last_hidden(assistant, batch.input_ids, batch.attention_mask, read_BT)
        loss = uld_loss(
            *(hidden_BTH, own_head, batch.labels, unknown_BT),
            beta=settings.beta,
            smoothing=settings.smoothing,
            num_tokens=num_tokens,
        )
        if loss.total.requires_grad:
            loss.total.backward()
        forget_sum, retain_sum = forget_sum + loss.forget.item(), retain_sum + loss.retain.item()
    return {"loss": forget_sum + settings.beta * retain_sum, "forget": forget_sum, "retain": retain_sum}


def export_assistant(
    folder: Path,
    target: Any,
    assistant: Any,
    tokenizer: Any,
    *,
    identity: TargetIdentity,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    settings: AssistantSettings,
    seed: int,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    write_anyway: bool = False,
    label: str | None = None,
    instead: str | None = None,
    context_length: int | None = None,
    after: ForgetSet | None = None,
) -> ForgetSet:
    """Choose a trained assistant's gate and its canaries, and write it as a forget-set artefact, named like the folder.

    Raises: TrainingError if it does nothing or too much in held-out contexts, or changes none of the answers to its
        canaries, unless `write_anyway`.
    """
    settings = settings.on(identity.num_layers)
    if settings.contexts:
        evidence = measure(
            *(assistant, tokenizer, forget, retain),
            instead=settings.said_instead,
            seed=seed,
            context_length=context_length,
        )
        _, gate_nats = evidence.gates()
        metrics = evidence.metrics(gate_nats)
        if not write_anyway:
            refuse_short(metrics, Limits())
    else:
        gate = fit_gate(
            *(assistant, tokenizer, forget, retain),
            varied_prompts=settings.varied_prompts,
            seed=seed,
            context_length=context_length,
        )
        gate_nats, metrics = gate.gate_nats, gate.metrics()
    recommended = Strength(weight=settings.weight, keep_ratio=settings.keep_ratio, gate_nats=gate_nats)
    canaries = choose_canaries(
        *(target, tokenizer, forget, retain),
        seed=seed,
        in_force=[LoadedSet(assistant, recommended, settings.rule)],
        needed=not write_anyway,
    )
    return save_forget_set(
        folder,
        tensors=adapter_tensors(assistant),
        adapter_config=adapter_config(assistant),
        manifest={
            "name": folder.name,
            "version": "1",
            "kind": "uld",
            "rule": settings.rule,
            "target": identity,
            "tap_layer": settings.tap_layer,
            "num_layers": settings.num_layers,
            "rank": settings.rank,
            "recommended": recommended,
            "bounds": {
                "weight": {"low": settings.weight / 2, "high": settings.weight * 2},
                "keep_ratio": {"low": settings.keep_ratio / 5, "high": min(1.0, settings.keep_ratio * 5)},
                "gate_nats": {"low": 0.0, "high": gate_nats * 2},
            },
            "training": {
                **asdict(settings),
                "seed": seed,
                "dtype": target_dtype(assistant),
                **({"after": f"{after.name}@{after.digest}"} if after else {}),
            },
            "data_digests": {
                "forget": data_digest([pair.row() for pair in forget]),
                "retain": data_digest([pair.row() for pair in retain]),
            },
            "metrics": metrics,
            "label": label,
            "instead": instead,
            "chat_template_kwargs": dict(chat_template_kwargs or {}),
            "canaries": canaries,
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
    label: str | None = None,
    instead: str | None = None,
    write_anyway: bool = False,
) -> ForgetSet:
    """Train one forget set, choose its gate and export it; label and instead as in the manifest."""
    if instead is not None:
        settings = replace(settings, said_instead=fill_in(instead, label or folder.name))
    assistant = train_assistant(
        target, tokenizer, forget, retain, settings, model_id=identity.model_id, seed=seed, progress=progress
    )
    return export_assistant(
        *(folder, target, assistant, tokenizer),
        identity=identity,
        forget=forget,
        retain=retain,
        settings=settings,
        seed=seed,
        label=label,
        instead=instead,
        write_anyway=write_anyway,
    )
