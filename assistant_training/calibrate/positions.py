"""Two passes of the target and the assistant over a file: what is kept of every answer token, for any grid.

Shape legend: N positions of a batch, P positions of all answers, O those of them that may open, A answers, V vocab,
S pairs of a weight and a keep ratio.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearngate.assistant_training.data.encoding import Encoded, collate
from unlearngate.assistant_training.model.in_force import subtract, without_cut
from unlearngate.assistant_training.model.scoring import answer_logits
from unlearngate.kernels.compose import compose
from unlearngate.kernels.pairs import CUT, Mode, Pairs
from unlearngate.manifest import Rule, Strength

_LOGITS_AT_ONCE = 2**24  # 64 MiB in fp32


class Positions(NamedTuple):
    """Every answer token of one file without the set, answer by answer.

    answer_P: which answer it belongs to, from 0, ascending.
    evidence_P: fp32 nats, what the assistant shows.
    log_p_P: ln p of the token, fp64.
    right_P: the token is the target's first choice.
    """

    answer_P: np.ndarray
    evidence_P: np.ndarray
    log_p_P: np.ndarray
    right_P: np.ndarray


class Composed(NamedTuple):
    """The O positions with at least so much evidence, with the set as if its gate were open.

    lowest_nats: the evidence, or -inf: then these are all positions.
    pair_S2: (S, 2) weight and keep ratio.
    scoring_SO, sampling_SO: ln p of the token with the set, fp64; sampling has -inf where it is cut off.
    right_SO: the token is the first choice with the set, in sampling mode, which is what is served.
    changed_SO: the first choice differs from the target's.
    """

    lowest_nats: np.ndarray
    pair_S2: np.ndarray
    scoring_SO: np.ndarray
    sampling_SO: np.ndarray
    right_SO: np.ndarray
    changed_SO: np.ndarray


class _Batch(NamedTuple):
    """Some rows' answer positions: their logits, their tokens, and which rows they are of."""

    target_NV: Tensor
    assistant_NV: Tensor
    label_N: Tensor
    answer_N: np.ndarray


@torch.inference_mode()
def read_positions(
    target: Any,
    assistant: Any,
    rows: Sequence[Encoded],
    *,
    pad_id: int,
    batch_size: int = 16,
    advance: Callable[[int], object] = lambda count: None,
) -> Positions:
    """The first pass: everything that does not depend on a weight, a keep ratio or a gate.

    Args:
        target: a Hugging Face model in evaluation mode, or a model with the same interface.
        assistant: the set's.
        rows: from `encode`; each must have a labelled token.
        pad_id: pads batches; masked.
        batch_size: rows at a time: their logits over the vocab are what takes memory.
        advance: called with the number of rows done since the last call.

    Raises: ValueError if logits are not finite.
    """
    parts = []
    for batch in _batches(target, assistant, rows, range(len(rows)), pad_id, batch_size, advance):
        for some in _slices(batch.target_NV):
            read = read_rows(batch.target_NV[some].float().contiguous(), batch.assistant_NV[some], batch.label_N[some])
            parts.append((batch.answer_N[some], *read))
    answer_P, *others = (np.concatenate(arrays) for arrays in zip(*parts, strict=True))
    order_P = np.argsort(answer_P, kind="stable")  # batches are by length
    return Positions(answer_P[order_P], *(array[order_P] for array in others))


