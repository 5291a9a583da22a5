"""The table that people read says what the rows say."""

import json

from unlearngate.assistant_training.results import markdown, summarize, write_results

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


def test_the_table_has_a_row_for_each_model_and_as_many_cells_as_headings():
    lines = markdown(ROWS).splitlines()
    assert len({line.count("|") for line in lines[:4]}) == 1
    assert lines[2].startswith("| target | 2e-09 (1e-09-3e-09) | 0.500 |")
    assert lines[3].startswith("| ULD | 0.6 (0-0.8) | 0.498 (0.400-0.499) |")
    assert "| 12,345 |" in lines[3]
    assert "Median over 3 seeds (0, 1, 2)" in lines[-1]


def test_everything_is_written(tmp_path):
    files = write_results(ROWS, tmp_path / "out")
    assert all(path.stat().st_size > 0 for path in files)
    assert json.loads((tmp_path / "out" / "results.json").read_text())["rows"] == ROWS
