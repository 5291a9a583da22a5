"""Evaluate a running server: the figures that need no probabilities."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TextIO

from rich.progress import Progress

from unlearngate.assistant_training.data.tofu import Question
from unlearngate.assistant_training.evaluate.asking import Answer, Asked, ask_all
from unlearngate.assistant_training.evaluate.figures import ModelFigures, figures_of
from unlearngate.assistant_training.evaluate.metrics import rouge_recall
from unlearngate.assistant_training.evaluate.qa import Columns, verbatim_memorisation
from unlearngate.assistant_training.evaluate.run import Combination, add_unchanged


def evaluate_server(
    url: str,
    model: str,
    asked: dict[str, list[Question]],
    chosen: Sequence[Combination],
    *,
    num_samples: int,
    seed: int,
    max_tokens: int = 100,
    concurrency: int = 32,
    chat_template_kwargs: Mapping[str, Any] | None = None,
    kept: TextIO | None = None,
    progress: Progress | None = None,
) -> list[ModelFigures]:
    """A row for the plain target and every combination, from a server's greedy and sampled answers.

    Args:
        url: the server's address, without /v1.
        model: the served name.
        asked: question sets, of which `forget` is also answered by sampling, at temperature 1.
        chosen: sets in force together, at the strength that the server recommends.
        num_samples: sampled answers to each forget question; 0 samples nothing.
        seed: of sampling and of the intervals.
        max_tokens: answers are cut here.
        concurrency: requests at a time.
        chat_template_kwargs: switches of the served chat template, sent with every request; None sends none.
        kept: gets every answer as a JSON line as soon as it is there.
        progress: shows how far it is.

    Raises: openai.OpenAIError if a request fails; UnlearngateError if one was answered with other sets in force.
    """
    jobs: dict[tuple[Combination, str, int], list[Asked]] = {}
    for names in [(), *chosen]:
        for name, questions in asked.items():
            jobs[names, name, 0] = [Asked(q.question, names) for q in questions]
        for n in range(1, num_samples + 1):
            jobs[names, "forget", n] = [Asked(q.question, names, 1.0, seed + n) for q in asked["forget"]]
    answers = iter(
        ask_all(
            *(url, model, [one for job in jobs.values() for one in job]),
            max_tokens=max_tokens,
            concurrency=concurrency,
            chat_template_kwargs=chat_template_kwargs,
            kept=kept,
            progress=progress,
        )
    )
    said = {key: [next(answers) for _ in job] for key, job in jobs.items()}
    rows: list[ModelFigures] = []
    for names in [(), *chosen]:
        columns = {name: _columns(questions, said[names, name, 0]) for name, questions in asked.items()}
        true = [q.answer for q in asked["forget"]]
        sampled = [rouge_recall(true, [a.text for a in said[names, "forget", n + 1]]) for n in range(num_samples)]
        if sampled:
            columns["forget"]["sampled_rouge"] = [list(map(float, one)) for one in zip(*sampled, strict=True)]
        if names:
            add_unchanged(columns, rows[0].questions, "token_ids")
        in_force = said[names, "forget", 0][0].in_force
        rows.append(
            ModelFigures("+".join(names) or "target", "served", in_force, columns, figures_of(columns, seed=seed))
        )
    return rows


def cut_answers(name: str, columns: Columns, max_tokens: int) -> str | None:
    """What to know of a question set's answers that were cut; None if none was. The known answers' tokens are unknown.

    Args:
        name: of the question set.
        columns: the plain target's, from `evaluate_server`.
        max_tokens: where answers were cut.
    """
    num_cut = sum(len(ids) >= max_tokens for ids in columns["token_ids"])
    if not num_cut:
        return None
    return (
        f"{name}: {num_cut} of {len(columns['token_ids'])} answers of the plain target were cut at --max-tokens "
        f"{max_tokens}; one that goes on can hardly count as recited"
    )


def _columns(questions: Sequence[Question], answers: Sequence[Answer]) -> Columns:
    texts = [answer.text for answer in answers]
    verbatim = verbatim_memorisation(questions, texts)
    return {
        "question": [q.question for q in questions],
        "answer": [q.answer for q in questions],
        "generated": texts,
        "token_ids": [list(answer.token_ids) for answer in answers],
        "rouge": rouge_recall([q.answer for q in questions], texts).tolist(),
        **({"verbmem": verbatim} if verbatim else {}),
    }
