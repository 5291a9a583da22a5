"""Figures from columns against direct computation, and files that hold what the figures were made of."""

import itertools
import json
import math

import numpy as np
import pytest

from unlearngate.assistant_training.evaluate import memorization, metrics
from unlearngate.assistant_training.evaluate.figures import Figure, ModelFigures, columns_of, figures_of
from unlearngate.assistant_training.evaluate.report import markdown, write_report
from unlearngate.assistant_training.evaluate.tofu import SetFigures


def tofu_columns(rng, num_questions):
    return {
        "question": [f"q{i}" for i in range(num_questions)],
        "probability": rng.uniform(0.1, 1, num_questions).tolist(),
        "rouge": rng.choice([0.2, 0.9, 1.0], num_questions).tolist(),
        "truth_ratio": rng.lognormal(0, 0.5, num_questions).tolist(),
        "untouched_positions": rng.choice([0.5, 1.0], num_questions).tolist(),
        "num_positions": rng.integers(2, 30, num_questions).tolist(),
    }


@pytest.fixture
def questions(seed):
    rng = np.random.default_rng(seed)
    sizes = {"forget": 12, "retain": 20, "real_authors": 7, "world_facts": 9}
    return {name: tofu_columns(rng, size) for name, size in sizes.items()}


def test_means_are_of_questions_and_intervals_are_the_bootstraps(questions, seed):
    figures = figures_of(questions, seed=seed)
    for name, columns in questions.items():
        expected = metrics.bootstrap_interval(columns["probability"], rng=np.random.default_rng(seed))
        assert figures[f"{name}_probability"] == tuple(expected)
        recited = [r >= 0.9 for r in columns["rouge"]]
        assert figures[f"{name}_recited"].value == pytest.approx(sum(recited) / len(recited))
        closed = [u == 1.0 for u in columns["untouched_positions"]]
        assert figures[f"{name}_untouched_answers"].value == pytest.approx(sum(closed) / len(closed))
        pairs = list(zip(columns["untouched_positions"], columns["num_positions"], strict=True))
        share = sum(share * positions for share, positions in pairs) / sum(columns["num_positions"])
        assert figures[f"{name}_untouched_positions"].value == pytest.approx(share)


def test_truth_ratios_count_as_closeness_to_one_where_forgotten_and_as_truth_where_kept(questions):
    figures = figures_of(questions, seed=0)
    forget, retain = (questions[name]["truth_ratio"] for name in ("forget", "retain"))
    assert figures["forget_truth_ratio"].value == pytest.approx(sum(min(r, 1 / r) for r in forget) / len(forget))
    assert figures["retain_truth_ratio"].value == pytest.approx(sum(max(0, 1 - r) for r in retain) / len(retain))
    extremes = figures_of({"forget": {"truth_ratio": [0.0, math.inf]}}, seed=0)
    assert extremes["forget_truth_ratio"] == (0.0, 0.0, 0.0)


def test_utility_is_the_harmonic_mean_and_lies_in_its_interval(questions):
    figures = figures_of(questions, seed=1)
    parts = [
        figures[f"{name}_{metric}"].value
        for name, metric in itertools.product(metrics.UTILITY_SETS, metrics.UTILITY_METRICS)
    ]
    utility = figures["utility"]
    assert utility.value == pytest.approx(9 / sum(1 / part for part in parts))
    assert utility.low <= utility.value <= utility.high
    assert figures_of(questions, seed=1) == figures


def test_forget_quality_needs_a_retain_model(questions, seed):
    other = {"forget": tofu_columns(np.random.default_rng(seed + 1), 12)}
    assert "forget_quality" not in figures_of(questions, seed=0)
    figures = figures_of(questions, seed=0, retain_model=other)
    expected = metrics.forget_quality(questions["forget"]["truth_ratio"], other["forget"]["truth_ratio"])
    assert figures["forget_quality"] == Figure(expected.p_value)
    assert figures["forget_distance"] == Figure(expected.distance)


