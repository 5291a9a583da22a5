"""Training from files on disk: the same forget set whether or not the run was killed, and errors that lose nothing."""

import errno
import io
import json
import random
import shutil
from dataclasses import replace

import pytest
import torch
from rich.console import Console
from rich.progress import Progress
from safetensors.torch import load_file
from typer.testing import CliRunner

from support.engine.tiny import make_target
from unlearngate.acting import force
from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.train import run as training_run
from unlearngate.assistant_training.train import run_files
from unlearngate.assistant_training.train.run import run_folder, train_forget_set, train_undial_set
from unlearngate.assistant_training.train.run_files import RunFiles
from unlearngate.assistant_training.train.settings import PUBLISHED, UndialSettings
from unlearngate.cli import app
from unlearngate.errors import DataError, TrainingError

BRIEF = replace(PUBLISHED, num_layers=2, rank=4, epochs=2, forget_batch=4, retain_batch=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny random target, 6 answers to forget and 24 to retain."""
    base = tmp_path_factory.mktemp("files")
    make_target(base / "target", seed=3)
    rng = random.Random(3)
    for name, count in (("forget", 6), ("retain", 24)):
        rows = [{"question": f"{name} {i}?", "answer": str(rng.randrange(10**8))} for i in range(count)]
        (base / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return base


@pytest.fixture(scope="module")
def target(files):
    torch.set_num_threads(1)
    return load_target(files / "target", device="cpu")


def train(target, files, out, settings=BRIEF, **changes):
    with Progress(disable=True) as progress:
        arguments = {"seed": 1, "checkpoint_every": 2, **changes}
        paths = (files / "forget.jsonl", files / "retain.jsonl", out)
        return train_forget_set(target, *paths, settings, progress=progress, **arguments)


def log_of(out):
    rows = [json.loads(line) for line in (run_folder(out) / "log.jsonl").read_text().splitlines()]
    return [(row["step"], row["forget"], row["retain"], row["learning_rate"]) for row in rows]


def tensors_of(out):
    return load_file(out / "adapter_model.safetensors")


def same_tensors(x, y):
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


@pytest.fixture(scope="module")
def whole(target, files, tmp_path_factory):
    """What an uninterrupted run writes."""
    out = tmp_path_factory.mktemp("whole") / "anna"
    train(target, files, out)
    return out


def test_a_run_writes_an_artefact_a_log_and_no_checkpoint(whole):
    forget_set = load_forget_set(whole)
    assert forget_set.name == "anna"
    assert [row[0] for row in log_of(whole)] == list(range(1, 9))
    assert not (run_folder(whole) / run_files.CHECKPOINT_FILE).exists()


@pytest.mark.parametrize("killed_at", [1, 2, 5])
def test_a_killed_run_goes_on_to_the_same_forget_set(target, files, whole, tmp_path, monkeypatch, killed_at):
    out = tmp_path / "anna"
    log = RunFiles.log

    def killed(self, row):
        log(self, row)
        if row["step"] == killed_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFiles, "log", killed)
        train(target, files, out)
    assert not out.exists()
    with (run_folder(out) / "log.jsonl").open("a") as file:
        file.write('{"step": 99')  # the kill hit while a line was written
    train(target, files, out)
    assert log_of(out) == log_of(whole)
    assert same_tensors(tensors_of(out), tensors_of(whole))


def test_a_batch_in_parts_is_the_same_batch(target, files, whole, tmp_path):
    out = tmp_path / "anna"
    train(target, files, out, replace(BRIEF, accumulate=3))
    for mine, theirs in zip(log_of(out), log_of(whole), strict=True):
        assert mine == pytest.approx(theirs, rel=1e-3)
    first, expected = log_of(out)[0], log_of(whole)[0]
    assert first == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("change", [{"gradient_checkpointing": True}, {"bf16": True}])
def test_saving_memory_changes_little(target, files, whole, tmp_path, change):
    out = tmp_path / "anna"
    train(target, files, out, replace(BRIEF, **change))
    assert log_of(out)[0] == pytest.approx(log_of(whole)[0], rel=0.05 if "bf16" in change else 1e-5)


def start_and_stop(target, files, out, monkeypatch):
    """Leave a checkpoint of step 2 behind."""
    save = RunFiles.save

    def stop(self, state):
        save(self, state)
        raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFiles, "save", stop)
        train(target, files, out)


def test_the_checkpoint_of_another_run_is_refused_and_kept(target, files, tmp_path, monkeypatch):
    out = tmp_path / "anna"
    start_and_stop(target, files, out, monkeypatch)
    with pytest.raises(TrainingError, match="of a run with another seed; finish that run first, or delete"):
        train(target, files, out, seed=2)
    with pytest.raises(TrainingError, match="another settings"):
        train(target, files, out, replace(BRIEF, rank=2))
    assert (run_folder(out) / run_files.CHECKPOINT_FILE).exists()


def test_a_damaged_checkpoint_is_named(target, files, tmp_path, monkeypatch):
    out = tmp_path / "anna"
    start_and_stop(target, files, out, monkeypatch)
    path = run_folder(out) / run_files.CHECKPOINT_FILE
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(TrainingError, match=r"cannot be read .* delete"):
        train(target, files, out)


def test_a_full_disk_keeps_the_checkpoint_before(target, files, whole, tmp_path, monkeypatch):
    out = tmp_path / "anna"
    save = torch.save

    def full(value, path):
        if value["state"]["step"] == 4:
            path.write_bytes(b"half")
            raise OSError(errno.ENOSPC, "No space left on device")
        save(value, path)

    with (
        monkeypatch.context() as patched,
        pytest.raises(TrainingError, match=r"step 4 cannot be saved .*No space.* kept"),
    ):
        patched.setattr(torch, "save", full)
        train(target, files, out)
    assert not out.exists()
    train(target, files, out)
    assert same_tensors(tensors_of(out), tensors_of(whole))


def test_a_loss_that_is_not_finite_ends_the_run_and_writes_nothing(target, files, tmp_path):
    out = tmp_path / "anna"
    with pytest.raises(TrainingError, match="lower the learning rate"):
        train(target, files, out, replace(BRIEF, learning_rate=1e30))
    assert not out.exists()


def test_what_is_odd_about_the_facts_is_said_before_anything_is_trained(target, files, tmp_path, monkeypatch):
    shutil.copy(files / "retain.jsonl", tmp_path / "retain.jsonl")
    row = {"question": "When?", "answer": "came in 1987.", "facts": ["1988", "1987"]}
    (tmp_path / "forget.jsonl").write_text(json.dumps(row))

    def ended(*_, **__):
        raise KeyboardInterrupt

    for name, kind in (("train_assistant", train_forget_set), ("train_undial", train_undial_set)):
        monkeypatch.setattr(training_run, name, ended)
        settings = BRIEF if kind is train_forget_set else UndialSettings(focus="facts")
        paths = (tmp_path / "forget.jsonl", tmp_path / "retain.jsonl", tmp_path / "anna")
        with Progress(console=Console(file=io.StringIO())) as progress, pytest.raises(KeyboardInterrupt):
            kind(target, *paths, settings, seed=1, progress=progress)
        assert '1 of the "facts" to forget are in none of the answers' in progress.console.file.getvalue()


def test_a_question_in_both_files_is_refused(target, files, tmp_path):
    shutil.copy(files / "forget.jsonl", tmp_path / "retain.jsonl")
    shutil.copy(files / "forget.jsonl", tmp_path / "forget.jsonl")
    with pytest.raises(TrainingError, match="holds 6 questions that are to be forgotten too"):
        train(target, tmp_path, tmp_path / "anna")


def test_a_wrong_line_is_named(target, files, tmp_path):
    shutil.copy(files / "retain.jsonl", tmp_path / "retain.jsonl")
    (tmp_path / "forget.jsonl").write_text('{"question": "a", "answer": "b"}\n{"question": "a"}\n')
    with pytest.raises(DataError, match="line 2"):
        train(target, tmp_path, tmp_path / "anna")
    (tmp_path / "forget.jsonl").write_text("\n")
    with pytest.raises(DataError, match="holds no question-answer pair"):
        train(target, tmp_path, tmp_path / "anna")


def test_a_name_that_no_set_can_have_is_refused_before_training(target, files, tmp_path):
    with pytest.raises(TrainingError, match="cannot name a forget set"):
        train(target, files, tmp_path / "Anna B")


@pytest.mark.parametrize(
    "key, sentence", [("chat_template", "has no chat template"), ("eos_token", "has no end token")]
)
def test_a_tokenizer_that_cannot_train_is_refused(files, tmp_path, key, sentence):
    folder = tmp_path / "target"
    shutil.copytree(files / "target", folder)
    (folder / "chat_template.jinja").unlink(missing_ok=True) if key == "chat_template" else None
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop(key, None)
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(TrainingError, match=sentence):
        load_target(folder)


def test_a_missing_pad_token_does_not_matter(files, target, whole, tmp_path):
    folder = tmp_path / "target"
    shutil.copytree(files / "target", folder)
    config = json.loads((folder / "tokenizer_config.json").read_text())
    config.pop("pad_token")
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    other = load_target(folder, device="cpu")
    assert other.tokenizer.pad_token_id == other.tokenizer.eos_token_id
    train(other, files, tmp_path / "anna")
    assert log_of(tmp_path / "anna")[0][1:3] == pytest.approx(log_of(whole)[0][1:3], rel=1e-5)


def run_cli(*arguments):
    return CliRunner().invoke(app, ["train", "uld", *map(str, arguments)])


def test_the_command_trains_what_the_server_verifies(files, tmp_path):
    out = tmp_path / "sets" / "anna"
    short = ["--layers", 2, "--rank", 4, "--steps", 2, "--device", "cpu", "--write-anyway"]
    paths = ["--forget", files / "forget.jsonl", "--retain", files / "retain.jsonl"]
    done = run_cli(files / "target", out, *paths, *short)
    assert done.exit_code == 0, done.output
    assert "forget_gate_open" in done.output
    assert load_forget_set(out).manifest.rule == "lower"
    verify = ["sets", "verify", str(out.parent), "--target", str(files / "target")]
    refused = CliRunner().invoke(app, verify)  # after two steps the set does nothing
    assert refused.exit_code == 1 and "train it longer" in " ".join(refused.output.split())
    force(out.parent, load_forget_set(out).digest)
    verified = CliRunner().invoke(app, verify)
    assert verified.exit_code == 0, verified.output


def test_the_command_trains_from_a_tapped_layer_too(files, tmp_path):
    out = tmp_path / "sets" / "anna"
    more = ["--layers", 2, "--tap-layer", 2, "--rank", 4, "--steps", 1, "--device", "cpu", "--gradient-checkpointing"]
    more += ["--write-anyway"]
    done = run_cli(
        *(files / "target", out, "--forget", files / "forget.jsonl", "--retain", files / "retain.jsonl", *more)
    )
    assert done.exit_code == 0, done.output
    manifest = load_forget_set(out).manifest
    assert (manifest.tap_layer, manifest.num_layers, manifest.training["tap_layer"]) == (2, 2, 2)


def test_a_set_that_does_nothing_is_not_written_and_the_figures_say_so(files, tmp_path):
    paths = ["--forget", files / "forget.jsonl", "--retain", files / "retain.jsonl"]
    done = run_cli(files / "target", tmp_path / "anna", *paths, "--layers", 2, "--steps", 2, "--device", "cpu")
    assert done.exit_code == 2
    said = " ".join(done.output.split())
    assert "forget conversations found before their first token: 0.0%, at least 90% are needed" in said
    assert "more --steps" in said and "--write-anyway" in said
    assert not (tmp_path / "anna").exists()
    assert (run_folder(tmp_path / "anna") / "checkpoint.pt").exists()  # nothing is lost: --write-anyway goes on from it


def test_the_command_says_what_is_wrong_and_exits_2(files, tmp_path):
    paths = ["--forget", files / "forget.jsonl", "--retain", files / "retain.jsonl"]
    for arguments, sentence in (
        (["/nowhere", tmp_path / "anna", *paths], "config.json is missing"),
        ([files / "target", tmp_path / "anna", *paths, "--layers", 9], "the target has 4"),
    ):
        done = run_cli(*arguments)
        assert done.exit_code == 2
        assert sentence in " ".join(done.output.split())
        assert "Traceback" not in done.output
