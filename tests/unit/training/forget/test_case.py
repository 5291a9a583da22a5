"""A case goes on where it was, is of one request only, and holds no word of it once it is purged."""

import json
from datetime import datetime

import pytest

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.forget.case import Case, file_hash, purge
from unlearngate.errors import DataError

ASKED = {"files": ["ab"], "about": None, "seed": 0}
SECRET = "Ilva Brandt"


def filled(folder):
    case = Case(folder, ASKED)
    case.write_pairs(
        "probes.jsonl", [QAPair("ilva", f"Who is {SECRET}?", "Nobody."), QAPair("retain", "a", "b")], {"f": 1}
    )
    case.write("report.md", SECRET)
    (folder / ".ilva.training").mkdir()
    (folder / ".ilva.training" / "log").write_text(SECRET)
    case.record("asked", {"questions": 3})
    return case


def test_a_second_run_finds_what_the_first_one_finished(tmp_path):
    filled(tmp_path / "case")
    again = Case(tmp_path / "case", ASKED)
    assert again.done("asked") == {"questions": 3} and again.done("trained") is None
    rows = [json.loads(line) for line in (tmp_path / "case" / "probes.jsonl").read_text().splitlines()]
    assert [row.get("f") for row in rows] == [1, None]
    assert [pair.subject for pair in again.read_pairs("probes.jsonl")] == ["ilva", "retain"]
    assert (tmp_path / "case").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "case").iterdir() if path.is_file())


def test_another_request_and_what_is_no_case_are_refused(tmp_path):
    filled(tmp_path / "case")
    with pytest.raises(DataError, match=r"is the case of another request \(seed differ"):
        Case(tmp_path / "case", {**ASKED, "seed": 1})
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "letter.txt").write_text("kept")
    with pytest.raises(DataError, match="is not empty and no case"):
        Case(tmp_path / "other", ASKED)
    with pytest.raises(DataError, match="is no case of `unlearngate forget`"):
        purge(tmp_path / "other")
    assert (tmp_path / "other" / "letter.txt").read_text() == "kept"


def test_a_purge_leaves_hashes(tmp_path):
    folder = tmp_path / "case"
    filled(folder)
    assert purge(folder) == [".ilva.training", "probes.jsonl", "report.md"]
    assert [path.name for path in folder.iterdir()] == ["case.json"]
    assert SECRET not in (folder / "case.json").read_text() and '"ab"' in (folder / "case.json").read_text()
    with pytest.raises(DataError, match="was purged"):
        Case(folder, ASKED)
    assert purge(folder) == []
    record = json.loads((folder / "case.json").read_text())
    assert record["deleted"] == [".ilva.training", "probes.jsonl", "report.md"]
    assert datetime.fromisoformat(record["purged_at"]).tzinfo is not None
    assert len(file_hash(folder / "case.json")) == 64
