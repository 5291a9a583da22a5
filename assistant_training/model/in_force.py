"""Forget sets in force on a Hugging Face model: the composition that the server does, for training and evaluation."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlearngate.kernels.compose import compose
from unlearngate.kernels.pairs import CUT, Mode, Pairs
from unlearngate.manifest import Rule, Strength, row_ratios


class LoadedSet(NamedTuple):
    """A forget set's assistant, and how and how strongly it is subtracted.

    sentence has the token ids of what decoding says instead of an answer at whose first position the set's gate is
    open; it ends with the end-of-sequence. Empty: nothing is.
    """

    assistant: Any
    strength: Strength
    rule: Rule = "contrast"
    sentence: tuple[int, ...] = ()


class Model(NamedTuple):
    """What is asked or evaluated: a Hugging Face model, and the forget sets in force on it."""

    target: Any
    tokenizer: Any
    in_force: Sequence[LoadedSet] = ()


def subtract(
    target_RV: Tensor,
    assistants: Sequence[Tensor],
    strengths: Sequence[Strength],
    rules: Sequence[Rule] | None = None,
    *,
    mode: Mode = "sampling",
) -> Tensor:
    """Compose sets that are in force in every row, in place, as the server would.

    Args:
        target_RV: (R, V) fp32 logits.
        assistants: (R, V) logits of each set's assistant.
        strengths: of each set; of each rule's sets the largest keep ratio counts for all.
        rules: of each set; None: all are "contrast".
        mode: as in `compose`.

    Returns: (R,) bool, the rows in which no gate opened: their logits are unchanged.
    Raises: ValueError if logits are not finite.
    """
    num_rows, vocab_size = target_RV.shape
    untouched_R = torch.ones(num_rows, dtype=torch.bool, device=target_RV.device)
    if not assistants or not num_rows:
        return untouched_R
    rules = ["contrast"] * len(strengths) if rules is None else rules
    keep_ratio, tail_ratio = row_ratios(zip(rules, strengths, strict=True))
    pairs = Pairs.build(
        [row for _ in strengths for row in range(num_rows)],
        [s.weight for s in strengths for _ in range(num_rows)],
        [s.gate_nats for s in strengths for _ in range(num_rows)],
        [keep_ratio] * num_rows,
        lowers_N=[rule == "lower" for rule in rules for _ in range(num_rows)],
        tail_ratio_R=[tail_ratio] * num_rows,
        vocab_size=vocab_size,
        device=target_RV.device,
    )
    done = compose(target_RV, torch.cat(list(assistants)).contiguous(), pairs, mode=mode)
    if bool(done.bad_N.any()):
        raise ValueError(f"{int(done.bad_N.sum())} rows of logits hold NaN or infinity")
    return ~done.open_N.view(len(strengths), num_rows).any(dim=0)


def without_cut(log_p: Tensor) -> Tensor:
    """Log probabilities with -inf for tokens that were cut: below e^(CUT / 2), which is 0 in any float."""
    return log_p.masked_fill(log_p < CUT / 2, -torch.inf)
