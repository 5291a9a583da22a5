"""Files of rows as editors, pandas, datasets and jq write them."""

import json
import random
from pathlib import Path

import pytest

from unlearngate.assistant_training.data.rows import find_json_files, read_rows
from unlearngate.errors import DataError

INSIDE = "\u2028 \u2029 \u0085 \x0b \x0c \x1c \x1d \x1e".split(" ")  # str.splitlines ends a line at each of these
JSON_ALLOWS = [one for one in INSIDE if one >= " "]  # raw inside a string


@pytest.fixture
def rows(seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    return [{"n": str(n), "text": f"{rng.random()}{rng.choice(JSON_ALLOWS)}{rng.random()}"} for n in range(5)]


def test_the_rows_are_the_same_however_they_are_written(tmp_path: Path, rows: list[dict[str, str]]) -> None:
    lines = [json.dumps(row, ensure_ascii=False) for row in rows]
    ways = {
        "lines": "\n".join(lines),
        "ended lines": "".join(line + "\n" for line in lines),
        "windows lines": "".join(line + "\r\n" for line in lines),
        "lines apart": "\n\n \n".join(lines),
        "array": json.dumps(rows),
        "indented array": "\n" + json.dumps(rows, ensure_ascii=False, indent=2) + "\n",
    }
    for name, text in ways.items():
        for start in ("", "\ufeff"):
            path = tmp_path / f"{name}.json"
            path.write_bytes((start + text).encode())
            assert [dict(row.fields) for row in read_rows(path)] == rows, (name, start)


def test_a_place_is_named_by_its_line_or_its_row(tmp_path: Path) -> None:
    (tmp_path / "a").write_text('\n{"a": "\u2028"}\n{"b": 1}\n')
    assert [row.where for row in read_rows(tmp_path / "a")] == [f"{tmp_path / 'a'}: line {n}" for n in (2, 3)]
    (tmp_path / "b").write_text('[{"a": 1},\n {"b": 1}]')
    assert [row.where for row in read_rows(tmp_path / "b")] == [f"{tmp_path / 'b'}: row {n}" for n in (1, 2)]


def test_one_object_over_several_lines_is_a_row(tmp_path: Path) -> None:
    (tmp_path / "a").write_text(json.dumps({"data": [1, 2]}, indent=1))
    assert [dict(row.fields) for row in read_rows(tmp_path / "a")] == [{"data": [1, 2]}]


@pytest.mark.parametrize(
    ("raw", "reason"),
    [
        (b'{"a": 1}\n{"b": \n', "line 2 is not JSON"),
        (b'{\n "a": 1\n}\n{\n "b": 2\n}\n', "a JSON object on each line"),
        (b'[{"a": 1},\n{"b"}]', "line 2 is not JSON"),
        (b"[1]\n[2]\n", "more than one JSON array"),
        (b'[{"a": 1}, "b"]', "row 2 must hold a JSON object, got str"),
        (b'{"a": 1}\n"b"\n', "line 2 must hold a JSON object, got str"),
        (b"question,answer\na,b\n", "to_json"),
        (b"\x1f\x8b\x08\x00", "gunzip"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:0\n", "git lfs pull"),
        ('\ufeff{"a": 1}'.encode("utf-16-le"), "UTF-16"),
        (b'{"a": "\xe9"}', "UTF-8"),
    ],
)
def test_what_is_something_else_is_said(tmp_path: Path, raw: bytes, reason: str) -> None:
    (tmp_path / "x.jsonl").write_bytes(raw)
    with pytest.raises(DataError, match=r"x\.jsonl") as caught:
        read_rows(tmp_path / "x.jsonl")
    assert reason in caught.value.message and len(caught.value.message) < 400


def test_a_file_of_a_data_set_may_end_in_json(tmp_path: Path) -> None:
    for name in ("a.jsonl", "a.json", "b.json"):
        (tmp_path / name).touch()
    assert find_json_files(tmp_path, ["a", "b"]) == {"a": tmp_path / "a.jsonl", "b": tmp_path / "b.json"}
    with pytest.raises(DataError, match=r"c\.json, d\.json missing"):
        find_json_files(tmp_path, ["a", "c", "d"])
