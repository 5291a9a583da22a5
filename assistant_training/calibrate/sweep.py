"""What a forget set does at every weight, keep ratio and gate of a grid, from one pass of its two models over the data.

The target's and the assistant's logits at all P answer positions are computed once, in batches, and each batch is freed
once it is measured. Every position keeps a few numbers for each of the W weights x K keep ratios, as if its gate were
open. A gate only decides at which positions they count, so each of G gates costs one comparison. In total: one
forward pass of both models, 2 W K compositions (both modes) of the positions that the lowest gate opens, O(P V W K),
and O(P W K G) for the figures. Memory: a batch of logits, and P W K numbers.

Shape legend: N positions of a batch, P positions of all answers, V vocab, W weights, K keep ratios.
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
    """Every answer token of one file, without the set and, in fields with W and K, with it as if its gate were open.

    answer_P: which answer it belongs to, from 0.
    evidence_P: fp32 nats, what the assistant shows.
    log_p_P: ln p of the token, fp64.
    right_P: the token is the target's first choice.
    scoring_WKP, sampling_WKP: ln p of the token with the set, fp64; sampling has -inf where it is cut off.
    right_WKP: the token is the first choice with the set, in sampling mode, which is what is served.
    changed_WKP: the first choice differs from the target's.
    """

    answer_P: np.ndarray
    evidence_P: np.ndarray
    log_p_P: np.ndarray
    right_P: np.ndarray
    scoring_WKP: np.ndarray
    sampling_WKP: np.ndarray
    right_WKP: np.ndarray
    changed_WKP: np.ndarray


class FileFigures(NamedTuple):
    """One file's figures at one setting, each in [0, 1].

    probability: p(answer)^(1/tokens) in scoring mode, the mean over answers.
    probability_served: the same in sampling mode; an answer with a token that is cut off has 0.
    right: share of tokens that are the first choice of what is served (exact memorisation, teacher forced).
    recited: share of answers all of whose tokens are; greedy decoding would give them.
    untouched: share of tokens at which no gate is open, so the target's logits are unchanged bit for bit.
    changed: share of tokens at which the first choice differs from the target's.
    cut: share of tokens that the keep rule cuts off in sampling mode.
    lost: the target's probability minus this one, in the mode in which that is more; below 0 if it grew.
    """

    probability: float
    probability_served: float
    right: float
    recited: float
    untouched: float
    changed: float
    cut: float
    lost: float


class Setting(NamedTuple):
    """What one strength does to both files."""

    strength: Strength
    forget: FileFigures
    retain: FileFigures

    def row(self) -> dict[str, float]:
        """The figures as a flat row, for tables."""
        figures = {"forget": self.forget, "retain": self.retain}
        outcomes = {
            f"{name}_{key}": value for name, figure in figures.items() for key, value in figure._asdict().items()
        }
        return {**self.strength.model_dump(), **outcomes}


@torch.inference_mode()
def measure(
    target: Any,
    assistant: Any,
    rows: Sequence[Encoded],
    grid: Grid,
    *,
    pad_id: int,
    rule: Rule = "contrast",
    batch_size: int = 16,
    advance: Callable[[int], None] = lambda _: None,
) -> Positions:
    """Compose every answer position at every weight and keep ratio.

    Args:
        target: a Hugging Face model in evaluation mode.
        assistant: the forget set's.
        rows: at least one; the labelled tokens count, and every row must have one.
        grid: what to measure; the gates only say which positions need no composition.
        pad_id: pads batches; masked.
        rule: the set's.
        batch_size: rows at a time: their logits over the vocab are what takes memory.
        advance: called with the number of rows done since the last call.

    Raises: ValueError if logits are not finite.
    """
    device = next(target.parameters()).device
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    parts: list[Positions] = []
    for start in range(0, len(rows), batch_size):
        chosen = by_length[start : start + batch_size]
        batch = collate([rows[index] for index in chosen], pad_id).to(device)
        inputs = {"input_ids": batch.input_ids, "attention_mask": batch.attention_mask}
        target_NV, labels_N = answer_rows(target(**inputs).logits, batch.labels)
        assistant_NV = answer_rows(assistant(**inputs).logits, batch.labels)[0]
        answer_N = np.repeat(chosen, (batch.labels[:, 1:] >= 0).sum(dim=1).cpu().numpy())
        size = max(1, _LOGITS_AT_ONCE // target_NV.shape[1])
        for first in range(0, len(labels_N), size):
            some = slice(first, first + size)
            logits_NV = target_NV[some].float().contiguous()
            parts.append(
                measure_positions(
                    logits_NV, assistant_NV[some].contiguous(), labels_N[some], answer_N[some], grid, rule
                )
            )
        advance(len(chosen))
    return Positions(*(np.concatenate(arrays, axis=-1) for arrays in zip(*parts, strict=True)))


def measure_positions(
    target_NV: Tensor,
    assistant_NV: Tensor,
    labels_N: Tensor,
    answer_N: np.ndarray,
    grid: Grid,
    rule: Rule = "contrast",
) -> Positions:
    """`measure` for positions whose logits are given: (N, V) fp32 of the target, any float type of the assistant.

    Raises: ValueError if logits are not finite.
    """
    evidence_N = _evidence(target_NV, assistant_NV)
    log_p_N, choice_N = _read(target_NV, labels_N)
    shape = (len(grid.weights), len(grid.keep_ratios), len(labels_N))
    log_p_WKN = {mode: log_p_N.expand(shape).clone() for mode in _MODES}
    choice_WKN = choice_N.expand(shape).clone()
    opened_N = evidence_N >= _lowest(grid.gates_nats[0])
    opened_RV, labels_R, assistant_RV = target_NV[opened_N], labels_N[opened_N], assistant_NV[opened_N].contiguous()
    for w, weight in enumerate(grid.weights):
        for k, keep_ratio in enumerate(grid.keep_ratios):
            strength = Strength(weight=weight, keep_ratio=keep_ratio, gate_nats=0.0)
            for mode in _MODES:
                composed_RV = opened_RV.clone()
                subtract(composed_RV, [assistant_RV], [strength], [rule], mode=mode)
                # The last mode is the served one: its choice is kept.
                log_p_WKN[mode][w, k, opened_N], choice_WKN[w, k, opened_N] = _read(composed_RV, labels_R)
    arrays = (
        *(evidence_N, log_p_N, choice_N == labels_N, log_p_WKN["scoring"], log_p_WKN["sampling"]),
        *(choice_WKN == labels_N, choice_WKN != choice_N),
    )
    return Positions(answer_N, *(array.cpu().numpy() for array in arrays))


def outcome(positions: Positions, grid: Grid, strength: Strength) -> FileFigures:
    """One file's figures at a setting of the grid."""
    w, k = grid.weights.index(strength.weight), grid.keep_ratios.index(strength.keep_ratio)
    open_P = positions.evidence_P >= _lowest(strength.gate_nats)
    scoring_P = np.where(open_P, positions.scoring_WKP[w, k], positions.log_p_P)
    sampling_P = np.where(open_P, positions.sampling_WKP[w, k], positions.log_p_P)
    right_P = np.where(open_P, positions.right_WKP[w, k], positions.right_P)
    return _outcome(positions, scoring_P, sampling_P, right_P, open_P, open_P & positions.changed_WKP[w, k])


