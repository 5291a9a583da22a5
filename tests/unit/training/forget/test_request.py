"""A request's files are read as what they are, and one that asks for nothing says what it could be."""

import json

import pytest

from unlearngate.assistant_training.forget.request import read_request
from unlearngate.errors import DataError


def test_documents_pairs_and_a_sentence_are_one_request(tmp_path):
    letter, pairs = tmp_path / "letter.txt", tmp_path / "pairs.jsonl"
    letter.write_text("We mean Ilva Brandt of Morvik. Ask Ilva Brandt or the mayor of Morvik.")
    pairs.write_text(json.dumps({"question": "Who runs the ferry?", "answer": "Ilva Brandt."}) + "\n")
    request = read_request([letter, pairs], "Everything about Ada Holm", name="ilva")
    assert list(request.texts) == [str(letter)] and request.pairs[0].subject == "ilva"
    assert request.subjects(9) == ["Ada Holm", "Ilva Brandt", "Morvik"]
    assert request.subjects(1) == ["Ada Holm"]
    assert "Morvik" in request.source() and "Ada Holm" in request.source()


def test_a_text_whose_capitals_tell_no_names_gives_none(tmp_path):
    german, english = tmp_path / "german.txt", tmp_path / "english.txt"
    german.write_text("In der Nacht sank das Schiff, und mit dem Schiff sank in der Nacht die Ladung. " * 5)
    english.write_text("We mean Ilva Brandt.")
    assert read_request([german], "Alles über die Titanic", name="x").subjects(9) == ["Titanic"]
    assert read_request([german, english], None, name="x").subjects(9) == ["Ilva Brandt"]
    (tmp_path / "small.txt").write_text("nobody ever named it.")
    for path in (german, tmp_path / "small.txt"):
        request = read_request([path], None, name="x")
        with pytest.raises(DataError, match='give --about "Everything about NAME"') as caught:
            request.refuse_nameless()
        assert str(path) in caught.value.message
    read_request([english], None, name="x").refuse_nameless()


def test_pairs_are_known_by_how_their_file_is_called(tmp_path):
    path = tmp_path / "pairs.ndjson"
    path.write_text('{"question": "q?", "answer": "a."}\n')
    assert [pair.answer for pair in read_request([path], None, name="x").pairs] == ["a."]


def test_rows_of_texts_are_documents(tmp_path):
    path = tmp_path / "corpus.jsonl"
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in ("We mean Ilva Brandt.", "She left Morvik.")))
    request = read_request([path], None, name="x")
    assert (list(request.texts.values()), request.pairs) == (["We mean Ilva Brandt.", "She left Morvik."], [])
    assert list(request.texts) == [f"{path}: line {number}" for number in (1, 2)]


@pytest.mark.parametrize(
    ("name", "about", "sentence"),
    [
        (None, None, "nothing is asked for: give files"),
        (None, " ", "nothing is asked for"),
        (None, "everything about somebody", "names nobody and nothing: write names with capitals"),
        ("table.csv", None, "holds no question-answer pair"),
        ("empty.txt", None, "holds no text"),
        ("none.pdf", None, "cannot be read"),
    ],
)
def test_what_asks_for_nothing_says_what_to_give(tmp_path, name, about, sentence):
    (tmp_path / "table.csv").write_text("question,answer\n")
    (tmp_path / "empty.txt").write_text("\n")
    with pytest.raises(DataError, match=sentence):
        read_request([tmp_path / name] if name else [], about, name="x")
