"""Evaluate a plain target, the target with several combinations of forget sets, and a retain model."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rich.progress import Progress

from unlearngate.artefact import MANIFEST_FILE, ForgetSet, load_forget_set
from unlearngate.assistant_training.data.tofu import Benchmark, Question
from unlearngate.assistant_training.evaluate.figures import ModelFigures, columns_of, figures_of
from unlearngate.assistant_training.evaluate.qa import Columns, answer_columns, evaluate_questions
from unlearngate.assistant_training.evaluate.tofu import evaluate, sampled_rouge
from unlearngate.assistant_training.model.in_force import Model
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import LoadedTarget
from unlearngate.errors import UnlearngateError
from unlearngate.kernels.pairs import Mode
from unlearngate.target import TargetIdentity

Combination = tuple[str, ...]  # names of the sets in force together


@dataclass(frozen=True, slots=True)
class Evaluation:
    """What is asked, and how.

    Attributes:
        asked: TOFU at a scale, or your own question sets, of which one is `forget`.
        holdout: questions that no model was trained on, for membership inference; may be empty.
        modes: of the probabilities; a model without sets in force is the same in both and evaluated once.
        num_samples: sampled answers to each forget question; 0 samples nothing.
        max_tokens: answers are cut here.
        batch_size: rows at a time.
        seed: of sampling and of the intervals.
    """

    asked: Benchmark | dict[str, list[Question]]
    holdout: Sequence[Question] = ()
    modes: tuple[Mode, ...] = ("scoring",)
    num_samples: int = 4
    max_tokens: int = 100
    batch_size: int = 32
    seed: int = 0


def find_sets(paths: Sequence[Path], target: TargetIdentity) -> dict[str, ForgetSet]:
    """Verified forget sets of a target by name.

    Args:
        paths: forget sets, or folders with one sub-folder per set.
        target: the one they must have been made for.

    Raises: ArtefactError for a set that the server would not load either; UnlearngateError if there is none at a path,
        or two have the same name.
    """
    found: dict[str, ForgetSet] = {}
    for path in paths:
        folders = (
            [path] if (path / MANIFEST_FILE).exists() else sorted(p.parent for p in path.glob(f"*/{MANIFEST_FILE}"))
        )
        folders = [folder for folder in folders if not folder.name.startswith(".")]
        if not folders:
            raise UnlearngateError(
                f"{path} is no forget set, and none is directly below it ({MANIFEST_FILE} is missing)"
            )
        for folder in folders:
            forget_set = load_forget_set(folder, target)
            if forget_set.manifest.kind == "verbatim":
                raise UnlearngateError(
                    f"{folder} is of kind 'verbatim', which a server alone puts in force: serve it, and give --server, "
                    "or leave it out of --sets"
                )
            if forget_set.name in found:
                raise UnlearngateError(
                    f"{folder} and {found[forget_set.name].folder} are both called {forget_set.name}"
                )
            found[forget_set.name] = forget_set
    return found


def combinations(asked: Sequence[str], known: Sequence[str]) -> list[Combination]:
    """The sets in force in each evaluation: as asked for ("a+b"), or else every known set alone.

    Raises: UnlearngateError if a set is not known, or named twice in one combination.
    """
    chosen = [tuple(one.split("+")) for one in asked] or [(name,) for name in known]
    for names in chosen:
        if missing := [name for name in names if name not in known]:
            there = ", ".join(known) or "none"
            raise UnlearngateError(f"there is no forget set {missing[0]!r}; there are: {there}. Several: a+b")
        if len(set(names)) < len(names):
            raise UnlearngateError(f"{'+'.join(names)} names a set twice")
    return list(dict.fromkeys(chosen))


def question_sets(asked: Benchmark | dict[str, list[Question]]) -> dict[str, list[Question]]:
    """All question sets by name."""
    if not isinstance(asked, Benchmark):
        return asked
    return {name: getattr(asked, name) for name in ("forget", "retain", "real_authors", "world_facts")}


def evaluate_models(
    target: LoadedTarget,
    sets: dict[str, ForgetSet],
    chosen: Sequence[Combination],
    evaluation: Evaluation,
    *,
    retain_model: LoadedTarget | None,
    progress: Progress,
) -> list[ModelFigures]:
    """A row for the retain model, if there is one, the plain target, and every combination, in every mode.

    Raises: ValueError if logits are not finite.
    """
    jobs: list[Combination] = [(), *chosen]
    bar = progress.add_task("evaluating", total=len(jobs) + (retain_model is not None))
    first = evaluation.modes[:1]
    rows: list[ModelFigures] = []
    retained = None
    if retain_model:
        (retained,) = _questions(Model(retain_model.model, retain_model.tokenizer), evaluation, first)
        figures = figures_of(retained, seed=evaluation.seed, retain_model=retained)
        rows.append(ModelFigures("retain model", first[0], [], retained, figures))
        progress.advance(bar)
    plain: dict[str, Columns] = {}
    for names in jobs:
        members = [sets[name] for name in names]
        model = with_sets(target.model, target.tokenizer, members)
        modes = evaluation.modes if names else first
        for mode, questions in zip(modes, _questions(model, evaluation, modes), strict=True):
            if names:
                add_unchanged(questions, plain, "generated")
            plain = plain or questions
            figures = figures_of(questions, seed=evaluation.seed, retain_model=retained)
            in_force = [_in_force(member) for member in members]
            rows.append(ModelFigures("+".join(names) or "target", mode, in_force, questions, figures))
        progress.advance(bar)
    return rows


def add_unchanged(questions: dict[str, Columns], plain: dict[str, Columns], column: str) -> None:
    """Add a column `unchanged`: whether the answer in this column equals the plain target's."""
    for name, columns in questions.items():
        if column in columns:
            pairs = zip(columns[column], plain[name][column], strict=True)
            columns["unchanged"] = [float(own == other) for own, other in pairs]


