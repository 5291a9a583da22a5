"""Decode from a target with forget sets in force, through the served composition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unlearngate.assistant_training.model.in_force import LoadedSet, subtract
from unlearngate.assistant_training.model.tapped import TappedAssistant

_SHARED = 8  # tokens that prompts must share for them to be computed once


@torch.inference_mode()
def greedy(
    target: Any,
    prompts: Sequence[list[int]],
    *,
    eos_id: int,
    max_tokens: int,
    in_force: Sequence[LoadedSet] = (),
    usual: list[list[float]] | None = None,
) -> list[list[int]]:
    """Decode greedily, all prompts in one batch.

    Args:
        target: the model being served, in evaluation mode.
        prompts: token ids, of any lengths.
        eos_id: the token that ends an answer.
        max_tokens: answers are cut here.
        in_force: forget sets to compose, as the server would; none decodes the plain target.
        usual: if given, gets a list for each prompt: ln p of every composed token under the plain target, the end token
            among them. What a set says instead of an answer is not composed, and has none.

    Returns: the new tokens of each prompt, without the end token.
    Raises: ValueError if a row cannot be composed.
    """
    return _decode(target, prompts, partial(torch.argmax, dim=-1), eos_id, max_tokens, in_force, usual)


@torch.inference_mode()
def sample(
    target: Any,
    prompts: Sequence[list[int]],
    *,
    eos_id: int,
    max_tokens: int,
    seed: int,
    temperature: float = 1.0,
    in_force: Sequence[LoadedSet] = (),
) -> list[list[int]]:
    """Decode by sampling from the whole distribution, as an attacker who asks again and again would.

    Args:
        target: as in `greedy`.
        prompts: as in `greedy`.
        eos_id: as in `greedy`.
        max_tokens: as in `greedy`.
        seed: the same seed, the same answers.
        temperature: above 0; the logits are divided by it after composition.
        in_force: as in `greedy`.

    Returns: the new tokens of each prompt, without the end token.
    Raises: ValueError if a row cannot be composed.
    """
    device = next(target.parameters()).device
    generator = torch.Generator(device).manual_seed(seed)

    def choose(logits_BV: Tensor) -> Tensor:
        return torch.multinomial((logits_BV / temperature).softmax(dim=-1), 1, generator=generator)[:, 0]

    return _decode(target, prompts, choose, eos_id, max_tokens, in_force)


def cached_bytes(model: Any) -> int:
    """Of the keys and values that a Hugging Face model keeps for a token, at most."""
    config = model.config
    heads = getattr(config, "num_key_value_heads", None) or config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    return int(2 * config.num_hidden_layers * heads * head_dim * model.dtype.itemsize)


def _decode(
    target: Any,
    prompts: Sequence[list[int]],
    choose: Callable[[Tensor], Tensor],
    eos_id: int,
    max_tokens: int,
    in_force: Sequence[LoadedSet],
    usual: list[list[float]] | None = None,
) -> list[list[int]]:
    batch = _Batch(target, [forget_set.assistant for forget_set in in_force], prompts)
    answers: list[list[int]] = [[] for _ in prompts]
    told: list[list[float]] = [[] for _ in prompts]
    running = []
    for row, sentence in enumerate(_sentences(batch, in_force)):
        if sentence:
            answers[row] += sentence[:-1][:max_tokens]
        else:
            running.append(row)
    if len(running) < len(prompts):
        batch.keep(torch.tensor(running, dtype=torch.int64))
    for _ in range(max_tokens if running else 0):
        logits_BV, *assistants = batch.logits
        own_BV = None if usual is None else logits_BV.log_softmax(dim=-1)
        strengths, rules = [f.strength for f in in_force], [f.rule for f in in_force]
        subtract(logits_BV, assistants, strengths, rules)
        token_B = choose(logits_BV)
        if own_BV is not None:
            for index, log_p in zip(running, own_BV.gather(1, token_B[:, None])[:, 0].tolist(), strict=True):
                told[index].append(log_p)
        left_N = (token_B != eos_id).nonzero()[:, 0]
        if len(left_N) < len(running):  # finished rows cost nothing more
            running, token_B = [running[row] for row in left_N.tolist()], token_B[left_N]
            batch.keep(left_N)
        if not running:
            break
        for index, token in zip(running, token_B.tolist(), strict=True):
            answers[index].append(token)
        batch.feed(token_B)
    if usual is not None:
        usual += told
    return answers


def _sentences(batch: _Batch, in_force: Sequence[LoadedSet]) -> list[tuple[int, ...]]:
    """What each answer says from its first position on: the first open set's sentence, or nothing to be composed."""
    logits_BV, *assistants = batch.logits
    said: list[tuple[int, ...]] = [()] * len(logits_BV)
    for assistant_BV, forget_set in zip(assistants, in_force, strict=True):
        if forget_set.sentence:
            closed_B = subtract(logits_BV.clone(), [assistant_BV], [forget_set.strength], [forget_set.rule])
            for row in (~closed_B).nonzero()[:, 0].tolist():
                said[row] = said[row] or forget_set.sentence
    return said


