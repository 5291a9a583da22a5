"""The benchmark of withheld texts measures what it says it does. No timing is asserted."""

import json
import sys

from benchmarks import verbatim
from support.engine.tiny import make_target


def test_every_figure_is_measured(tmp_path, monkeypatch, capsys):
    words = ["verbatim", str(make_target(tmp_path, seed=1)), "--sets", "2", "--megabytes", "0.2", "--steps", "3"]
    monkeypatch.setattr(sys, "argv", words)
    verbatim.main()
    figures = json.loads(capsys.readouterr().out)
    assert all(value > 0 for value in figures.values())
    assert {"make_s", "file_mb", "first_set_s", "ordinary_2_sets_ms", "withheld_1_sets_ms"} <= figures.keys()
