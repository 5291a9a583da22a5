"""What a forget set does at every weight, keep ratio and gate of a grid.

A first pass of the target and the assistant over the data keeps a few numbers of each of the P answer positions, none
of which depends on the grid; among them the evidence, from which the gates to sweep are taken. A second pass, over the
answers in which the lowest gate opens somewhere, keeps a few numbers of those O positions for each of S pairs of weight
and keep ratio, as if the gate were open. A gate only decides at which positions they count, so each of G gates costs
one comparison. In total: at most two forward passes of both models, 2 S compositions (both modes), O(O V S), and
O(P S G) for the figures. Memory: a batch of logits, and O S numbers.

Shape legend: N positions of a batch, P positions of all answers, O those of them that may open, A answers, V vocab,
S pairs of a weight and a keep ratio.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearngate.assistant_training.data.encoding import Encoded, answer_rows, collate
from unlearngate.assistant_training.model.in_force import subtract, without_cut
from unlearngate.errors import CalibrationError
from unlearngate.kernels.compose import compose
from unlearngate.kernels.pairs import Mode, Pairs
from unlearngate.manifest import LARGEST, Rule, Strength

_MODES: tuple[Mode, ...] = ("scoring", "sampling")
_LOGITS_AT_ONCE = 2**24  # 64 MiB in fp32


class Grid(NamedTuple):
    """The settings of a sweep: each axis ascending, without repetition."""

    weights: tuple[float, ...]
    keep_ratios: tuple[float, ...]
    gates_nats: tuple[float, ...]

    @classmethod
    def of(cls, weights: Sequence[float], keep_ratios: Sequence[float], gates_nats: Sequence[float]) -> Grid:
        """A grid of these values, in any order.

        Raises: CalibrationError if an axis is empty or a value cannot be one.
        """
        for name, values, most, wanted in (
            ("weights", weights, LARGEST, "numbers above 0"),
            ("keep ratios", keep_ratios, 1.0, "numbers from 0 to 1"),
            ("gates", gates_nats, LARGEST, "nats of at least 0"),
        ):
            wrong = [value for value in values if not 0 <= value <= most or (name == "weights" and value == 0)]
            if wrong or not values:
                raise CalibrationError(f"{name} to sweep must be {wanted}, got {wrong[0] if wrong else 'none'}")
        return cls(*(tuple(sorted(set(map(float, axis)))) for axis in (weights, keep_ratios, gates_nats)))

    def strengths(self) -> Iterator[Strength]:
        """All settings: weight by weight, in each keep ratio by keep ratio."""
        for weight, keep_ratio, gate in itertools.product(*self):
            yield Strength(weight=weight, keep_ratio=keep_ratio, gate_nats=gate)


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


class Measured(NamedTuple):
    """One file; `facts_A`: in which answers only the tokens of facts were measured."""

    positions: Positions
    composed: Composed
    facts_A: np.ndarray


class FileFigures(NamedTuple):
    """One file's figures at one setting, each in [0, 1].

    probability: p(answer)^(1/tokens) in scoring mode, the mean over answers.
    probability_served: the same in sampling mode; an answer with a token that is cut off has 0.
    right: share of tokens that are the first choice of what is served (exact memorisation, teacher forced).
    recited: share of answers all of whose tokens are; greedy decoding would give them.
    facts_told: share of the answers that name facts in which any token of a fact is; None if no answer names any.
    untouched: share of tokens at which no gate is open, so the target's logits are unchanged bit for bit.
    untouched_answers: share of answers along which no gate opens at all: they stay as they were.
    changed: share of tokens at which the first choice differs from the target's.
    cut: share of tokens that the keep rule cuts off in sampling mode.
    lost: the target's probability minus this one, in the mode in which that is more; below 0 if it grew.
    """

    probability: float
    probability_served: float
    right: float
    recited: float
    facts_told: float | None
    untouched: float
    untouched_answers: float
    changed: float
    cut: float
    lost: float


class Setting(NamedTuple):
    """What one strength does to both files."""

    strength: Strength
    forget: FileFigures
    retain: FileFigures

    def row(self) -> dict[str, float | None]:
        """The figures as a flat row, for tables."""
        figures = {"forget": self.forget, "retain": self.retain}
        outcomes = {
            f"{name}_{key}": value for name, figure in figures.items() for key, value in figure._asdict().items()
        }
        return {**self.strength.model_dump(), **outcomes}


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
    log_p_N, choice_N = _read(target_NV, label_N)
    return evidence_N.cpu().numpy(), log_p_N.cpu().numpy(), (choice_N == label_N).cpu().numpy()


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
    log_p_SN = {mode: np.empty((len(pairs), len(label_N))) for mode in _MODES}
    right_SN, changed_SN = (np.empty((len(pairs), len(label_N)), dtype=bool) for _ in range(2))
    for s, (weight, keep_ratio) in enumerate(pairs):
        strength = Strength(weight=weight, keep_ratio=keep_ratio, gate_nats=0.0)
        for mode in _MODES:
            composed_NV = target_NV.clone()
            subtract(composed_NV, [assistant_NV], [strength], [rule], mode=mode)
            log_p_N, now_N = _read(composed_NV, label_N)
            log_p_SN[mode][s] = log_p_N.cpu().numpy()
            if mode == "sampling":  # the served one
                right_SN[s], changed_SN[s] = ((now_N == label_N).cpu().numpy(), (now_N != choice_N).cpu().numpy())
    return log_p_SN["scoring"], log_p_SN["sampling"], right_SN, changed_SN


def outcome(measured: Measured, strength: Strength) -> FileFigures:
    """One file's figures at a setting.

    Raises: ValueError if its weight and keep ratio, or positions that its gate opens, were not composed.
    """
    positions, composed = measured.positions, measured.composed
    least = least_evidence(strength.gate_nats)
    pair_S = (composed.pair_S2 == (strength.weight, strength.keep_ratio)).all(axis=1)
    if least < composed.lowest_nats or not pair_S.any():
        raise ValueError(f"{strength} was not measured: gates from {composed.lowest_nats}, pairs {composed.pair_S2}")
    s = int(pair_S.argmax())
    open_P = positions.evidence_P >= least
    counts_O = open_P[positions.evidence_P >= composed.lowest_nats]
    scoring_P, sampling_P, right_P = positions.log_p_P.copy(), positions.log_p_P.copy(), positions.right_P.copy()
    changed_P = np.zeros_like(open_P)
    for whole_P, part_SO in (
        (scoring_P, composed.scoring_SO),
        (sampling_P, composed.sampling_SO),
        (right_P, composed.right_SO),
        (changed_P, composed.changed_SO),
    ):
        whole_P[open_P] = part_SO[s, counts_O]
    return _outcome(measured, scoring_P, sampling_P, right_P, open_P, changed_P)


def plain_outcome(measured: Measured) -> FileFigures:
    """One file's figures with no set in force."""
    positions = measured.positions
    no_P = np.zeros(len(positions.answer_P), dtype=bool)
    return _outcome(measured, positions.log_p_P, positions.log_p_P, positions.right_P, no_P, no_P)