class _Batch:
    """A left-padded batch on the target and on its assistants, with each model's cache and logits for the next token.

    A tapped assistant goes on from the target's own hidden states, as in the served model.
    """

    logits: list[Tensor]  # (B, V) of each model, the target's first

    def __init__(self, target: Any, assistants: Sequence[Any], prompts: Sequence[list[int]]) -> None:
        self._device = next(target.parameters()).device
        self._models = [target, *assistants]
        self._caches: list[Any] = [None] * len(self._models)
        config = getattr(target, "config", None)  # a model made of several has none
        # Padding behind a shared beginning would count for a window.
        shares = config is not None and not getattr(config, "sliding_window", None)
        shared = len(_shared_beginning(prompts)) if shares else 0
        length = max(len(prompt) for prompt in prompts)
        pads = [length - len(prompt) for prompt in prompts]
        rows = [[0] * pad + prompt[shared:] for pad, prompt in zip(pads, prompts, strict=True)]
        masks = [[1] * shared + [0] * pad + [1] * (length - pad - shared) for pad in pads]
        if shared:
            self._mask = torch.ones((1, shared), dtype=torch.int64, device=self._device)
            self._run(torch.tensor([prompts[0][:shared]], device=self._device), self._mask.cumsum(dim=-1) - 1)
            for cache in _single(self._caches):
                cache.batch_repeat_interleave(len(prompts))
        self._mask = torch.tensor(masks, device=self._device)
        positions_BT = (self._mask.cumsum(dim=-1) - 1).clamp(min=0)
        self._run(torch.tensor(rows, device=self._device), positions_BT[:, shared:])

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        self._mask = self._mask[rows_N]
        self.logits = [logits_BV[rows_N] for logits_BV in self.logits]
        for cache in _single(self._caches):
            cache.batch_select_indices(rows_N.to(self._device))

    def feed(self, token_B: Tensor) -> None:
        """Take a token of each row, and compute what comes next."""
        self._mask = torch.cat([self._mask, torch.ones_like(token_B)[:, None]], dim=1)
        self._run(token_B[:, None], self._mask.sum(dim=-1, keepdim=True) - 1)

    def _run(self, input_ids: Tensor, position_ids: Tensor) -> None:
        target, *assistants = self._models
        taps = {model.tap_layer for model in assistants if isinstance(model, TappedAssistant)}
        common = {"attention_mask": self._mask, "position_ids": position_ids, "use_cache": True, "logits_to_keep": 1}
        of_target, *of_assistants = self._caches
        with _inputs_of(target, taps) as hidden_at:
            outputs = [target(input_ids=input_ids, past_key_values=of_target, **common)]
        for model, cache in zip(assistants, of_assistants, strict=True):
            if isinstance(model, TappedAssistant):
                hidden_BTH = hidden_at[model.tap_layer]
                outputs.append(model.peft_model(inputs_embeds=hidden_BTH, past_key_values=cache, **common))
            else:
                outputs.append(model(input_ids=input_ids, past_key_values=cache, **common))
        self._caches = [output.past_key_values for output in outputs]
        self.logits = [output.logits[:, -1].float() for output in outputs]


@contextmanager
def _inputs_of(target: Any, layers: Iterable[int]) -> Iterator[dict[int, Tensor]]:
    """The hidden states that go into these layers of the target while it runs, by layer."""
    found: dict[int, Tensor] = {}

    def note(layer: int, _: Any, given: tuple[Any, ...], named: dict[str, Any]) -> None:
        found[layer] = given[0] if given else named["hidden_states"]

    hooks = [
        target.model.layers[layer].register_forward_pre_hook(partial(note, layer), with_kwargs=True) for layer in layers
    ]
    try:
        yield found
    finally:
        for hook in hooks:
            hook.remove()


def _single(caches: Iterable[Any]) -> Iterator[Any]:
    """Each cache; a model that is made of several has a tuple of theirs."""
    for cache in caches:
        if isinstance(cache, tuple):
            yield from _single(cache)
        else:
            yield cache


def _shared_beginning(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with and go on from; none where there are too few to matter."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False) if len(prompts) > 1 else ()
    shared = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
    return shared if len(shared) >= _SHARED else []
