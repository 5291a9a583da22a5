"""Score given answers on a target, with and without forget sets in force: the numbers that metrics are made of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from unlearngate.assistant_training.data.encoding import Batch, Encoded, answer_rows, collate
from unlearngate.assistant_training.model.in_force import LoadedSet, subtract, without_cut
from unlearngate.kernels.pairs import Mode


class Scored(NamedTuple):
    """One answer, token by token: arrays of length T, the end token last; numbers are fp64, computed in fp32.

    log_p: ln p of the token; -inf where sampling mode does not keep it.
    is_best: whether the token is the most probable one.
    mean_log_p, std_log_p: of ln p over the vocab under the distribution itself (for Min-K%++).
    untouched: no gate was open, so the target's logits are unchanged bit for bit.
    """

    log_p: np.ndarray
    is_best: np.ndarray
    mean_log_p: np.ndarray
    std_log_p: np.ndarray
    untouched: np.ndarray


@torch.inference_mode()
def score(
    target: Any,
    rows: Sequence[Encoded],
    *,
    pad_id: int,
    in_force: Sequence[LoadedSet] = (),
    mode: Mode = "scoring",
    batch_size: int = 32,
) -> list[Scored]:
    """Score the rows' answers with teacher forcing.

    Args:
        target: a Hugging Face model in evaluation mode, or a model with the same interface.
        rows: from `encode`.
        pad_id: pads batches; masked.
        in_force: the sets to compose, as the server would in sampling mode; none scores the target as it is.
        mode: "sampling" is the distribution that is served, with -inf outside the kept tokens; "scoring" keeps the
            target's logits there, so that every answer has a finite probability.
        batch_size: rows at a time.

    Returns: one per row, in their order.
    Raises: ValueError if logits are not finite.
    """
    device = next(target.parameters()).device
    scored: dict[int, Scored] = {}
    by_length = sorted(range(len(rows)), key=lambda index: len(rows[index].input_ids))
    for start in range(0, len(rows), batch_size):
        chosen = by_length[start : start + batch_size]
        batch = collate([rows[index] for index in chosen], pad_id).to(device)
        logits_NV, labels_N = answer_logits(target, batch)
        logits_NV = logits_NV.float().contiguous()
        assistants = [answer_logits(f.assistant, batch)[0] for f in in_force]
        strengths, rules = [f.strength for f in in_force], [f.rule for f in in_force]
        untouched_N = subtract(logits_NV, assistants, strengths, rules, mode=mode)
        parts = _figures(logits_NV, labels_N, untouched_N)
        lengths = (batch.labels[:, 1:] >= 0).sum(dim=1).tolist()
        split = (np.split(part, np.cumsum(lengths)[:-1]) for part in parts)
        scored |= {index: Scored(*arrays) for index, *arrays in zip(chosen, *split, strict=True)}
    return [scored[index] for index in range(len(rows))]


def answer_logits(model: Any, batch: Batch) -> tuple[Tensor, Tensor]:
    """The logits that predict the batch's answer tokens, (N, V), and these tokens, (N,).

    Args:
        model: a Hugging Face model, or a model with the same interface; its head is not asked about prompts.
        batch: conversations on the model's device.
    """
    labels_BT = batch.labels[:, batch.answers]
    kept = {"logits_to_keep": labels_BT.shape[1]}
    logits_BTV = model(input_ids=batch.input_ids, attention_mask=batch.attention_mask, **kept).logits
    return answer_rows(logits_BTV, labels_BT)


def _figures(logits_NV: Tensor, labels_N: Tensor, untouched_N: Tensor) -> list[np.ndarray]:
    """The fields of `Scored` for all answer tokens of a batch."""
    log_p_NV = without_cut(logits_NV.log_softmax(dim=-1))
    p_NV = log_p_NV.exp()
    label_N = log_p_NV.gather(1, labels_N[:, None])[:, 0]
    finite_NV = log_p_NV.masked_fill_(p_NV == 0, 0.0)  # 0 ln 0 = 0
    mean_N = torch.linalg.vecdot(p_NV, finite_NV)
    variance_N = torch.linalg.vecdot(p_NV, finite_NV.sub_(mean_N[:, None]).square_())
    is_best_N = logits_NV.argmax(dim=-1) == labels_N
    parts = (label_N.double(), is_best_N, mean_N.double(), variance_N.sqrt().double(), untouched_N)
    return [part.cpu().numpy() for part in parts]
