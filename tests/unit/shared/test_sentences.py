"""What a set says instead: the manifest's fields, its tokens, and the command that changes them."""

import json

import pytest
from pydantic import TypeAdapter, ValidationError
from safetensors.torch import load_file
from typer.testing import CliRunner

from support.engine.tiny import EOS, make_forget_set, make_target, make_tokenizer
from unlearngate.artefact import ADAPTER_FILE, MANIFEST_FILE, load_forget_set, rewrite_forget_set
from unlearngate.commands.sets import app
from unlearngate.errors import ArtefactError, SentenceError
from unlearngate.manifest import LabelText, SentenceText
from unlearngate.sentences import LONGEST, Sentences, encode_sentence


@pytest.fixture(scope="module")
def target(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("target"), seed=1)


@pytest.fixture
def anna(target, tmp_path):
    return make_forget_set(tmp_path / "anna", target, seed=1, rank=1)


def test_a_manifest_without_a_sentence_says_nothing_and_one_of_before_is_read(anna):
    assert anna.manifest.sentence() is None
    path = anna.folder / MANIFEST_FILE
    fields = json.loads(path.read_text())
    path.write_text(json.dumps({name: value for name, value in fields.items() if name not in ("instead", "label")}))
    assert load_forget_set(anna.folder).manifest == anna.manifest


def test_the_label_is_filled_in_and_nothing_else(anna):
    text = "I cannot tell you about {label}, {name}, {0} or {{label}}."
    manifest = anna.manifest.model_copy(update={"instead": text})
    assert manifest.sentence() == "I cannot tell you about anna, {name}, {0} or {anna}."
    labelled = manifest.model_copy(update={"label": "Anna {label} %s"})
    assert labelled.sentence("No {label}.") == "No Anna {label} %s."


@pytest.mark.parametrize("text", ["", " ", "a" * 401, "a\nb", "a\tb", "a\x00", "a\x1b[0m", "a\u2028b", "a\x85b", 7])
def test_what_is_no_plain_sentence_is_refused(text):
    with pytest.raises(ValidationError):
        TypeAdapter(SentenceText).validate_python(text)


@pytest.mark.parametrize(
    "text", ["a", "a" * 400, "Weiß nicht: 我不知道 \u200d👩\u200d🔬", "\u0646\u200c\u062f", " {x} "]
)
def test_any_language_is_plain(text):
    assert TypeAdapter(SentenceText).validate_python(text) == text


def test_a_label_is_short():
    TypeAdapter(LabelText).validate_python("a" * 100)
    with pytest.raises(ValidationError):
        TypeAdapter(LabelText).validate_python("a" * 101)


def test_a_set_on_the_target_itself_has_no_gate_that_could_say_when(target, tmp_path):
    with pytest.raises(ArtefactError, match="has no gate"):
        make_forget_set(tmp_path / "abel", target, seed=1, kind="undial", instead="No.")


def test_a_sentence_is_its_text_and_the_end():
    tokenizer = make_tokenizer()
    ids = encode_sentence(tokenizer, "No, Anna.")
    assert ids[-1] == EOS and tokenizer.decode(ids[:-1]) == "No, Anna."
    assert len(encode_sentence(tokenizer, "a" * (LONGEST - 1))) == LONGEST


def test_what_the_target_cannot_say_is_refused_with_the_reason():
    tokenizer = make_tokenizer()
    with pytest.raises(SentenceError, match=f"{LONGEST + 1} of the target's tokens.*at most {LONGEST}"):
        encode_sentence(tokenizer, "a" * LONGEST)
    with pytest.raises(SentenceError, match=r"special tokens.*<eos>"):
        encode_sentence(tokenizer, "a<eos>b")
    tokenizer.eos_token = None
    with pytest.raises(SentenceError, match="no end-of-sequence"):
        encode_sentence(tokenizer, "a")


def test_the_targets_own_tokenizer_encodes(target):
    assert Sentences(target).tokens("No.") == encode_sentence(make_tokenizer(), "No.")


def test_rewriting_changes_the_manifest_and_keeps_the_tensors(anna, tmp_path):
    other = rewrite_forget_set(anna, tmp_path / "other", instead="No.", label="Anna")
    assert (other.manifest.instead, other.manifest.label) == ("No.", "Anna")
    assert other.digest != anna.digest and other.manifest.files == anna.manifest.files
    old, new = load_file(anna.folder / ADAPTER_FILE), load_file(other.folder / ADAPTER_FILE)
    assert old.keys() == new.keys() and all((old[name] == new[name]).all() for name in old)
    assert load_forget_set(anna.folder).digest == anna.digest


def run(*arguments):
    done = CliRunner().invoke(app, ["instead", *map(str, arguments)], env={"COLUMNS": "200"})
    return done.exit_code, " ".join(done.output.split())


def test_the_command_changes_what_a_set_says_and_is_about(anna, target):
    assert run(anna.folder, "No word on {label}.", "--target", target)[1].endswith("says: No word on anna.")
    assert run(anna.folder, "--label", "Anna Berg")[1].endswith("says: No word on Anna Berg.")
    changed = load_forget_set(anna.folder).manifest
    assert (changed.instead, changed.label) == ("No word on {label}.", "Anna Berg")
    assert run(anna.folder, "--nothing")[1].endswith("says nothing instead")
    changed = load_forget_set(anna.folder).manifest
    assert (changed.instead, changed.label) == (None, "Anna Berg")


def test_the_command_refuses_what_cannot_be_said_and_changes_nothing(anna, target):
    for arguments in ([], ["No.", "--nothing"], ["a\nb"], [""], ["a" * 200, "--target", target]):
        code, output = run(anna.folder, *arguments)
        assert code == 2, output
    assert load_forget_set(anna.folder).digest == anna.digest
