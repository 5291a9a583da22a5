"""The table that people read says what the rows say."""

import json

import pytest

from unlearngate.assistant_training.reproduce.results import goals, markdown, summarize, write_results

ROWS = [
    {"seed": 0, "model": "target", "forget_quality": 1e-9, "utility": 0.5},
    {"seed": 1, "model": "target", "forget_quality": 3e-9, "utility": 0.5},
    {"seed": 2, "model": "target", "forget_quality": 2e-9, "utility": 0.5},
    {"seed": 0, "model": "ULD", "forget_quality": 0.8, "utility": 0.498, "trainable": 12345.0},
    {"seed": 1, "model": "ULD", "forget_quality": 0.6, "utility": 0.499, "trainable": 12345.0},
    {"seed": 2, "model": "ULD", "forget_quality": 0.0, "utility": 0.4, "trainable": 12345.0},
]


def test_a_figure_is_its_median_and_range():
    table = summarize(ROWS)
    assert list(table) == ["target", "ULD"]
    assert table["ULD"]["forget_quality"] == {"median": 0.6, "low": 0.0, "high": 0.8}


def test_each_table_has_as_many_cells_as_headings():
    tables = markdown(ROWS).split("**")[2::2]
    assert len(tables) == 3
    for table in tables:
        lines = [line for line in table.splitlines() if line.startswith("| ")]
        assert len({line.count("|") for line in lines if "goal" not in line and line.count("|") > 4}) == 1
    assert "| target | 2e-09 (1e-09-3e-09) |" in tables[0]
    assert "| ULD | 0.6 (0-0.8) |" in tables[0]
    assert "| ULD | 0.498 (0.400-0.499) | 99.6% (80.0%-99.8%) |" in tables[1]
    assert "| 12,345 |" in tables[2]
    assert "| target |" not in tables[2]
    assert "Medians over 3 seeds (0, 1, 2)" in tables[2]


def test_goals_are_measured_on_medians_and_say_when_they_are_missed():
    rows = [
        {"seed": seed, "model": model, "utility": utility, "forget_quality": quality, "seconds_per_epoch": seconds}
        for seed in (0, 1, 2)
        for model, utility, quality, seconds in [
            ("target", 0.8, 1e-5, 0.0),
            ("NPO", 0.4, 0.5, 2.0 + seed),
            ("ULD", 0.8, 0.2, 0.6 + 0.3 * seed),
            ("ULD + gate", 0.8, 0.4, 0.6),
            ("ULD tapped", 0.7, 0.3, 0.3),
        ]
    ]
    rows = [{**row, "trainable": 3e6} for row in rows]
    costs = [{**row, "trainable": 1e8, "seconds_per_epoch": 9.0} for row in rows if row["model"] in ("NPO", "ULD")]
    all_goals = goals(summarize(rows), summarize(costs))
    found = {(goal.text.split(":")[0], goal.text.split()[-1]): goal for goal in all_goals if "100 M" not in goal.text}
    assert found["ULD + gate", "0.99"].met
    assert not found["ULD + gate", "0.5"].met and found["ULD + gate", "0.5"].measured == 0.4
    assert found["ULD", "0.333"].met and found["ULD", "0.333"].measured == pytest.approx(0.3)
    assert found["ULD tapped", "0.1"].met
    (larger,) = [goal for goal in all_goals if "100 M weights" in goal.text]
    assert larger.measured == 1.0 and not larger.met
    assert markdown(rows).count("| missed |") == 1
    assert markdown(rows, costs).count("| missed |") == 2


def test_everything_is_written(tmp_path):
    files = write_results(ROWS, tmp_path / "out", command="make it")
    assert all(path.stat().st_size > 0 for path in files)
    written = json.loads((tmp_path / "out" / "results.json").read_text())
    assert written["rows"] == ROWS
    assert written["command"] == "make it"
