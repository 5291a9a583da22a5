"""Decode from a target with forget sets in force, through the served composition."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from unlearngate.assistant_training.model.in_force import LoadedSet, subtract

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
    device = next(target.parameters()).device
    models = (target, *(f.assistant for f in in_force))
    # Padding behind a shared beginning would count for a window.
    shared = 0 if getattr(target.config, "sliding_window", None) else len(_shared_beginning(prompts))
    target_branch, *branches = [_Branch(model, prompts, shared, device) for model in models]
    answers: list[list[int]] = [[] for _ in prompts]
    told: list[list[float]] = [[] for _ in prompts]
    running = []
    for row, sentence in enumerate(_sentences(target_branch.logits_BV, branches, in_force)):
        if sentence:
            answers[row] += sentence[:-1][:max_tokens]
        else:
            running.append(row)
    if len(running) < len(prompts):
        for branch in (target_branch, *branches):
            branch.keep(torch.tensor(running, dtype=torch.int64, device=device))
    for _ in range(max_tokens if running else 0):
        logits_BV = target_branch.logits_BV
        own_BV = None if usual is None else logits_BV.log_softmax(dim=-1)
        strengths, rules = [f.strength for f in in_force], [f.rule for f in in_force]
        subtract(logits_BV, [branch.logits_BV for branch in branches], strengths, rules)
        token_B = choose(logits_BV)
        if own_BV is not None:
            for index, log_p in zip(running, own_BV.gather(1, token_B[:, None])[:, 0].tolist(), strict=True):
                told[index].append(log_p)
        left_N = (token_B != eos_id).nonzero()[:, 0]
        if len(left_N) < len(running):  # finished rows cost nothing more
            running, token_B = [running[row] for row in left_N.tolist()], token_B[left_N]
            for branch in (target_branch, *branches):
                branch.keep(left_N)
        if not running:
            break
        for index, token in zip(running, token_B.tolist(), strict=True):
            answers[index].append(token)
        for branch in (target_branch, *branches):
            branch.feed(token_B)
    if usual is not None:
        usual += told
    return answers


def _sentences(logits_BV: Tensor, branches: Sequence[_Branch], in_force: Sequence[LoadedSet]) -> list[tuple[int, ...]]:
    """What each answer says from its first position on: the first open set's sentence, or nothing to be composed."""
    said: list[tuple[int, ...]] = [()] * len(logits_BV)
    for branch, forget_set in zip(branches, in_force, strict=True):
        if forget_set.sentence:
            closed_B = subtract(logits_BV.clone(), [branch.logits_BV], [forget_set.strength], [forget_set.rule])
            for row in (~closed_B).nonzero()[:, 0].tolist():
                said[row] = said[row] or forget_set.sentence
    return said


class _Branch:
    """One model's left-padded batch with its cache, and its logits for the next token."""

    logits_BV: Tensor

    def __init__(self, model: Any, prompts: Sequence[list[int]], shared: int, device: torch.device) -> None:
        """Of prompts that have their first `shared` tokens in common."""
        length = max(len(prompt) for prompt in prompts) - shared
        pads = [length + shared - len(prompt) for prompt in prompts]
        input_ids = torch.tensor([[0] * pad + prompt[shared:] for pad, prompt in zip(pads, prompts, strict=True)])
        masks = [[1] * shared + [0] * pad + [1] * (length - pad) for pad in pads]
        self._model = model
        self._cache: Any = None
        if shared:
            self._mask = torch.ones((1, shared), dtype=torch.int64, device=device)
            self._run(torch.tensor([prompts[0][:shared]], device=device), self._mask.cumsum(dim=-1) - 1)
            _repeat(self._cache, len(prompts))
        self._mask = torch.tensor(masks, device=device)
        self._run(input_ids.to(device), (self._mask.cumsum(dim=-1) - 1).clamp(min=0)[:, shared:])

    def keep(self, rows_N: Tensor) -> None:
        """Keep only these rows."""
        self._mask = self._mask[rows_N]
        self.logits_BV = self.logits_BV[rows_N]
        _keep_rows(self._cache, rows_N)

    def feed(self, token_B: Tensor) -> None:
        self._mask = torch.cat([self._mask, torch.ones_like(token_B)[:, None]], dim=1)
        self._run(token_B[:, None], self._mask.sum(dim=-1, keepdim=True) - 1)

    def _run(self, input_ids: Tensor, position_ids: Tensor) -> None:
        output = self._model(
            input_ids=input_ids,
            attention_mask=self._mask,
            position_ids=position_ids,
            past_key_values=self._cache,
            use_cache=True,
            logits_to_keep=1,
        )
        self._cache = output.past_key_values
        self.logits_BV = output.logits[:, -1].float()


def _shared_beginning(prompts: Sequence[list[int]]) -> list[int]:
    """The tokens that all prompts begin with and go on from; none where there are too few to matter."""
    columns = zip(*(prompt[:-1] for prompt in prompts), strict=False) if len(prompts) > 1 else ()
    shared = [column[0] for column in itertools.takewhile(lambda column: len(set(column)) == 1, columns)]
    return shared if len(shared) >= _SHARED else []


def _repeat(cache: Any, count: int) -> None:
    """A model's cache of one row, or each cache of a model that is made of several, for so many rows."""
    if isinstance(cache, tuple):
        for part in cache:
            _repeat(part, count)
    else:
        cache.batch_repeat_interleave(count)


def _keep_rows(cache: Any, rows_N: Tensor) -> None:
    """Keep rows of a model's cache, or of each cache of a model that is made of several."""
    if isinstance(cache, tuple):
        for part in cache:
            _keep_rows(part, rows_N)
    else:
        cache.batch_select_indices(rows_N)