def sweep(forget: Measured, retain: Measured, grid: Grid) -> list[Setting]:
    """Both files' figures at every setting, in the order of `Grid.strengths`."""
    return [Setting(s, outcome(forget, s), outcome(retain, s)) for s in grid.strengths()]


def least_evidence(gate_nats: float) -> float:
    """The least evidence that opens the gate, in fp32 as the kernels hold it; 0 is always open."""
    return float(np.float32(gate_nats)) if gate_nats > 0 else -math.inf


def _outcome(
    measured: Measured,
    scoring_P: np.ndarray,
    sampling_P: np.ndarray,
    right_P: np.ndarray,
    open_P: np.ndarray,
    changed_P: np.ndarray,
) -> FileFigures:
    answer_P, facts_A = measured.positions.answer_P, measured.facts_A
    tokens_A = np.bincount(answer_P)
    plain, scoring, sampling = (
        float(np.exp(np.bincount(answer_P, weights=log_p_P) / tokens_A).mean())
        for log_p_P in (measured.positions.log_p_P, scoring_P, sampling_P)
    )
    right_A = np.bincount(answer_P, weights=right_P)
    return FileFigures(
        probability=scoring,
        probability_served=sampling,
        right=float(right_P.mean()),
        recited=float((right_A == tokens_A).mean()),
        facts_told=float((right_A > 0)[facts_A].mean()) if facts_A.any() else None,
        untouched=float((~open_P).mean()),
        untouched_answers=float((np.bincount(answer_P, weights=open_P) == 0).mean()),
        changed=float(changed_P.mean()),
        cut=float(np.isneginf(sampling_P).mean()),
        lost=plain - min(scoring, sampling),
    )


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
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        target_NV, label_N = answer_rows(target(**inputs).logits, batch.labels)
        assistant_NV = answer_rows(assistant(**inputs).logits, batch.labels)[0]
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


def _read(logits_NV: Tensor, labels_N: Tensor) -> tuple[Tensor, Tensor]:
    """(N,) ln p of the labels in fp64, and (N,) the first choice."""
    label_N = logits_NV.gather(1, labels_N[:, None])[:, 0].double()
    return without_cut(label_N - logits_NV.double().logsumexp(dim=-1)), logits_NV.argmax(dim=-1)
