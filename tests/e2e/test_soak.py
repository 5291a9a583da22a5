"""The soak (tests/soak) for a moment: it is itself tested, and a full one is `make soak`."""

import json

import pytest
from soak.__main__ import app
from soak.report import Report, Sample, memory
from typer.testing import CliRunner

MADE = {"requests": 1, "tokens": 1, "outcomes": {}, "changes": {}, "audited": 1, "seed": 0, "minutes": 1.0}
GOOD = {"wrong": 0, "unanswered": 0, "audit_differs": 0, "still_running": 0, "exit_code": 0}


@pytest.mark.e2e
def test_no_answer_is_wrong_or_missing_while_sets_change(tmp_path, seed, print_figures):
    arguments = ["--minutes", "0.5", "--changes-every", "0.3", "--seed", str(seed), "--out", str(tmp_path)]
    result = CliRunner().invoke(app, arguments)
    found = json.loads((tmp_path / "soak.json").read_text())
    failed = [name for name in GOOD if found[name]]  # memory still grows in the first minutes
    assert not failed, result.output
    ends = {name: count for name, count in found["outcomes"].items() if name.startswith(("status ", "hung up"))}
    assert found["requests"] == sum(ends.values()) and found["audited"] >= ends["status 200"]
    assert sum(found["changes"].values()) >= 1 and found["tokens"] > 0 and (tmp_path / "soak.png").exists()
    print_figures(
        f"soak: {found['requests']} requests, {found['tokens']} tokens, {sum(found['changes'].values())} changes, "
        f"0 wrong, 0 unanswered, seed {seed}"
    )


@pytest.mark.parametrize("name", GOOD)
def test_each_goal_that_is_missed_is_a_failure(name):
    report = Report(**MADE, **{**GOOD, name: 2}, memory_start_mib=100.0, memory_end_mib=104.0)
    assert report.failures == [f"{name} is 2, not 0"]


def test_memory_may_grow_by_a_twentieth_between_the_warm_up_and_the_end():
    samples = [Sample(i / 10, 500.0 if i < 3 else 100.0 + i, 0) for i in range(30)]
    start, end = memory(samples)
    assert (start, end) == (104.0, 128.0)
    report = Report(**MADE, **GOOD, memory_start_mib=start, memory_end_mib=end)
    assert report.failures == ["memory grew by 23.1%, at most 5% is allowed"]
    assert "| memory at the start, at the end | 104 MiB, 128 MiB (+23.1%) |" in report.markdown()
