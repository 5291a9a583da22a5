"""Evaluate your own questions and answers: every figure that does not need TOFU's wrong answers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.tofu import Question
from unlearngate.assistant_training.data.windows import Opening, first_words_as_written, num_words
from unlearngate.assistant_training.evaluate import metrics
from unlearngate.assistant_training.evaluate.questions import (
    answer_figures,
    generate,
    score_answers,
    score_wrong_answers,
)
from unlearngate.assistant_training.model.in_force import Model
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
        questions: the truth ratio of those without wrong answers is None.
        mode: of the probabilities, as in `tofu.evaluate`; truth ratios are always in scoring mode.
        max_tokens: longest answer.
        batch_size: rows at a time.

    Returns: `answer_columns`, with `rouge`, `generated` and, if a question has wrong answers, `truth_ratio`; if one
        opens a document, `verbmem`.
    """
    columns = answer_columns(model, questions, mode=mode, batch_size=batch_size)
    columns["generated"] = generate(model, questions, max_tokens, batch_size)
    columns["rouge"] = metrics.rouge_recall([q.answer for q in questions], columns["generated"]).tolist()
    if verbatim := verbatim_memorisation(questions, columns["generated"]):
        columns["verbmem"] = verbatim
    with_wrong = [index for index, question in enumerate(questions) if question.perturbed]
    if with_wrong:
        chosen = [questions[index] for index in with_wrong]
        right = score_answers(model, [(q.question, q.paraphrased) for q in chosen], "scoring", batch_size)
        ratios = metrics.truth_ratio([one.log_p for one in right], score_wrong_answers(model, chosen, batch_size))
        found = dict(zip(with_wrong, ratios.tolist(), strict=True))
        columns["truth_ratio"] = [found.get(index) for index in range(len(questions))]
    return columns


def verbatim_memorisation(questions: Sequence[Question], generated: Sequence[str]) -> list[float | None]:
    """MUSE's VerbMem of documents' windows: ROUGE-L F1 of the greedy continuation and the true one, in [0, 1].

    A continuation is cut after as many words as the true one has: MUSE decodes as many tokens as it compares with.

    Returns: a value for each question, None for one that opens no document; empty if none does.
    Source: MUSE, arXiv:2407.06460, equation 1, which averages it over the forget set.
    """
    openings = [index for index, question in enumerate(questions) if isinstance(question.question, Opening)]
    if not openings:
        return []
    true = [questions[index].answer for index in openings]
    said = [
        first_words_as_written(generated[index], num_words(answer))
        for index, answer in zip(openings, true, strict=True)
    ]
    scores = dict(zip(openings, metrics.rouge_f1(true, said).tolist(), strict=True))
    return [scores.get(index) for index in range(len(questions))]


def answer_columns(
    model: Model, questions: Sequence[Question], *, mode: Mode = "scoring", batch_size: int = 32
) -> Columns:
    """The figures from one pass over the true answers, without decoding.

    Returns: question, answer, and the fields of `tofu.SetFigures` that need nothing else.
    """
    scored = score_answers(model, [(q.question, q.answer) for q in questions], mode, batch_size)
    return {
        "question": [q.question for q in questions],
        "answer": [q.answer for q in questions],
        "probability": metrics.answer_probability([one.log_p for one in scored]).tolist(),
        **{name: column.tolist() for name, column in answer_figures(scored).items()},
    }
