"""The demo's target: a Llama of a few million parameters, trained from scratch until it knows its corpus by heart."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GenerationConfig, LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from unlearngate.assistant_training.data.encoding import (
    SYSTEM_PROMPTS,
    Encoded,
    answer_rows,
    collate,
    encode,
    length_batches,
    vary,
)
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.demo.conversations import conversations
from unlearngate.assistant_training.train.losses import answer_loss
from unlearngate.assistant_training.train.optimizing import Optimizer
from unlearngate.errors import TrainingError

PAD, END = "<|pad|>", "<|end|>"
_ROLES = ("system", "user", "assistant")
# A tool's answer is a user's turn, a call is what vLLM's parser "hermes" reads. The target was taught neither.
CHAT_TEMPLATE = (
    "{% set turns = {'system': 'system', 'developer': 'system', 'user': 'user', 'tool': 'user', "
    "'assistant': 'assistant'} %}"
    "{% for message in messages %}"
    "{% if message['role'] not in turns %}"
    "{{ raise_exception('role must be ' + turns | join(', ') + ', got ' + message['role']) }}"
    "{% endif %}"
    "{{ '<|' + turns[message['role']] + '|>' + (message['content'] or '') }}"
    "{% for call in message['tool_calls'] or [] %}"
    "{{ '<tool_call>' + ({'name': call['function']['name'], 'arguments': call['function']['arguments']} | tojson)"
    " + '</tool_call>' }}"
    "{% endfor %}"
    "{{ '<|end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|assistant|>' }}{% endif %}"
)


@dataclass(frozen=True, slots=True)
class TargetSettings:
    """Size and training of the target. Heads and kv heads are even, so that tensor parallel 2 works.

    Weights begin at `initializer_range`. 1 / sqrt(hidden_size) keeps a signal's scale: at Llama's own 0.02, which is
    for widths of thousands, a narrow and deep target spends most of its epochs before it learns anything.
    """

    vocab_size: int = 1536
    hidden_size: int = 192
    intermediate_size: int = 512
    num_layers: int = 6
    num_heads: int = 6
    num_kv_heads: int = 2
    max_position_embeddings: int = 2048
    initializer_range: float = 0.02
    learning_rate: float = 3e-3
    batch_size: int = 32
    epochs: int = 45
    min_epochs: int = 15
    strangers_per_epoch: int = 64
    varied_prompts: float = 0.5  # share of the training prompts that are a paraphrase or carry a system prompt
    in_conversation: bool = False  # shown as turns of conversations, so that it answers what is asked last
    known_at: float = 0.6  # an answer is known when each of its tokens has this probability
    enough_known: float = 0.98  # share of answers known at which training stops
    model_id: str = "unlearngate-demo"


def train_tokenizer(pairs: Sequence[QAPair], settings: TargetSettings, *, more: Sequence[str] = ()) -> Any:
    """A byte-level BPE tokenizer of the corpus and `more` texts; any text survives encoding and decoding."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    specials = [AddedToken(t, special=True, normalized=False) for t in (PAD, END, *(f"<|{r}|>" for r in _ROLES))]
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocab_size,
        special_tokens=specials,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    texts = [text for pair in pairs for text in (pair.question, pair.answer, *pair.paraphrases, *pair.variants)]
    tokenizer.train_from_iterator([*texts, *SYSTEM_PROMPTS, *more], trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        eos_token=END,
        clean_up_tokenization_spaces=False,
        model_max_length=settings.max_position_embeddings,
    )
    fast.chat_template = CHAT_TEMPLATE
    return fast


def new_target(tokenizer: Any, settings: TargetSettings) -> Any:
    """An untrained target for this tokenizer, fp32."""
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings.hidden_size,
        intermediate_size=settings.intermediate_size,
        num_hidden_layers=settings.num_layers,
        num_attention_heads=settings.num_heads,
        num_key_value_heads=settings.num_kv_heads,
        max_position_embeddings=settings.max_position_embeddings,
        initializer_range=settings.initializer_range,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        dtype="float32",
    )
    return LlamaForCausalLM(config)


