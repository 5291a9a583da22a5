"""A case goes on where it was, is of one request only, and holds no word of it once it is purged."""

import json
from datetime import datetime

import pytest

from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.forget.case import Case, file_hash, purge
from unlearngate.errors import DataError
from unlearngate.files import SCRATCH_PREFIX

ASKED = {"files": ["ab"], "about": None, "seed": 0}
SECRET = "Ilva Brandt"


PRIVATE = {"about": f"Everything about {SECRET}", "label": SECRET, "instead": None}


def filled(folder):
    with Case(folder, ASKED, PRIVATE) as case:
        fill(case, folder)


def fill(case, folder):
    case.write_pairs(
        "probes.jsonl", [QAPair("ilva", f"Who is {SECRET}?", "Nobody."), QAPair("retain", "a", "b")], {"f": 1}
    )
    case.write("report.md", SECRET)
    (folder / ".ilva.training").mkdir()
    (folder / ".ilva.training" / "log").write_text(SECRET)
    case.record("asked", {"questions": 3})


def test_a_second_run_finds_what_the_first_one_finished(tmp_path):
    filled(tmp_path / "case")
    with Case(tmp_path / "case", ASKED, PRIVATE) as again:
        assert again.done("asked") == {"questions": 3} and again.done("trained") is None
        again.forget("asked", "trained")
    with Case(tmp_path / "case", ASKED, PRIVATE) as again:
        assert again.done("asked") is None
    rows = [json.loads(line) for line in (tmp_path / "case" / "probes.jsonl").read_text().splitlines()]
    assert [row.get("f") for row in rows] == [1, None]
    assert [pair.subject for pair in again.read_pairs("probes.jsonl")] == ["ilva", "retain"]
    assert (tmp_path / "case").stat().st_mode & 0o077 == 0
    assert all(path.stat().st_mode & 0o077 == 0 for path in (tmp_path / "case").iterdir() if path.is_file())


def test_another_request_and_what_is_no_case_are_refused(tmp_path):
    filled(tmp_path / "case")
    with pytest.raises(DataError, match=r"is the case of another request \(seed differ"):
        Case(tmp_path / "case", {**ASKED, "seed": 1}, PRIVATE)
    with pytest.raises(DataError, match=r"another request \(label differ"):
        Case(tmp_path / "case", ASKED, {**PRIVATE, "label": "Ada"})
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
        Case(folder, ASKED, PRIVATE)
    assert purge(folder) == []
    record = json.loads((folder / "case.json").read_text())
    assert record["deleted"] == [".ilva.training", "probes.jsonl", "report.md"]
    assert "salt" not in record and set(record["asked"]["hashed"]) == set(PRIVATE)
    assert datetime.fromisoformat(record["purged_at"]).tzinfo is not None
    assert len(file_hash(folder / "case.json")) == 64


def test_a_purge_and_a_second_run_wait_for_a_run_that_goes_on(tmp_path):
    with Case(tmp_path / "case", ASKED) as case:
        for act in (lambda: purge(tmp_path / "case"), lambda: Case(tmp_path / "case", ASKED)):
            with pytest.raises(DataError, match="a run of this case is going on"):
                act()
        case.record("asked", {})
    assert purge(tmp_path / "case") == []
    assert json.loads((tmp_path / "case" / "case.json").read_text())["purged"]


def test_what_a_killed_first_write_left_is_no_obstacle(tmp_path):
    (tmp_path / "case").mkdir()
    (tmp_path / "case" / f"{SCRATCH_PREFIX}x").write_text("{")
    with Case(tmp_path / "case", ASKED) as case:
        assert case.done("asked") is None


def test_the_same_private_text_has_another_hash_in_each_case(tmp_path):
    hashes = []
    for name in "ab":
        filled(tmp_path / name)
        hashes.append(json.loads((tmp_path / name / "case.json").read_text())["asked"]["hashed"]["about"])
    assert hashes[0] != hashes[1]


def test_until_the_target_is_asked_the_request_may_still_name_its_subject(tmp_path):
    with Case(tmp_path / "case", ASKED, {"about": None}) as case:
        case.record("withheld", {})
    with Case(tmp_path / "case", ASKED, {"about": SECRET}) as case:
        assert case.done("withheld") == {}
        case.record("asked", {"questions": 3})
    with pytest.raises(DataError, match=r"another request \(about differ"):
        Case(tmp_path / "case", ASKED, {"about": None})
    with Case(tmp_path / "case", ASKED, {"about": SECRET}) as case:
        assert case.done("asked") == {"questions": 3}