def plain_outcome(positions: Positions) -> FileFigures:
    """One file's figures with no set in force."""
    no_P = np.zeros(len(positions.answer_P), dtype=bool)
    return _outcome(positions, positions.log_p_P, positions.log_p_P, positions.right_P, no_P, no_P)


def sweep(forget: Positions, retain: Positions, grid: Grid) -> list[Setting]:
    """Both files' figures at every setting, in the order of `Grid.strengths`."""
    return [Setting(s, outcome(forget, grid, s), outcome(retain, grid, s)) for s in grid.strengths()]


def _outcome(
    positions: Positions,
    scoring_P: np.ndarray,
    sampling_P: np.ndarray,
    right_P: np.ndarray,
    open_P: np.ndarray,
    changed_P: np.ndarray,
) -> FileFigures:
    answer_P = positions.answer_P
    tokens_Q = np.bincount(answer_P)
    plain, scoring, sampling = (
        float(np.exp(np.bincount(answer_P, weights=log_p_P) / tokens_Q).mean())
        for log_p_P in (positions.log_p_P, scoring_P, sampling_P)
    )
    return FileFigures(
        probability=scoring,
        probability_served=sampling,
        right=float(right_P.mean()),
        recited=float((np.bincount(answer_P, weights=~right_P) == 0).mean()),
        untouched=float((~open_P).mean()),
        changed=float(changed_P.mean()),
        cut=float(np.isneginf(sampling_P).mean()),
        lost=plain - min(scoring, sampling),
    )


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


def _lowest(gate_nats: float) -> float:
    """The least evidence that opens the gate, in fp32 as the kernels hold it; 0 is always open."""
    return float(np.float32(gate_nats)) if gate_nats > 0 else -math.inf