def _questions(model: Model, evaluation: Evaluation, modes: Sequence[Mode]) -> list[dict[str, Columns]]:
    """The columns of all question sets in each mode; what is sampled is the same in all."""
    forget = question_sets(evaluation.asked)["forget"]
    sampled: Columns = {}
    if evaluation.num_samples:
        limits = {"num_samples": evaluation.num_samples, "max_tokens": evaluation.max_tokens}
        sampled["sampled_rouge"] = sampled_rouge(model, forget, seed=evaluation.seed, **limits).tolist()
    found = []
    for mode in modes:
        questions = dict(_asked(model, evaluation, mode))
        if evaluation.holdout:
            questions["holdout"] = answer_columns(
                model, evaluation.holdout, mode=mode, batch_size=evaluation.batch_size
            )
        questions["forget"] |= sampled
        found.append(questions)
    return found


def _asked(model: Model, evaluation: Evaluation, mode: Mode) -> Iterator[tuple[str, Columns]]:
    settings: dict[str, Any] = {"mode": mode, "max_tokens": evaluation.max_tokens, "batch_size": evaluation.batch_size}
    if not isinstance(evaluation.asked, Benchmark):
        for name, questions in evaluation.asked.items():
            yield name, evaluate_questions(model, questions, **settings)
        return
    for name, figures in evaluate(model, evaluation.asked, **settings).items():
        questions = question_sets(evaluation.asked)[name]
        texts = {"question": [q.question for q in questions], "answer": [q.answer for q in questions]}
        yield name, {**texts, **columns_of(figures)}


def _in_force(forget_set: ForgetSet) -> dict[str, Any]:
    manifest = forget_set.manifest
    return {"name": manifest.name, "version": manifest.version, "digest": forget_set.digest, "kind": manifest.kind,
            **manifest.recommended.model_dump()}  # fmt: skip
