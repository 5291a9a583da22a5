"""Every TOFU figure of one model, or of a target with forget sets in force."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np

from unlearngate.assistant_training import memorization, metrics
from unlearngate.assistant_training.encoding import encode, encode_prompt
from unlearngate.assistant_training.evaluation import greedy, sample
from unlearngate.assistant_training.in_force import Model
from unlearngate.assistant_training.scoring import Scored, score
from unlearngate.assistant_training.tofu import Benchmark, Question
from unlearngate.kernels.pairs import Mode

_OPTIONS = ("real_authors", "world_facts")  # scored as multiple choice, and without paraphrases


@dataclass(frozen=True, slots=True)
class SetFigures:
    """One evaluation set, a number per question: (Q,) fp64 each."""

    probability: np.ndarray
    rouge: np.ndarray
    truth_ratio: np.ndarray
    extraction_strength: np.ndarray
    exact_memorization: np.ndarray
    loss_score: np.ndarray
    untouched_positions: np.ndarray
    generated: list[str] = field(default_factory=list)


Figures = dict[str, SetFigures]


def evaluate(
    model: Model, benchmark: Benchmark, *, mode: Mode = "scoring", max_tokens: int = 100, batch_size: int = 32
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
    prompts = [encode_prompt(model.tokenizer, q.question) for q in questions]
    scores = []
    for n in range(num_samples):
        decoded = sample(
            model.target,
            prompts,
            eos_id=model.tokenizer.eos_token_id,
            max_tokens=max_tokens,
            seed=seed + n,
            in_force=model.in_force,
        )
        scores.append(metrics.rouge_recall([q.answer for q in questions], model.tokenizer.batch_decode(decoded)))
    return np.stack(scores, axis=1)


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
        "forget_positions_open": 1.0 - float(forget.untouched_positions.mean()),
        "retain_positions_untouched": float(retain.untouched_positions.mean()),
    }


def untouched_share(model: Model, questions: Sequence[Question], *, batch_size: int = 32) -> float:
    """The share of answer positions that no gate touched: the target's logits stand there bit for bit."""
    scored = _score(model, [(q.question, q.answer) for q in questions], "scoring", batch_size)
    return float(np.concatenate([one.untouched for one in scored]).mean())


def _evaluate_set(
    model: Model, questions: Sequence[Question], options: bool, mode: Mode, max_tokens: int, batch_size: int
) -> SetFigures:
    answers = _score(model, [(q.question, q.answer) for q in questions], mode, batch_size)
    scoring = answers
    if mode != "scoring":
        scoring = _score(model, [(q.question, q.answer) for q in questions], "scoring", batch_size)
    right = scoring
    if not options:
        right = _score(model, [(q.question, q.paraphrased) for q in questions], "scoring", batch_size)
    flat = _score(model, [(q.question, wrong) for q in questions for wrong in q.perturbed], "scoring", batch_size)
    bounds = np.cumsum([0, *(len(q.perturbed) for q in questions)])
    wrong = [[one.log_p for one in flat[a:b]] for a, b in itertools.pairwise(bounds)]
    told = [one.log_p for one in answers]
    generated = _generate(model, questions, max_tokens, batch_size)
    return SetFigures(
        probability=metrics.option_probability(told, wrong) if options else metrics.answer_probability(told),
        rouge=metrics.rouge_recall([q.answer for q in questions], generated),
        truth_ratio=metrics.truth_ratio([one.log_p for one in right], wrong),
        # Without the end token, as OpenUnlearning counts these.
        extraction_strength=np.array([memorization.extraction_strength(one.is_best[:-1]) for one in answers]),
        exact_memorization=np.array([memorization.exact_memorization(one.is_best[:-1]) for one in answers]),
        loss_score=np.array([memorization.loss_score(one.log_p[:-1]) for one in answers]),
        untouched_positions=np.array([one.untouched.mean() for one in answers]),
        generated=generated,
    )


def _score(model: Model, asked: Sequence[tuple[str, str]], mode: Mode, batch_size: int) -> list[Scored]:
    rows = [encode(model.tokenizer, question, answer) for question, answer in asked]
    return score(
        model.target,
        rows,
        pad_id=model.tokenizer.pad_token_id,
        in_force=model.in_force,
        mode=mode,
        batch_size=batch_size,
    )


def _generate(model: Model, questions: Sequence[Question], max_tokens: int, batch_size: int) -> list[str]:
    texts: list[str] = []
    for start in range(0, len(questions), batch_size):
        prompts = [encode_prompt(model.tokenizer, q.question) for q in questions[start : start + batch_size]]
        decoded = greedy(
            model.target,
            prompts,
            eos_id=model.tokenizer.eos_token_id,
            max_tokens=max_tokens,
            in_force=model.in_force,
        )
        texts += [model.tokenizer.decode(tokens) for tokens in decoded]
    return texts
