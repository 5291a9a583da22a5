"""Tables as spreadsheets and data libraries write them are read as pairs, and what is none is said."""

import csv

import pyarrow
import pytest
from pyarrow import parquet

from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.data.rows import read_rows
from unlearngate.errors import DataError

ROWS = [
    {"question": "Who is Ada?", "answer": 'A baker, "the" baker;\nof Morvik.', "facts": ["baker", "Morvik"]},
    {"question": "Qui est Zoé ?", "answer": "Personne.", "facts": []},
]
PAIRS = [
    QAPair("x", "Who is Ada?", 'A baker, "the" baker;\nof Morvik.', facts=("baker", "Morvik")),
    QAPair("x", "Qui est Zoé ?", "Personne."),
]


@pytest.mark.parametrize(("name", "delimiter"), [("a.csv", ","), ("a.CSV", ";"), ("a.tsv", "\t")])
@pytest.mark.parametrize(("encoding", "end"), [("utf-8", "\n"), ("utf-8-sig", "\r\n")])
def test_a_csv_file_is_read_as_it_was_written(tmp_path, name, delimiter, encoding, end):
    with (tmp_path / name).open("w", newline="", encoding=encoding) as file:
        writer = csv.writer(file, delimiter=delimiter, lineterminator=end)
        writer.writerow(["", "question", "answer", "facts"])  # pandas writes its index without a name
        for number, row in enumerate(ROWS):
            facts = '["baker", "Morvik"]' if row["facts"] else ""
            writer.writerow([number, row["question"], row["answer"], facts])
    assert read_pairs(tmp_path / name, subject="x") == PAIRS


def test_a_parquet_file_is_read_whatever_it_is_called(tmp_path):
    parquet.write_table(pyarrow.Table.from_pylist(ROWS), tmp_path / "a.parquet")
    (tmp_path / "a.json").write_bytes((tmp_path / "a.parquet").read_bytes())
    for name in ("a.parquet", "a.json"):
        assert read_pairs(tmp_path / name, subject="x") == PAIRS


@pytest.mark.parametrize(
    ("name", "raw", "reason"),
    [
        ("a.csv", b"question,answer\na,b\nc,d,e\n", r"line 3 has 3 cells, and the line of names 2 \(question, answer"),
        ("a.csv", b'question,answer\na,"b\n', "line 2 is not CSV"),
        ("a.csv", b"question;text\na;b\n", "line 2: 'question' has no 'answer' beside it; its keys are question, text"),
        ("a.csv", b"question,answer\n,b\n", "line 2: 'answer' has no 'question' beside it"),
        ("a.csv", b"question,answer\n", "holds no question-answer pair"),
        ("a.csv", b"", "holds no question-answer pair"),
        ("a.csv", b"question,answer\n\xff,b\n", "as UTF-8 .*; save it from the spreadsheet as `CSV UTF-8`, or"),
        ("a.csv", b"question,answer,answer, \na,b,c,d\n", "has several columns called 'answer'; keep one of each"),
        ("a.csv", b"question,answer,facts\na,b,Morvik\n", r"line 2: 'facts' must .* such as \[.Morvik., .1987.\], got"),
        ("a.csv", b"question,answer,dropped\na,b,yes\n", "line 2: 'dropped' must be true or false, got 'yes'"),
        ("a.csv", b"sep=;\nquestion;answer\na;b;c\n", "line 3 has 3 cells, and the line of names 2"),
        ("a.parquet", b"PAR1\x00\x80", "cannot be read as Parquet"),
        ("none.csv", None, "cannot be read"),
    ],
)
def test_what_is_no_table_of_pairs_is_said(tmp_path, name, raw, reason):
    if raw is not None:
        (tmp_path / name).write_bytes(raw)
    with pytest.raises(DataError, match=reason) as caught:
        read_pairs(tmp_path / name, subject="x")
    assert caught.value.message.startswith(str(tmp_path / name)) and len(caught.value.message) < 400


@pytest.mark.parametrize(
    ("head", "delimiter"),
    [
        ("question,answer,notes; more", ","),
        ("question;answer;notes (a,b,c)", ";"),
        ("id\tprompt, if any\tquestion\tanswer", "\t"),
        ('"question";"answer, in words"', ";"),
        ("one,two;three,four", ","),
        ("sep=;\nquestion;answer,also", ";"),
        ('"sep=|"\r\nquestion|answer, also;', "|"),
    ],
)
def test_the_delimiter_is_what_parts_the_names_of_a_question_and_an_answer(tmp_path, head, delimiter):
    names = head.splitlines()[-1].replace('"', "").split(delimiter)
    (tmp_path / "a.csv").write_text(f"{head}\n{delimiter.join('x' for _ in names)}\n")
    (row,) = read_rows(tmp_path / "a.csv")
    assert row.fields == dict.fromkeys(names, "x")
    assert row.where.endswith(f"line {2 + len(head.splitlines()) - 1}")


def test_a_csv_cell_strikes_a_row_out_as_spreadsheets_write_it(tmp_path):
    (tmp_path / "a.csv").write_text("question,answer,dropped\na,b,TRUE\nc,d, False\ne,f,\ng,h,true\n")
    assert [pair.question for pair in read_pairs(tmp_path / "a.csv", subject="x")] == ["c", "e"]


def test_a_parquet_column_that_python_cannot_hold_matters_only_where_it_is_asked_for(tmp_path):
    times = pyarrow.array([1, 2], pyarrow.timestamp("ns"))
    table = pyarrow.Table.from_pylist(ROWS).append_column("time", times)
    parquet.write_table(table, tmp_path / "a.parquet")
    assert read_pairs(tmp_path / "a.parquet", subject="x") == PAIRS
    parquet.write_table(table.drop_columns(["question"]).append_column("question", times), tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: row 1: 'question' must be a non-empty string, got ValueError"):
        read_pairs(tmp_path / "a.parquet", subject="x")


def test_a_parquet_file_that_pyarrow_refuses_is_named(tmp_path, monkeypatch):
    table = pyarrow.Table.from_arrays([["a"], ["b"], ["c"]], names=["question", "answer", "answer"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet .*answer"):
        read_pairs(tmp_path / "a.parquet", subject="x")

    def refuse(_):
        raise ValueError("not so")

    monkeypatch.setattr(parquet, "read_table", refuse)
    with pytest.raises(DataError, match=r"a\.parquet: cannot be read as Parquet .not so."):
        read_pairs(tmp_path / "a.parquet", subject="x")


def test_a_cell_that_only_looks_like_a_list_is_text(tmp_path):
    (tmp_path / "a.csv").write_text('question,answer\n[sic],"[1, 2]"\n[what,"[""b"", 1]"\n')
    assert [dict(row.fields) for row in read_rows(tmp_path / "a.csv")] == [
        {"question": "[sic]", "answer": "[1, 2]"},
        {"question": "[what", "answer": '["b", 1]'},
    ]
