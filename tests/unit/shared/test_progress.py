"""Progress without a terminal: a line when it has moved, and not more than one a minute."""

from unlearngate import progress
from unlearngate.progress import shown_progress


def test_a_line_tells_how_far_a_task_is_where_there_is_no_terminal(monkeypatch, capsys):
    monkeypatch.setattr(progress, "EVERY_S", 0.0)
    with shown_progress() as shown:
        bar = shown.add_task("asking", total=3)
        shown.advance(bar)
        shown.update(bar, completed=3, description="asked")
    assert capsys.readouterr().err.splitlines() == ["asking: 1 of 3", "asked: 3 of 3"]


def test_there_is_not_more_than_a_line_a_minute(capsys):
    with shown_progress() as shown:
        bar = shown.add_task("asking", total=3)
        for _ in range(3):
            shown.advance(bar)
    assert capsys.readouterr().err == ""
