"""Fluency: how usual a text is to the untouched target, of what that target says itself.

The perplexity of an answer is exp(-mean ln p of its tokens, the end token among them) under the target without a set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from unlearngate.assistant_training.data.encoding import IGNORE, Encoded
from unlearngate.assistant_training.evaluate.metrics import Values, checked
from unlearngate.assistant_training.model.scoring import score


def fluency_ratio(said_Q: Values, usual_Q: Values) -> float:
    """The perplexity of what is said over that of what would be said without a set: 1 is as fluent, 2 half as likely.

    Args:
        said_Q: mean ln p per token of each answer with the set, under the target without it.
        usual_Q: the same of the target's own answers to the same questions, in the same order.

    Returns: the geometric mean over answers of the two perplexities' ratio.
    Raises: ValueError if the numbers differ in length, are none, or one is not finite or above 0.
    """
    least = -float(np.finfo(np.float64).max)
    said, usual = (
        checked(values, name, low=least, high=1e-5) for values, name in ((said_Q, "said"), (usual_Q, "usual"))
    )
    if len(said) != len(usual):
        raise ValueError(f"said and usual must be as many, got {len(said)} and {len(usual)}")
    return math.exp(float((usual - said).mean()))


def mean_log_p(
    target: Any, prompts: Sequence[list[int]], answers: Sequence[list[int]], *, pad_id: int, batch_size: int = 32
) -> np.ndarray:
    """(Q,) fp64: each answer's mean ln p per token under the target alone, with teacher forcing.

    Args:
        target: a Hugging Face model in evaluation mode, or a model with the same interface.
        prompts: token ids.
        answers: token ids of at least one token each; with the end token, if the answer was not cut.
        pad_id: pads batches; masked.
        batch_size: rows at a time.
    """
    rows = [Encoded([*p, *a], [IGNORE] * len(p) + list(a)) for p, a in zip(prompts, answers, strict=True)]
    scored = score(target, rows, pad_id=pad_id, batch_size=batch_size)
    return np.array([one.log_p.mean() for one in scored])
