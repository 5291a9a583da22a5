import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from unlearngate.assistant_training.data.augmented import Run, read_augmented, read_uld_augmentation
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.data.rewording import Reply
from unlearngate.errors import DataError

PAIRS = [QAPair("ada", f"Where did Ada keep box {n}?", f"Ada kept box {n} in Velmora.") for n in range(3)]


def reply(pair: QAPair) -> Reply:
    return Reply(
        paraphrased_questions=(f"In which place, then: {pair.question}", f"Tell me: {pair.question}"),
        paraphrased_answers=(f"It was Velmora, for: {pair.question}", f"Velmora, for: {pair.question}"),
        perturbed_answers=(f"Orvane, for: {pair.question}", f"Tamdara, for: {pair.question}"),
    )


def run(pairs: Sequence[QAPair], out: Path, *, settings: Any = None) -> Run:
    """Add what the file lacks."""
    started = Run(pairs, out, "m", settings, (2, 2))
    for item in started.pending:
        started.add(item, reply(item[2]))
    started.write_review()
    return started


def test_reworded_answers_are_the_pairs_other_answers(tmp_path: Path) -> None:
    run(PAIRS[:1], tmp_path / "out")
    (pair,) = read_augmented(tmp_path / "out")
    assert pair.paraphrased_answers == reply(pair).paraphrased_answers
    assert pair.variants == reply(pair).perturbed_answers


def test_a_struck_out_line_is_not_read_and_not_asked_for_again(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(PAIRS[:2], out)
    out.write_text(out.read_text().replace("{", '{"dropped": true, ', 1).rstrip("\n"))
    assert [p.question for p in read_augmented(out)] == [PAIRS[1].question]
    assert read_pairs(out, subject="x") == read_augmented(out)
    assert read_augmented(out, PAIRS[:2])[0] == PAIRS[0]
    again = run(PAIRS, out)
    assert (len(again.items), len(again.pending)) == (3, 1)
    assert len(out.read_text().splitlines()) == 3 and PAIRS[0].question not in again.review.read_text()


def test_a_half_written_line_is_taken_away_and_its_pair_counts_as_not_asked(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(PAIRS, out)
    whole = out.read_bytes()
    out.write_bytes(whole[:-20])
    assert len(read_augmented(out)) == 2
    again = run(PAIRS, out)
    assert "line 3 was only half written" in again.notes[0] and [item[2] for item in again.pending] == PAIRS[2:]
    assert out.read_bytes() == whole


def test_of_several_lines_for_a_pair_the_last_one_counts(tmp_path: Path) -> None:
    out = tmp_path / "out"
    run(PAIRS, out)
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    out.write_text("".join(json.dumps(row) + "\n" for row in (*rows, rows[0] | {"variants": ["Elsewhere."]})))
    assert read_augmented(out)[0].variants == ("Elsewhere.",) and len(read_augmented(out)) == 3
    assert read_pairs(out, subject="x") == read_augmented(out)
    assert len(run(PAIRS, out, settings="others").pending) == 3


def test_a_file_of_something_else_is_an_error_and_stays_as_it_is(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("title,year\nx,1\n")
    with pytest.raises(DataError, match="line 1"):
        run(PAIRS, tmp_path / "out")
    assert (tmp_path / "out").read_text() == "title,year\nx,1\n"


def test_an_edited_file_is_read_as_it_is_meant(tmp_path: Path) -> None:
    """A byte order mark, raw line separators and nulls are what editors and pandas leave."""
    out = tmp_path / "out"
    run(PAIRS, out)
    expected = read_augmented(out)
    rows = [json.loads(line) for line in out.read_text().split("\n") if line]
    rows[0] |= {"facts": None, "dropped": None, "paraphrases": [*rows[0]["paraphrases"], "Where\u2028is it?"]}
    out.write_bytes(b"\xef\xbb\xbf" + "".join(json.dumps(r, ensure_ascii=False) + "\n" for r in rows).encode())
    first, *others = read_augmented(out)
    assert others == expected[1:] and first.paraphrases == (*expected[0].paraphrases, "Where\u2028is it?")
    assert read_pairs(out, subject="x") == [first, *others]
    whole = out.read_bytes()
    assert run(PAIRS, out).pending == [] and out.read_bytes() == whole
    out.write_text(out.read_text(encoding="utf-8-sig").replace("{", '{"droped": true, ', 1))
    with pytest.raises(DataError, match="line 1: unknown key 'droped'"):
        read_augmented(out)


def test_ulds_files_are_attached_by_question_and_strangers_reported(tmp_path: Path) -> None:
    def write(kind: str, *rows: dict[str, Any]) -> None:
        path = tmp_path / f"forget01_{kind}.jsonl"
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))

    base = {"question": PAIRS[0].question, "answer": PAIRS[0].answer}
    write("paraphrase", base | {"paraphrased_questions": ["a?", "b?"], "paraphrased_answers": ["c"]})
    write("perturb", base | {"perturbed_answers": ["d"]}, base | {"question": "x?", "perturbed_answers": ["e"]})
    pairs, notes = read_uld_augmentation(tmp_path, "forget01", PAIRS[:2])
    first = QAPair("ada", PAIRS[0].question, PAIRS[0].answer, ("a?", "b?"), ("d",), (), ("c",))
    assert pairs == [first, PAIRS[1]]
    assert "line 2 is about no pair: x?" in notes[0] and len(notes) == 1 + 3
    (tmp_path / "forget01_perturb.jsonl").rename(tmp_path / "forget01_perturb.json")
    assert read_uld_augmentation(tmp_path, "forget01", PAIRS[:2])[0] == pairs
    write("perturb", {"question": "q"})
    with pytest.raises(DataError, match="line 1"):
        read_uld_augmentation(tmp_path, "forget01", PAIRS)
