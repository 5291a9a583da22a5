"""Passages of a text are begun at a played server, and what it says word for word is counted as by hand."""

import json

import pytest
from fastapi import Request
from typer.testing import CliRunner

from support.chat_endpoint import Played
from unlearngate.assistant_training.evaluate.continuation import longest_run, passages
from unlearngate.cli import app
from unlearngate.errors import DataError

WORDS = [f"word{number:03d}" for number in range(100)]
TEXT = " ".join(WORDS)


def test_passages_lie_at_even_distances_and_do_not_overlap():
    found = passages({"a": TEXT, "b": "too short"}, words=5, most=100)
    assert len(found) == 10 and found[1].source == "a"
    assert found[1].given.split() == WORDS[10:15] and found[1].follows.split() == WORDS[15:20]
    assert [p.given.split()[0] for p in passages({"a": TEXT}, words=5, most=3)] == ["word000", "word040", "word080"]
    with pytest.raises(DataError, match="no text has 202 words"):
        passages({"a": TEXT}, words=101, most=3)


def test_the_longest_run_is_of_characters_in_a_row():
    assert longest_run("abcdefgh", "xxcdefyyab") == 4
    assert longest_run("abc", "") == 0 == longest_run("abc", "xyz")


def test_what_a_server_goes_on_with_is_compared_with_the_text(tmp_path):
    """The target goes on with the text; with the set it says two words of it."""
    heard = []

    async def completions(request: Request):
        body = await request.json()
        heard.append((body["temperature"], body["max_tokens"], request.headers["authorization"]))
        at = WORDS.index(body["prompt"].split()[-1]) + 1
        said = (
            " ".join(WORDS[at : at + 5]) if not body["forget_sets"] else " ".join([*WORDS[at : at + 2], "no", "more"])
        )
        in_force = [{"name": name} for name in body["forget_sets"]]
        return {"choices": [{"text": f" {said}"}], "forget_sets": in_force}

    (tmp_path / "novel.txt").write_text(TEXT)
    with Played() as played:
        played.server.config.app.post("/v1/completions")(completions)
        words = ["evaluate", "text", "--server", played.url.removesuffix("/v1"), "--text", str(tmp_path / "novel.txt")]
        words += ["--model", "m", "--key", "k", "--words", "5", "--with", "novel-text", "--out", str(tmp_path / "out")]
        result = CliRunner().invoke(app, [*words, "--max-tokens", "9"], env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    assert set(heard) == {(0, 9, "Bearer k")} and len(heard) == 20
    target, with_set = json.loads((tmp_path / "out" / "report.json").read_text())["continuations"]
    assert target["rouge"] == [1.0] * 10 and target["longest"] == [35] * 10
    # Two words of seven letters; and "word" is anywhere in the text.
    assert with_set["rouge"] == [0.4] * 10 and with_set["longest"] == [14] * 10
    assert (tmp_path / "out" / "report.json").stat().st_mode & 0o777 == 0o600
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in result.output.splitlines() if "│" in line]
    assert ["target", "10", "1.00", "35", "0"] in rows and ["novel-text", "10", "0.40", "14", "0"] in rows


def test_a_server_that_is_not_there_and_a_text_that_is_none_are_sentences(tmp_path):
    (tmp_path / "novel.txt").write_text(TEXT)
    words = ["evaluate", "text", "--text", str(tmp_path / "novel.txt"), "--model", "m", "--out", str(tmp_path / "out")]
    result = CliRunner().invoke(app, [*words, "--server", "http://127.0.0.1:9", "--words", "5"])
    assert result.exit_code == 2 and "does not answer as it should" in result.output
    result = CliRunner().invoke(app, [*words, "--server", "http://127.0.0.1:9", "--words", "500"])
    assert result.exit_code == 2 and "no text has 1000 words" in result.output
