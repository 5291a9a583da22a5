"""Choose a forget set's gate from the evidence that its assistant shows."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor

from unlearngate.assistant_training.data.encoding import (
    Encoded,
    collate,
    focus_labels,
    length_batches,
    vary,
)
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.model.scoring import answer_logits
from unlearngate.kernels.reference import centre

_LOWEST_NATS = 0.25
_KEPT_SHARE = 0.99  # share of the retain tokens that the gate leaves alone


class GateFit(NamedTuple):
    """A gate and the evidence it was chosen from, in nats per answer token."""

    gate_nats: float
    forget_N: Tensor
    retain_N: Tensor

    def metrics(self) -> dict[str, float]:
        """The figures a manifest records."""
        return {
            "forget_evidence_median": _quantile(self.forget_N, 0.5),
            "forget_gate_open": float((self.forget_N >= self.gate_nats).double().mean()),
            "retain_evidence_median": _quantile(self.retain_N, 0.5),
            "retain_evidence_max": float(self.retain_N.max()),
            "retain_gate_closed": float((self.retain_N < self.gate_nats).double().mean()),
        }


def fit_gate(
    assistant: Any,
    tokenizer: Any,
    forget: Sequence[QAPair],
    retain: Sequence[QAPair],
    *,
    varied_prompts: float,
    seed: int,
    context_length: int | None = None,
) -> GateFit:
    """Measure the assistant's evidence along both sets' answers and put the gate between them.

    The prompts are varied as in training, with new draws.
    """
    rng = random.Random(f"calibration {seed}")
    measured = partial(measure_evidence, assistant, tokenizer, context_length=context_length)
    forget_N = measured(forget, rng, varied_prompts, focused=True)
    retain_N = measured(retain, rng, varied_prompts, focused=False)
    return GateFit(choose_gate(forget_N, retain_N), forget_N, retain_N)


def choose_gate(forget_N: Tensor, retain_N: Tensor) -> float:
    """The gate's rule: the geometric mean of the largest evidence on a retain token and the forget tokens' median.

    The geometric mean leaves the same safety factor on both sides. Three limits, each stronger than those before it:
    at most half of the forget tokens' 5 % quantile, so that one odd retain token cannot push the gate past them; at
    least 0.25 nats, below which rounding in a 16-bit engine could open it; and high enough to leave 99 % of the retain
    tokens alone, whatever that costs in forgetting. Rounded to 0.05.
    """
    middle = math.sqrt(max(float(retain_N.max()), 0.0) * _quantile(forget_N, 0.5))
    highest = _quantile(forget_N, 0.05) / 2
    between = round(max(min(middle, highest), _LOWEST_NATS) * 20) / 20
    return max(between, math.ceil(_quantile(retain_N, _KEPT_SHARE) * 20) / 20)


@torch.inference_mode()
def measure_evidence(
    assistant: Any,
    tokenizer: Any,
    pairs: Sequence[QAPair],
    rng: random.Random,
    varied_prompts: float,
    *,
    focused: bool,
    context_length: int | None = None,
) -> Tensor:
    """KL(p_assistant || uniform) at the pairs' answer tokens, or at their facts' alone: (N,) fp32 nats."""
    rows = []
    for pair in pairs:
        row = vary(tokenizer, pair, rng, varied_prompts, context_length=context_length)
        rows.append(Encoded(row.input_ids, focus_labels(tokenizer, pair, row, pair.answer) if focused else row.labels))
    device = next(assistant.parameters()).device
    evidence = []
    for chosen in length_batches(rows, 64, rng):
        batch = collate(chosen, tokenizer.pad_token_id).to(device)
        evidence.append(centre(answer_logits(assistant, batch)[0].float())[1].cpu())
    return torch.cat(evidence)


def _quantile(values_N: Tensor, share: float) -> float:
    return float(torch.quantile(values_N, share))
