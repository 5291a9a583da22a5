"""`unlearngate train verbatim`: from text files to a set, or a sentence and nothing."""

import pytest
from typer.testing import CliRunner

from support.engine.tiny import make_forget_set, make_target
from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.train.settings import VerbatimSettings
from unlearngate.cli import app

TEXT = "It was the age of wisdom, it was the age of foolishness, it was the epoch of belief.\n"


@pytest.fixture
def text(tmp_path):
    (tmp_path / "text.txt").write_text(TEXT)
    return tmp_path / "text.txt"


def train(*words):
    return CliRunner().invoke(app, ["train", "verbatim", *map(str, words)])


def refused(done, sentence):
    assert done.exit_code == 2, done.output
    assert sentence in " ".join(done.output.split()), done.output
    assert "Traceback" not in done.output


def test_a_set_is_written_and_its_figures_are_said(text, tmp_path):
    done = train(tmp_path / "sets" / "tale", "--text", text, "--label", "a tale")
    assert done.exit_code == 0, done.output
    made = load_forget_set(tmp_path / "sets" / "tale")
    assert (made.name, made.manifest.label, made.manifest.metrics["letters"]) == ("tale", "a tale", 64)
    said = " ".join(done.output.split())
    assert made.reference in said and "64 letters of 1 texts" in said and "no run of 40 letters" in said


def test_several_texts_are_given_as_a_shell_does_and_by_name(text, tmp_path):
    for name in ("b", "c"):
        (tmp_path / name).write_text(TEXT[::-1] + name)
    for words in (["--text", text, tmp_path / "b", tmp_path / "c"], ["--text", text, "--text", tmp_path / "b"]):
        out = tmp_path / f"sets{len(words)}" / "tale"
        assert train(out, *words).exit_code == 0
        assert load_forget_set(out).manifest.metrics["texts"] == len([word for word in words if word != "--text"])


def test_a_byte_order_mark_and_line_ends_of_windows_change_nothing(text, tmp_path):
    (tmp_path / "windows").write_bytes(b"\xef\xbb\xbf" + TEXT.replace("\n", "\r\n").encode())
    digests = set()
    for file in (text, tmp_path / "windows"):
        assert train(tmp_path / "sets" / "tale", "--text", file).exit_code == 0
        digests.add(load_forget_set(tmp_path / "sets" / "tale").manifest.data_digests["texts"])
    assert len(digests) == 1


@pytest.mark.parametrize("letters, seed_letters", [(24, 12), (25, 13), (39, 20), (40, 20), (60, 20)])
def test_a_window_is_at_most_half_a_run(text, tmp_path, letters, seed_letters):
    assert train(tmp_path / "tale", "--text", text, "--letters", letters).exit_code == 0
    windows = load_forget_set(tmp_path / "tale").manifest.windows
    assert (windows.letters, windows.seed_letters) == (letters, seed_letters)
    assert VerbatimSettings().letters == 40


@pytest.mark.parametrize(
    "raw, sentence",
    [
        (b"caf\xe9 " * 50, "is not UTF-8 (byte 3: 0xe9); save it as UTF-8"),
        ("wide".encode("utf-16") * 40, "is UTF-16; save it as UTF-8"),
        (b"", "holds no text"),
        (b"- " * 500 + b"a" * 39, "has 39 letters"),
    ],
)
def test_what_is_no_text_or_too_short_is_refused_by_name(text, tmp_path, raw, sentence):
    (tmp_path / "bad.txt").write_bytes(raw)
    refused(train(tmp_path / "sets" / "tale", "--text", text, tmp_path / "bad.txt"), sentence)
    assert not (tmp_path / "sets").exists()


def test_what_cannot_be_a_set_is_refused_before_anything_is_written(text, tmp_path):
    refused(train(tmp_path / "sets" / "Tale", "--text", text), "cannot name a forget set")
    refused(train(tmp_path / "sets" / "tale", "--text", text, "--label", " "), "cannot be a set's label")
    refused(train(tmp_path / "sets" / "tale", "--text", text, "--letters", "20000"), "less than or equal to 10000")
    refused(train(tmp_path / "sets" / "tale", "--text", tmp_path / "none.txt"), "No such file")
    assert train(tmp_path / "sets" / "tale", "--text", text, "--letters", "23").exit_code == 2
    assert not (tmp_path / "sets").exists()


def test_a_page_is_hashed_without_its_markup(text, tmp_path):
    (tmp_path / "page.html").write_text(
        f"<html><script>no()</script><p>{TEXT.replace('wisdom', '<b>wis</b>dom')}</html>"
    )
    for name in ("text.txt", "page.html"):
        assert train(tmp_path / name.partition(".")[0], "--text", tmp_path / name).exit_code == 0
    digests = {load_forget_set(tmp_path / name).manifest.data_digests["texts"] for name in ("text", "page")}
    assert len(digests) == 1


def test_only_a_forget_set_is_replaced(text, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work" / "thesis.txt").write_text("mine")
    refused(train(tmp_path / "work", "--text", text), "forget")
    assert (tmp_path / "work" / "thesis.txt").read_text() == "mine"


def test_a_target_is_no_text(text, tmp_path):
    target = make_target(tmp_path / "target", seed=1)
    make_forget_set(tmp_path / "anna", target, seed=2)
    refused(train(tmp_path / "tale", "--text", tmp_path / "anna" / "adapter_model.safetensors"), "is no text; expected")


def test_the_commands_for_sets_take_it(text, tmp_path):
    """Listed, verified with any target, copied, given a label; a sentence is refused."""
    assert train(tmp_path / "made" / "tale", "--text", text).exit_code == 0
    target = make_target(tmp_path / "target", seed=1)

    def sets(*words):
        done = CliRunner().invoke(app, ["sets", *map(str, words)])
        return done.exit_code, " ".join(done.output.split())

    assert sets("add", tmp_path / "made" / "tale", tmp_path / "sets")[0] == 0
    for words in (["list", tmp_path / "sets"], ["verify", tmp_path / "sets", "--target", target]):
        code, said = sets(*words)
        assert code == 0 and "verbatim" in said
    code, said = sets("instead", tmp_path / "sets" / "tale", "I cannot say that.")
    assert code == 2 and "has no gate that could say when" in said
    assert sets("instead", tmp_path / "sets" / "tale", "--label", "a tale of two cities")[0] == 0
    assert load_forget_set(tmp_path / "sets" / "tale").manifest.label == "a tale of two cities"
    assert sets("remove", "tale", tmp_path / "sets")[0] == 0