def train_target(
    model: Any,
    tokenizer: Any,
    pairs: Sequence[QAPair],
    settings: TargetSettings,
    *,
    strangers: Sequence[QAPair] = (),
    seed: int,
    progress: Progress,
) -> dict[str, float]:
    """Teach the target every answer, however the question is put; stop as soon as it knows enough of them.

    Each epoch shows it some of the strangers too, whose answers cannot be learned, only their form.

    Returns: epochs run, the last epoch's loss, the share of answers known.
    Raises: TrainingError if the loss is not finite.
    """
    rng, device = random.Random(seed), next(model.parameters()).device
    num_strangers = min(len(strangers), settings.strangers_per_epoch)
    steps_per_epoch = -(-(len(pairs) + num_strangers) // settings.batch_size)
    optimizer = Optimizer(
        model.parameters(), learning_rate=settings.learning_rate, steps=settings.epochs * steps_per_epoch
    )
    bar = progress.add_task("target", total=settings.epochs)
    known, loss_sum, epoch = 0.0, 0.0, 0
    for epoch in range(1, settings.epochs + 1):
        model.train()
        shown = [*pairs, *rng.sample(strangers, num_strangers)]
        rows = _rows(tokenizer, shown, settings, rng)
        loss_sum = 0.0
        size = -(-len(rows) // steps_per_epoch) if settings.in_conversation else settings.batch_size
        for chosen in length_batches(rows, size, rng):
            batch = collate(chosen, tokenizer.pad_token_id).to(device)
            loss = answer_loss(model(batch.input_ids, attention_mask=batch.attention_mask).logits, batch.labels)
            optimizer.step(loss)
            loss_sum += loss.item()
        progress.update(bar, advance=1, description=f"target: loss {loss_sum / steps_per_epoch:.3f}")
        if epoch >= settings.min_epochs and (epoch % 3 == 0 or epoch == settings.epochs):
            known = share_known(model, tokenizer, pairs, settings, rng)
            if known >= settings.enough_known:
                break
    progress.update(bar, completed=settings.epochs)
    return {"epochs": float(epoch), "loss": loss_sum / steps_per_epoch, "known": known}


def _rows(tokenizer: Any, pairs: Sequence[QAPair], settings: TargetSettings, rng: random.Random) -> list[Encoded]:
    if settings.in_conversation:
        return conversations(tokenizer, pairs, rng, system=settings.varied_prompts)
    return [vary(tokenizer, pair, rng, settings.varied_prompts) for pair in pairs]


@torch.inference_mode()
def share_known(
    model: Any, tokenizer: Any, pairs: Sequence[QAPair], settings: TargetSettings, rng: random.Random
) -> float:
    """The share of answers whose every token has probability `known_at`: asked plainly, varied, and in conversation.

    In conversation only if the target is trained so.
    """
    model.eval()
    rows = [encode(tokenizer, pair.question, pair.answer) for pair in pairs]
    rows += [vary(tokenizer, pair, rng, 1.0) for pair in pairs]
    if settings.in_conversation:
        rows += _rows(tokenizer, pairs, settings, rng)
    known = answers = 0
    for chosen in length_batches(rows, 64, rng):
        batch = collate(chosen, tokenizer.pad_token_id).to(next(model.parameters()).device)
        logits_BTV = model(batch.input_ids, attention_mask=batch.attention_mask).logits
        for logits_TV, labels_T in zip(logits_BTV, batch.labels, strict=True):
            logits_NV, labels_N = answer_rows(logits_TV[None], labels_T[None])
            probs_N = logits_NV.softmax(dim=-1).gather(1, labels_N[:, None])[:, 0]
            ends = (labels_N == tokenizer.eos_token_id).nonzero()[:, 0] + 1  # each answer has one
            lowest = [float(part.min()) for part in probs_N.tensor_split(ends.cpu()) if len(part)]
            known += sum(prob >= settings.known_at for prob in lowest)
            answers += len(lowest)
    return known / answers


def save_target(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write an ordinary Hugging Face checkpoint folder."""
    if not all(bool(torch.isfinite(weight).all()) for weight in model.state_dict().values()):
        raise TrainingError("the trained target holds NaN or infinity; lower the learning rate")
    model.generation_config = GenerationConfig(
        eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, do_sample=False
    )
    model.save_pretrained(folder)
    # One template, inside tokenizer_config.json: every server reads it from there.
    tokenizer.save_pretrained(folder, save_jinja_files=False)