def test_membership_is_forget_against_holdout_also_where_a_token_cannot_be_said(seed):
    rng = np.random.default_rng(seed)
    scores = {
        "loss_score": [-math.inf, -1.0, -0.5],
        "min_k_score": [-2.0, -3.0, -1.0],
        "min_k_plus_score": [0.1, 0.2, -0.3],
    }
    holdout = {column: rng.normal(-1, 1, 8).tolist() for column in scores}
    figures = figures_of({"forget": scores, "holdout": holdout}, seed=seed)
    assert set(figures) == {"mia_loss", "mia_min_k", "mia_min_k_plus"}
    auc = memorization.member_auc(scores["loss_score"], holdout["loss_score"])
    assert figures["mia_loss"].value == pytest.approx(auc)
    assert figures["mia_loss"].low <= auc <= figures["mia_loss"].high


def test_leaks_are_of_one_and_of_all_samples(seed):
    rouge_QN = np.random.default_rng(seed).choice([0.1, 0.95], (6, 4)).tolist()
    figures = figures_of({"forget": {"sampled_rouge": rouge_QN}}, seed=0)
    assert set(figures) == {"forget_leak_at_1", "forget_leak_at_4", "forget_best_of_4"}
    assert figures["forget_leak_at_1"].value == pytest.approx(np.mean(np.array(rouge_QN) > 0.9))
    assert figures["forget_leak_at_4"].value == pytest.approx(np.mean(np.max(rouge_QN, axis=1) > 0.9))
    assert figures["forget_best_of_4"].value == pytest.approx(np.mean(np.max(rouge_QN, axis=1)))


def test_questions_without_a_value_are_left_out():
    figures = figures_of({"retain": {"truth_ratio": [0.25, None, 0.75]}}, seed=0)
    assert figures["retain_truth_ratio"].value == pytest.approx(0.5)


def test_every_field_of_tofus_figures_becomes_a_column():
    names = [name for name in SetFigures.__dataclass_fields__ if name != "generated"]
    columns = columns_of(SetFigures(**{name: np.array([0.5, 1.0]) for name in names}, generated=["a", "b\0"]))
    assert columns == {**{name: [0.5, 1.0] for name in names}, "generated": ["a", "b\0"]}


@pytest.fixture
def rows(questions):
    plain = ModelFigures("target", "scoring", [], questions, figures_of(questions, seed=0, retain_model=questions))
    changed = {**questions, "forget": {**questions["forget"], "loss_score": [-math.inf] * 12}}
    sets = [{"name": "a", "weight": 1.0}]
    return [plain, ModelFigures("a+b", "sampling", sets, changed, figures_of(changed, seed=0, retain_model=questions))]


def test_what_is_written_is_enough_to_compute_every_figure_again(rows, questions, tmp_path):
    paths = write_report(rows, tmp_path / "out", settings={"seed": 0})
    assert [p.name for p in paths] == ["report.json", "report.md", "report.png", "truth_ratios.png"]
    assert all(path.stat().st_size > 500 for path in paths)
    strict = json.loads(paths[0].read_text(), parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))
    for row, written in zip(rows, strict["rows"], strict=True):
        assert (written["model"], written["mode"], written["forget_sets"]) == (row.model, row.mode, row.in_force)
        again = figures_of(written["questions"], seed=strict["settings"]["seed"], retain_model=questions)
        assert {name: figure._asdict() for name, figure in again.items()} == written["figures"]
    assert strict["rows"][1]["questions"]["forget"]["loss_score"][0] == "-inf"


def test_the_table_has_a_line_for_each_figure_and_a_column_for_each_row(rows):
    lines = [line for line in markdown(rows).splitlines() if line.startswith("|")]
    assert lines[0] == "| figure | target (scoring) | a+b (sampling) |"
    assert {line.count("|") for line in lines} == {4}
    assert len(lines) == 2 + len(rows[0].figures)
    assert any(line.startswith("| forget quality | 1.000 | 1.000 |") for line in lines)