def read_rows(target_NV: Tensor, assistant_NV: Tensor, label_N: Tensor) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Positions' evidence, ln p and right, for (N, V) fp32 logits of the target, any float type of the assistant.

    Raises: ValueError if logits are not finite.
    """
    evidence_N = _evidence(target_NV, assistant_NV.contiguous())
    right_N = target_NV.argmax(dim=-1) == label_N
    return evidence_N.cpu().numpy(), _log_p(target_NV, label_N).cpu().numpy(), right_N.cpu().numpy()


@torch.inference_mode()
def compose_positions(
    target: Any,
    assistant: Any,
    rows: Sequence[Encoded],
    positions: Positions,
    pairs: Sequence[tuple[float, float]],
    lowest_nats: float,
    *,
    pad_id: int,
    rule: Rule,
    batch_size: int = 16,
    advance: Callable[[int], object] = lambda count: None,
) -> Composed:
    """The second pass: the positions with at least `lowest_nats` of evidence under each weight and keep ratio.

    Args:
        target: as in `read_positions`.
        assistant: as in `read_positions`.
        rows: as in `read_positions`.
        positions: what that returned for these rows.
        pairs: weights and keep ratios.
        lowest_nats: the lowest gate; 0 or less takes every position.
        pad_id: as in `read_positions`.
        rule: the set's.
        batch_size: as in `read_positions`.
        advance: called with the number of rows done since the last call, of those with such a position.

    Raises: ValueError if logits are not finite.
    """
    lowest = least_evidence(lowest_nats)
    opened_P = positions.evidence_P >= lowest
    place_P = np.cumsum(opened_P) - 1
    start_A = np.searchsorted(positions.answer_P, np.arange(len(rows) + 1))
    shape = (len(pairs), int(opened_P.sum()))
    numbers = (np.empty(shape), np.empty(shape), np.empty(shape, dtype=bool), np.empty(shape, dtype=bool))
    chosen = np.unique(positions.answer_P[opened_P]).tolist()
    for batch in _batches(target, assistant, rows, chosen, pad_id, batch_size, advance):
        at_N = np.concatenate([np.arange(start_A[a], start_A[a + 1]) for a in dict.fromkeys(batch.answer_N.tolist())])
        device = batch.label_N.device
        for some in _slices(batch.target_NV):
            keep_N = torch.from_numpy(opened_P[at_N[some]]).to(device)
            composed = compose_rows(
                batch.target_NV[some][keep_N].float().contiguous(),
                batch.assistant_NV[some][keep_N].contiguous(),
                batch.label_N[some][keep_N],
                *(pairs, rule),
            )
            places = place_P[at_N[some][opened_P[at_N[some]]]]
            for whole_SO, part_SN in zip(numbers, composed, strict=True):
                whole_SO[:, places] = part_SN
    return Composed(np.array(lowest), np.array(pairs, dtype=np.float64).reshape(-1, 2), *numbers)


def compose_rows(
    target_NV: Tensor, assistant_NV: Tensor, label_N: Tensor, pairs: Sequence[tuple[float, float]], rule: Rule
) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The last four fields of `Composed` for positions whose logits are given: (N, V), the target's in fp32.

    Raises: ValueError if logits are not finite.
    """
    choice_N = target_NV.argmax(dim=-1)
    scoring_SN, sampling_SN = (np.empty((len(pairs), len(label_N))) for _ in range(2))
    right_SN, changed_SN = (np.empty((len(pairs), len(label_N)), dtype=bool) for _ in range(2))
    known: dict[float, Tensor] = {}

    def composed(mode: Mode, weight: float, keep_ratio: float) -> Tensor:
        composed_NV = target_NV.clone()
        strength = Strength(weight=weight, keep_ratio=keep_ratio, gate_nats=0.0)
        subtract(composed_NV, [assistant_NV], [strength], [rule], mode=mode)
        return composed_NV

    for s, (weight, keep_ratio) in enumerate(pairs):
        served_NV = composed("sampling", weight, keep_ratio)
        now_N = served_NV.argmax(dim=-1)
        sampling_SN[s] = _log_p(served_NV, label_N).cpu().numpy()
        right_SN[s], changed_SN[s] = (now_N == label_N).cpu().numpy(), (now_N != choice_N).cpu().numpy()
        if rule == "contrast":  # scoring leaves the target's logit where sampling cuts the token
            scored_N = _log_p(torch.where(served_NV == CUT, target_NV, served_NV), label_N)
        else:  # the ratio says which tail is cut, and scoring cuts none
            if weight not in known:
                known[weight] = _log_p(composed("scoring", weight, keep_ratio), label_N)
            scored_N = known[weight]
        scoring_SN[s] = scored_N.cpu().numpy()
    return scoring_SN, sampling_SN, right_SN, changed_SN


def least_evidence(gate_nats: float) -> float:
    """The least evidence that opens the gate, in fp32 as the kernels hold it; 0 is always open."""
    return float(np.float32(gate_nats)) if gate_nats > 0 else -math.inf


def _batches(
    target: Any,
    assistant: Any,
    rows: Sequence[Encoded],
    chosen: Sequence[int],
    pad_id: int,
    batch_size: int,
    advance: Callable[[int], object],
) -> Iterator[_Batch]:
    """Both models over these rows, those of similar length together."""
    device = next(target.parameters()).device
    by_length = sorted(chosen, key=lambda index: len(rows[index].input_ids))
    for start in range(0, len(by_length), batch_size):
        part = by_length[start : start + batch_size]
        batch = collate([rows[index] for index in part], pad_id).to(device)
        target_NV, label_N = answer_logits(target, batch)
        assistant_NV = answer_logits(assistant, batch)[0]
        answer_N = np.repeat(part, (batch.labels[:, 1:] >= 0).sum(dim=1).cpu().numpy())
        yield _Batch(target_NV, assistant_NV, label_N, answer_N)
        advance(len(part))


def _slices(logits_NV: Tensor) -> Iterator[slice]:
    """As many positions at a time as fit into memory in fp32."""
    size = max(1, _LOGITS_AT_ONCE // logits_NV.shape[1])
    for first in range(0, len(logits_NV), size):
        yield slice(first, first + size)


def _evidence(target_NV: Tensor, assistant_NV: Tensor) -> Tensor:
    """(N,) fp32 nats as the kernels compute it, which is what a gate is compared with."""
    num_rows, vocab_size = target_NV.shape
    shut = Pairs.build(
        *(range(num_rows), [1.0] * num_rows, [math.inf] * num_rows, [0.0] * num_rows),
        vocab_size=vocab_size,
        device=target_NV.device,
    )
    done = compose(target_NV, assistant_NV, shut)
    if bool(done.bad_N.any()):
        raise ValueError(f"{int(done.bad_N.sum())} rows of logits hold NaN or infinity")
    return done.evidence_N


def _log_p(logits_NV: Tensor, label_N: Tensor) -> Tensor:
    """(N,) ln p of the labels, fp64; the logits are fp32."""
    largest_N1 = logits_NV.amax(dim=-1, keepdim=True)
    # What is below e^-80 of the largest changes no sum, and would be denormal, which CPUs are slow with.
    sum_N = (logits_NV - largest_N1).clamp_(min=-80.0).exp_().sum(dim=-1).double()
    own_N = logits_NV.gather(1, label_N[:, None])[:, 0].double()
    return without_cut(own_N - largest_N1[:, 0].double() - sum_N.log())
