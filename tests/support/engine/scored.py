"""A prompt's log-probabilities against the reference: scoring mode of composition.md, written out once more.

A number is right if some reading of the row explains it together with all others of its position: a gate or a kept
token that hangs by less than a tolerance may fall either way.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from itertools import product

import numpy as np

from support.engine.reference import Reference, Term, gate_readings, is_open

MOST_READINGS = 256  # of one position; with more it is counted as undecided


@dataclass
class Scored:
    """How a prompt's log-probabilities compare; counts are of positions but for `numbers` of log-probabilities."""

    positions: int = 0
    undecided: int = 0
    numbers: int = 0
    composed: int = 0  # a gate was open
    not_kept: int = 0  # of these, where sampling would never say the prompt's token
    error: float = 0.0
    wrong: list[str] = field(default_factory=list)

    def __iadd__(self, other: Scored) -> Scored:
        for name in ("positions", "undecided", "numbers", "composed", "not_kept", "wrong"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.error = max(self.error, other.error)
        return self


def check_prompt(
    reference: Reference,
    prompt: list[int],
    served: list[dict[int, float] | None],
    number: int,
    terms: list[Term],
    keep_ratio: float,
    tolerances: tuple[float, float],
    student: str | None = None,
) -> Scored:
    """Compare every position of a prompt.

    Args:
        reference: in float64.
        prompt: token ids.
        served: log-probabilities by token, of each position; None for the first, which nothing comes before.
        number: how many of the most likely tokens were asked for; the prompt's own token is always there.
        terms: the sets of kind `uld` in force.
        keep_ratio: tau.
        tolerances: of gates and thresholds, and of log-probabilities.
        student: a set of kind `undial` in force.
    """
    verdict = Scored(positions=len(prompt) - 1)
    if len(served) != len(prompt) or served[0] is not None:
        verdict.wrong.append(f"{len(served)} positions for a prompt of {len(prompt)} tokens, the first {served[:1]}")
        return verdict
    target, assistants, _ = reference.logits(prompt, terms, student)
    for i, numbers in enumerate(served[1:]):
        token, row = prompt[i + 1], (target[i], [a[i] for a in assistants], terms, keep_ratio)
        readings = _readings(*row, tolerances[0])
        if len(readings) > MOST_READINGS:
            verdict.undecided += 1
            continue
        taken, kept = readings[0]
        verdict.composed += taken is not None
        verdict.not_kept += taken is not None and not kept[token]
        verdict.numbers += len(numbers)
        error = min(_error(target[i], *reading, numbers, number, token) for reading in readings)
        verdict.error = max(verdict.error, error)
        if not error <= tolerances[1]:
            expected = _log_p(target[i], taken, kept)
            verdict.wrong.append(
                f"prompt position {i + 1}: off by {error:.3g}; token {token} got {numbers.get(token)}, "
                f"expected {expected[token]:.6f}; {terms}, keep_ratio {keep_ratio}, student {student}"
            )
    return verdict


def served_prompts(body: dict) -> list[list[dict[int, float] | None]]:
    """Of an answer over HTTP, each choice's log-probabilities of its prompt, as `check_prompt` takes them.

    With `echo` they stand before the answer's own; else vLLM has them in `prompt_logprobs`, in chat for all choices.
    Asked for with `return_token_ids`, which says where an answer begins, and `return_tokens_as_token_ids`.
    """
    found = []
    for choice in body["choices"]:
        logprobs = choice.get("logprobs") or {}
        if logprobs.get("token_logprobs", [0])[:1] == [None]:
            tops = logprobs["top_logprobs"][: len(choice["prompt_token_ids"])]
            found.append([p and {int(t.removeprefix("token_id:")): one for t, one in p.items()} for p in tops])
        else:
            numbers = choice.get("prompt_logprobs") or body["prompt_logprobs"]
            found.append([p and {int(token): one["logprob"] for token, one in p.items()} for p in numbers])
    return found


def _readings(t, assistants, terms, keep_ratio, tolerance):
    """What is taken and which tokens are kept, the exact reading first; (None, all) where no gate is open."""
    vocab_size, everything = len(t), np.ones(len(t), bool)
    parts, evidence = [], []
    for term, a in zip(terms, assistants, strict=True):
        log_p = a - np.logaddexp.reduce(a)
        c = log_p + math.log(vocab_size)
        parts.append(term.weight * (np.maximum(c - math.log(vocab_size) / 2, 0.0) if term.lowers else c))
        evidence.append(float((np.exp(log_p) * c).sum()))
    rank = max(1, math.floor(keep_ratio * vocab_size))
    by_rank = np.sort(t)[::-1][rank - 1]
    by_ratio = t.max() + math.log(keep_ratio) if keep_ratio > 0 else -math.inf
    threshold = min(by_ratio, by_rank)
    close = np.flatnonzero(np.abs(t - threshold) <= tolerance)
    if len(close) == 1 and by_rank < by_ratio - tolerance:
        close = close[:0]  # it is the token of that rank itself
    if 2 ** len(close) > MOST_READINGS:
        return [(None, everything)] * (MOST_READINGS + 1)
    exact = t >= threshold
    masks = [exact]
    for choice in product([False, True], repeat=len(close)) if len(close) else ():
        mask = exact.copy()
        mask[close] = choice
        masks.append(mask)
    gates = gate_readings(terms, evidence, tolerance)
    right = [is_open(term, e) for term, e in zip(terms, evidence, strict=True)]
    readings = []
    for opened in sorted(gates, key=lambda reading: reading != right):
        if any(opened):
            taken = sum(part for part, acts in zip(parts, opened, strict=True) if acts)
            readings += [(taken, mask) for mask in masks]
        else:
            readings.append((None, everything))
    return readings


def _log_p(t, taken, kept):
    z = t if taken is None else np.where(kept, t - taken, t)
    return z - np.logaddexp.reduce(z)


def _error(t, taken, kept, numbers, number, token):
    """The largest difference; infinite if the prompt's token or one of the best is not there."""
    log_p = _log_p(t, taken, kept)
    if token not in numbers or not number <= len(numbers) <= number + 1:
        return math.inf
    best = np.sort(log_p)[::-1][:number]
    top = sorted(numbers.values(), reverse=True)[:number]
    return max([*(abs(log_p[v] - p) for v, p in numbers.items()), *np.abs(best - top)])
