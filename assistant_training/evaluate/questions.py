"""Score given answers on one model, and decode its own: used for TOFU (tofu.py) and for your own questions (qa.py)."""

from __future__ import annotations

import itertools
from collections.abc import Sequence

import numpy as np

from unlearngate.assistant_training.data.encoding import encode, encode_prompt
from unlearngate.assistant_training.data.tofu import Question
from unlearngate.assistant_training.evaluate import memorization
from unlearngate.assistant_training.model.decoding import greedy
from unlearngate.assistant_training.model.in_force import Model
from unlearngate.assistant_training.model.scoring import Scored, score
from unlearngate.kernels.pairs import Mode


def score_answers(model: Model, asked: Sequence[tuple[str, str]], mode: Mode, batch_size: int) -> list[Scored]:
    """Score (question, answer) pairs, in their order."""
    rows = [encode(model.tokenizer, question, answer) for question, answer in asked]
    pad_id = model.tokenizer.pad_token_id
    return score(model.target, rows, pad_id=pad_id, in_force=model.in_force, mode=mode, batch_size=batch_size)


def score_wrong_answers(model: Model, questions: Sequence[Question], batch_size: int) -> list[list[np.ndarray]]:
    """Ln p of the tokens of each question's wrong answers, in scoring mode."""
    asked = [(q.question, wrong) for q in questions for wrong in q.perturbed]
    flat = score_answers(model, asked, "scoring", batch_size)
    bounds = np.cumsum([0, *(len(q.perturbed) for q in questions)])
    return [[one.log_p for one in flat[a:b]] for a, b in itertools.pairwise(bounds)]


def answer_figures(scored: Sequence[Scored]) -> dict[str, np.ndarray]:
    """What the scored answers alone show: a number per answer, (Q,) fp64 each, named as in `SetFigures`."""
    # Without the end token, as OpenUnlearning counts all but the last two.
    inner = [Scored(*(column[:-1] for column in one)) for one in scored]
    columns = {
        "extraction_strength": [memorization.extraction_strength(one.is_best) for one in inner],
        "exact_memorization": [memorization.exact_memorization(one.is_best) for one in inner],
        "loss_score": [memorization.loss_score(one.log_p) for one in inner],
        "min_k_score": [memorization.min_k_score(one.log_p) for one in inner],
        "min_k_plus_score": [memorization.min_k_plus_score(one.log_p, one.mean_log_p, one.std_log_p) for one in inner],
        "untouched_positions": [float(one.untouched.mean()) for one in scored],
        "num_positions": [float(len(one.untouched)) for one in scored],
    }
    return {name: np.array(column) for name, column in columns.items()}


def generate(model: Model, questions: Sequence[Question], max_tokens: int, batch_size: int) -> list[str]:
    """Greedy answers, in the questions' order."""
    texts: dict[int, str] = {}
    # Answers of similar length end together.
    by_length = sorted(range(len(questions)), key=lambda index: len(questions[index].answer))
    for start in range(0, len(questions), batch_size):
        chosen = by_length[start : start + batch_size]
        decoded = greedy(
            model.target,
            [encode_prompt(model.tokenizer, questions[index].question) for index in chosen],
            eos_id=model.tokenizer.eos_token_id,
            max_tokens=max_tokens,
            in_force=model.in_force,
        )
        texts |= zip(chosen, model.tokenizer.batch_decode(decoded), strict=True)
    return [texts[index] for index in range(len(questions))]
