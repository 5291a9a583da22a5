import json
from pathlib import Path

import pytest

from unlearngate.assistant_training.data.pairs import QAPair, read_pairs, read_tofu
from unlearngate.errors import DataError

PAIR = QAPair("ada", "Where was Ada born?", "Ada was born in Velmora, in a fog.", facts=("Velmora", "a fog"))


def write(path: Path, *lines: str) -> Path:
    path.write_text("".join(line + "\n" for line in lines), encoding="utf-8")
    return path


def test_pairs_survive_writing_and_reading(tmp_path: Path) -> None:
    pairs = [PAIR, QAPair("bo", "Who?", "Bo.", ("Whom?",), ("Not Bo.",), (), ("It is Bo.",))]
    path = write(tmp_path / "pairs.jsonl", *(json.dumps(pair.row()) for pair in pairs))
    assert read_pairs(path, subject="unused") == pairs


def test_other_columns_are_ignored_and_the_subject_is_filled_in(tmp_path: Path) -> None:
    others = {
        "question_id": 3,
        "answerKey": "B",
        "answer_start": 0,
        "category": "x",
        "source": "y",
        "short_answer": "z",
    }
    path = write(tmp_path / "x.jsonl", "", json.dumps({"question": "q", "answer": "a", **others}))
    assert read_pairs(path, subject="given") == [QAPair("given", "q", "a")]


def test_null_stands_for_what_is_left_out(tmp_path: Path) -> None:
    """As pandas and datasets write a column that some rows lack."""
    nulls = dict.fromkeys(("subject", "dropped", "paraphrases", "paraphrased_answers", "variants", "facts"))
    path = write(tmp_path / "x.jsonl", json.dumps({"question": "q", "answer": "a", **nulls}))
    assert read_pairs(path, subject="given") == [QAPair("given", "q", "a")]


def test_a_struck_out_row_needs_nothing_else(tmp_path: Path) -> None:
    path = write(tmp_path / "x.jsonl", '{"dropped": true}', '{"question": "q", "answer": "a"}')
    assert read_pairs(path, subject="given") == [QAPair("given", "q", "a")]


def test_struck_out_lines_are_left_out(tmp_path: Path) -> None:
    lines = [json.dumps({"dropped": dropped, "question": f"{dropped}?", "answer": "a"}) for dropped in (True, False)]
    assert read_pairs(write(tmp_path / "x.jsonl", *lines), subject="s") == [QAPair("s", "False?", "a")]
    with pytest.raises(DataError, match="no question-answer pair"):
        read_pairs(write(tmp_path / "x.jsonl", lines[0], '{"dropped": true}'), subject="s")


def test_of_several_lines_for_a_pair_the_last_one_counts(tmp_path: Path) -> None:
    lines = [{"question": "q", "answer": "a"}, {"question": "r", "answer": "b"}, {"question": "q", "answer": "c"}]
    more = {"question": "q", "answer": "a", "paraphrases": ["q?"]}
    path = write(tmp_path / "x.jsonl", *(json.dumps(row) for row in (*lines, more)))
    assert read_pairs(path, subject="s") == [
        QAPair("s", "q", "a", ("q?",)),
        QAPair("s", "r", "b"),
        QAPair("s", "q", "c"),
    ]


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("{", "not JSON"),
        ("[]", "JSON object"),
        ('{"answer": "a"}', "'question'"),
        ('{"question": "q", "answer": 3}', "'answer'"),
        ('{"question": " ", "answer": "a"}', "'question'"),
        ('{"question": "q", "answer": "a", "facts": "a"}', "'facts'"),
        ('{"question": "q", "answer": "a", "variants": [1]}', "'variants'"),
        ('{"question": "q", "answer": "a", "subject": 1}', "'subject'"),
        ('{"question": "q", "answer": "a", "dropped": "true"}', "'dropped'"),
        ('{"question": "q", "answer": "\\ud800"}', "'answer'"),
        ("[" * 99999, "JSON"),
    ],
)
def test_an_error_names_the_file_and_the_line(tmp_path: Path, line: str, reason: str) -> None:
    path = write(tmp_path / "bad.jsonl", '{"question": "q", "answer": "a"}', "", line)
    with pytest.raises(DataError, match="line 3") as caught:
        read_pairs(path, subject="x")
    assert reason in caught.value.message and "bad.jsonl" in caught.value.message


def test_an_empty_or_missing_file_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no question-answer pair"):
        read_pairs(write(tmp_path / "empty.jsonl"), subject="x")
    with pytest.raises(DataError, match="cannot be read"):
        read_pairs(tmp_path / "missing.jsonl", subject="x")


def test_tofu_gives_its_last_authors_by_index(tmp_path: Path) -> None:
    write(tmp_path / "full.jsonl", *(json.dumps({"question": f"q{i}", "answer": f"a{i}"}) for i in range(100)))
    pairs = read_tofu(tmp_path, num_authors=2)
    assert [pair.subject for pair in pairs] == ["author-3"] * 20 + ["author-4"] * 20
    assert (pairs[0].question, pairs[-1].answer) == ("q60", "a99")
    (tmp_path / "full.jsonl").rename(tmp_path / "full.json")
    assert read_tofu(tmp_path, num_authors=2) == pairs
    with pytest.raises(DataError, match=r"full\.json: 6 authors"):
        read_tofu(tmp_path, num_authors=6)
