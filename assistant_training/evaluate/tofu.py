"""Every TOFU figure of one model, or of a target with forget sets in force."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unlearngate.assistant_training.data.encoding import encode_prompt
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.data.tofu import Benchmark, Question
from unlearngate.assistant_training.evaluate import memorization, metrics
from unlearngate.assistant_training.evaluate.questions import (
    answer_figures,
    generate,
    score_answers,
    score_wrong_answers,
)
from unlearngate.assistant_training.model.decoding import sample
from unlearngate.assistant_training.model.in_force import Model
from unlearngate.kernels.pairs import Mode

_OPTIONS = ("real_authors", "world_facts")  # scored as multiple choice, and without paraphrases
_ATTACKS = ("loss_score", "min_k_score", "min_k_plus_score")  # membership scores of an answer


@dataclass(frozen=True, slots=True)
class SetFigures:
    """One evaluation set, a number per question: (Q,) fp64 each.

    untouched_positions is the share of the answer's num_positions where no gate opened: bit for bit the target's.
    """

    probability: np.ndarray
    rouge: np.ndarray
    truth_ratio: np.ndarray
    extraction_strength: np.ndarray
    exact_memorization: np.ndarray
    loss_score: np.ndarray
    min_k_score: np.ndarray
    min_k_plus_score: np.ndarray
    untouched_positions: np.ndarray
    num_positions: np.ndarray
    generated: list[str] = field(default_factory=list)

    def untouched_share(self) -> float:
        """The share of all answer positions, in [0, 1]."""
        return float(np.average(self.untouched_positions, weights=self.num_positions))

    def only(self, chosen_Q: np.ndarray) -> SetFigures:
        """The figures of some of the questions: (Q,) bool."""
        arrays = {f.name: getattr(self, f.name)[chosen_Q] for f in dataclasses.fields(self) if f.name != "generated"}
        return SetFigures(**arrays, generated=list(itertools.compress(self.generated, chosen_Q)))


Figures = dict[str, SetFigures]


def evaluate(
    model: Model, benchmark: Benchmark, *, mode: Mode = "scoring", max_tokens: int = 100, batch_size: int = 64
) -> Figures:
    """Score and decode all four sets.

    Args:
        model: in evaluation mode.
        benchmark: whose `forget`, `retain`, `real_authors` and `world_facts` are asked.
        mode: of the answers' probabilities. Truth ratios are always taken in scoring mode: in sampling mode one token
            that is not kept makes a wrong answer impossible, which says nothing about the right one. What is generated
            is always as served, greedy.
        max_tokens: longest answer.
        batch_size: rows at a time.

    Returns: the figures of the sets, by name.
    """
    sets = {
        "forget": benchmark.forget,
        "retain": benchmark.retain,
        "real_authors": benchmark.real_authors,
        "world_facts": benchmark.world_facts,
    }
    return {
        name: _evaluate_set(model, questions, name in _OPTIONS, mode, max_tokens, batch_size)
        for name, questions in sets.items()
    }


def sampled_rouge(
    model: Model, questions: Sequence[Question], *, num_samples: int, seed: int, max_tokens: int = 100
) -> np.ndarray:
    """ROUGE-L recall of sampled answers, temperature 1: (Q, num_samples) fp64, rows for `leak_at_k` and `best_of_k`."""
    prompts = [encode_prompt(model.tokenizer, q.question) for q in questions for _ in range(num_samples)]
    decoded = sample(
        model.target,
        prompts,
        eos_id=model.tokenizer.eos_token_id,
        max_tokens=max_tokens,
        seed=seed,
        in_force=model.in_force,
    )
    answers = [q.answer for q in questions for _ in range(num_samples)]
    return metrics.rouge_recall(answers, model.tokenizer.batch_decode(decoded)).reshape(-1, num_samples)


def utility(figures: Figures) -> float:
    """TOFU's model utility: the harmonic mean of nine averages over the sets that must stay."""
    return metrics.model_utility(
        {
            name: {
                "probability": float(figures[name].probability.mean()),
                "rouge": float(figures[name].rouge.mean()),
                "truth_ratio": float(metrics.truthfulness(figures[name].truth_ratio).mean()),
            }
            for name in metrics.UTILITY_SETS
        }
    )


def summary(figures: Figures, retain_model: Figures) -> dict[str, float]:
    """The columns of a results table.

    Args:
        figures: of the model.
        retain_model: of a model that never saw the forget set, which is what forgetting should look like.
    """
    forget, retain = figures["forget"], figures["retain"]
    quality = metrics.forget_quality(forget.truth_ratio, retain_model["forget"].truth_ratio)
    return {
        "forget_quality": quality.p_value,
        "forget_distance": quality.distance,
        "utility": utility(figures),
        "forget_rouge": float(forget.rouge.mean()),
        "retain_rouge": float(retain.rouge.mean()),
        "forget_probability": float(forget.probability.mean()),
        "retain_probability": float(retain.probability.mean()),
        "forget_extraction": float(forget.extraction_strength.mean()),
        "forget_memorization": float(forget.exact_memorization.mean()),
        "forget_positions_open": 1.0 - forget.untouched_share(),
        "retain_positions_untouched": retain.untouched_share(),
    }


def membership(
    model: Model, forget: SetFigures, holdout: Sequence[QAPair], *, batch_size: int = 64
) -> dict[str, float]:
    """How well three attacks tell the forget set from pairs that no model saw: an AUC each, 0.5 is forgotten.

    Args:
        model: what `forget` was measured on.
        forget: its figures.
        holdout: pairs of the forget set's kind.
        batch_size: rows at a time.
    """
    others = answer_figures(score_answers(model, [(p.question, p.answer) for p in holdout], "scoring", batch_size))
    return {name: memorization.member_auc(getattr(forget, name), others[name]) for name in _ATTACKS}


def _evaluate_set(
    model: Model, questions: Sequence[Question], options: bool, mode: Mode, max_tokens: int, batch_size: int
) -> SetFigures:
    answers = score_answers(model, [(q.question, q.answer) for q in questions], mode, batch_size)
    scoring = answers
    if mode != "scoring":
        scoring = score_answers(model, [(q.question, q.answer) for q in questions], "scoring", batch_size)
    right = scoring
    if not options:
        right = score_answers(model, [(q.question, q.paraphrased) for q in questions], "scoring", batch_size)
    wrong = score_wrong_answers(model, questions, batch_size)
    told = [one.log_p for one in answers]
    generated = generate(model, questions, max_tokens, batch_size)
    return SetFigures(
        probability=metrics.option_probability(told, wrong) if options else metrics.answer_probability(told),
        rouge=metrics.rouge_recall([q.answer for q in questions], generated),
        truth_ratio=metrics.truth_ratio([one.log_p for one in right], wrong),
        **answer_figures(answers),
        generated=generated,
    )
