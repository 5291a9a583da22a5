"""Questions and answers of one's own, without TOFU's wrong answers: every figure that needs none of them."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import numpy as np

from unlearngate.assistant_training.data.encoding import encode, encode_prompt
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.tofu import Question
from unlearngate.assistant_training.evaluate import memorization, metrics
from unlearngate.assistant_training.model.decoding import greedy
from unlearngate.assistant_training.model.in_force import Model
from unlearngate.assistant_training.model.scoring import Scored, score
from unlearngate.kernels.pairs import Mode

Columns = dict[str, list[Any]]  # one value per question


def as_questions(pairs: Sequence[QAPair]) -> list[Question]:
    """Pairs as an evaluation set: the answer stands for its paraphrase, the variants are the wrong answers."""
    return [Question(pair.question, pair.answer, pair.answer, pair.variants) for pair in pairs]


def evaluate_questions(
    model: Model, questions: Sequence[Question], *, mode: Mode = "scoring", max_tokens: int = 100, batch_size: int = 32
) -> Columns:
    """Score and decode a set of questions.

    Args:
        model: in evaluation mode.
        questions: those without wrong answers have no truth ratio: None.
        mode: as in `tofu_evaluation.evaluate`: of the probabilities; truth ratios are always in scoring mode.
        max_tokens: longest answer.
        batch_size: rows at a time.

    Returns: `answer_columns`, with `rouge`, `generated` and, if a question has wrong answers, `truth_ratio`.
    """
    columns = answer_columns(model, questions, mode=mode, batch_size=batch_size)
    columns["generated"] = _generate(model, questions, max_tokens, batch_size)
    columns["rouge"] = metrics.rouge_recall([q.answer for q in questions], columns["generated"]).tolist()
    with_wrong = [index for index, question in enumerate(questions) if question.perturbed]
    if with_wrong:
        ratios = _truth_ratios(model, [questions[index] for index in with_wrong], batch_size)
        found = dict(zip(with_wrong, ratios, strict=True))
        columns["truth_ratio"] = [found.get(index) for index in range(len(questions))]
    return columns


def answer_columns(
    model: Model, questions: Sequence[Question], *, mode: Mode = "scoring", batch_size: int = 32
) -> Columns:
    """What one pass over the true answers shows, without decoding anything.

    Returns: question, answer, and the fields of `tofu_evaluation.SetFigures` that need nothing else.
    """
    scored = _score(model, [(q.question, q.answer) for q in questions], mode, batch_size)
    inner = [Scored(*(column[:-1] for column in one)) for one in scored]  # without the end token, as OpenUnlearning
    return {
        "question": [q.question for q in questions],
        "answer": [q.answer for q in questions],
        "probability": metrics.answer_probability([one.log_p for one in scored]).tolist(),
        "extraction_strength": [memorization.extraction_strength(one.is_best) for one in inner],
        "exact_memorization": [memorization.exact_memorization(one.is_best) for one in inner],
        "untouched_positions": [float(one.untouched.mean()) for one in scored],
        "num_positions": [float(len(one.untouched)) for one in scored],
        "loss_score": [memorization.loss_score(one.log_p) for one in inner],
        "min_k_score": [memorization.min_k_score(one.log_p) for one in inner],
        "min_k_plus_score": [memorization.min_k_plus_score(one.log_p, one.mean_log_p, one.std_log_p) for one in inner],
    }


def _truth_ratios(model: Model, questions: Sequence[Question], batch_size: int) -> list[float]:
    right = _score(model, [(q.question, q.paraphrased) for q in questions], "scoring", batch_size)
    flat = _score(model, [(q.question, wrong) for q in questions for wrong in q.perturbed], "scoring", batch_size)
    bounds = np.cumsum([0, *(len(q.perturbed) for q in questions)])
    wrong = [[one.log_p for one in flat[a:b]] for a, b in itertools.pairwise(bounds)]
    ratios: list[float] = metrics.truth_ratio([one.log_p for one in right], wrong).tolist()
    return ratios


def _score(model: Model, asked: Sequence[tuple[str, str]], mode: Mode, batch_size: int) -> list[Scored]:
    rows = [encode(model.tokenizer, question, answer) for question, answer in asked]
    pad_id = model.tokenizer.pad_token_id
    return score(model.target, rows, pad_id=pad_id, in_force=model.in_force, mode=mode, batch_size=batch_size)


def _generate(model: Model, questions: Sequence[Question], max_tokens: int, batch_size: int) -> list[str]:
    prompts = [encode_prompt(model.tokenizer, q.question) for q in questions]
    by_length = sorted(range(len(prompts)), key=lambda index: len(prompts[index]))
    texts: dict[int, str] = {}
    for start in range(0, len(prompts), batch_size):
        chosen = by_length[start : start + batch_size]
        decoded = greedy(
            model.target,
            [prompts[index] for index in chosen],
            eos_id=model.tokenizer.eos_token_id,
            max_tokens=max_tokens,
            in_force=model.in_force,
        )
        texts |= zip(chosen, (model.tokenizer.decode(tokens) for tokens in decoded), strict=True)
    return [texts[index] for index in range(len(prompts))]
