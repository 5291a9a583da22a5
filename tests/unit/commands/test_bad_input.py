"""`unlearngate train` on bad input or a full disk: a sentence, no half-written set, nothing lost."""

import json
import random
import resource
import shutil
from contextlib import contextmanager

import pytest
import torch
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from support.engine.tiny import make_forget_set, make_target
from unlearngate.assistant_training.model.loaded_target import LoadedTarget
from unlearngate.assistant_training.train.run_files import RunFiles
from unlearngate.cli import app

KINDS = {"uld": ["--layers", "2", "--rank", "4"], "undial": ["--learning-rate", "1e-3", "--rank", "2"]}
every_kind = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("files")
    make_target(folder / "target", seed=3)
    rng = random.Random(3)
    for name, count in (("forget", 4), ("retain", 56)):
        rows = [{"question": f"{name} {i}?", "answer": str(rng.randrange(10**6))} for i in range(count)]
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def run(kind, files, out, *more, target=None, forget=None):
    paths = [target or files / "target", out, "--forget", forget or files / "forget.jsonl"]
    always = ["--retain", files / "retain.jsonl", "--epochs", "4", "--checkpoint-every", "2", "--device", "cpu"]
    always += ["--write-anyway", *(["--steps", "8"] if kind == "uld" else [])]
    return CliRunner().invoke(app, ["train", kind, *map(str, [*paths, *always, *KINDS[kind], *more])])


def refused(done, sentence):
    assert done.exit_code == 2, done.output
    assert sentence in " ".join(done.output.split()), done.output
    assert "Traceback" not in done.output


def checkpoint(out):
    return out.parent / f".{out.name}.training" / "checkpoint.pt"


def left_behind(out):
    return sorted(path.name for path in out.parent.iterdir()) if out.parent.exists() else []


@every_kind
@pytest.mark.parametrize(
    ("text", "sentence"),
    [
        ("", "holds no question-answer pair"),
        ('{"question": "a", "answer": "b"}\n{"question": "c"\n', "line 2 is not JSON"),
        ('{"question": "a", "answer": "b"}\n\n{"question": "c", "answer": ""}\n', "line 3: 'answer' must be"),
        ('{"question": "retain 3?", "answer": "b"}\n', "1 questions that are to be forgotten too"),
    ],
)
def test_a_wrong_file_is_named_with_its_line(files, tmp_path, kind, text, sentence):
    (tmp_path / "forget.jsonl").write_text(text)
    refused(run(kind, files, tmp_path / "sets" / "anna", forget=tmp_path / "forget.jsonl"), sentence)
    assert left_behind(tmp_path / "sets" / "anna") == []


@every_kind
def test_a_target_that_cannot_be_served_or_asked_is_refused_before_its_weights_are_read(files, tmp_path, kind):
    folder = shutil.copytree(files / "target", tmp_path / "target")
    (folder / "chat_template.jinja").unlink()
    refused(run(kind, files, tmp_path / "sets" / "anna", target=folder), "has no chat template")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({**config, "architectures": ["GPT2LMHeadModel"]}))
    refused(
        run(kind, files, tmp_path / "sets" / "anna", target=folder),
        "target architecture 'GPT2LMHeadModel' is not supported",
    )
    refused(run(kind, files, tmp_path / "sets" / "anna", target=tmp_path / "none"), "config.json is missing")
    assert left_behind(tmp_path / "sets" / "anna") == []


@pytest.fixture
def unreadable(files, monkeypatch):
    """A target whose weights cannot be loaded: whatever is said of a command's input was found without them."""
    monkeypatch.setattr(LoadedTarget, "model", property(lambda _: pytest.fail("the weights were read")))
    return files / "target"


BAD = {
    "no line of JSON": ("nothing\n", "line 1 is not JSON"),
    "a misspelt key": ('{"question": "a", "answer": "b", "fact": ["b"]}\n', "'facts' meant"),
    "an answer beyond the context": (
        json.dumps({"question": "a", "answer": "long " * 200}) + "\n",
        "1 answers are longer, with their questions, than the target's context of 512 tokens",
    ),
    "a wording beyond the context that has fewer characters than another": (
        json.dumps({"question": "q?", "answer": "a " * 110, "variants": ["彼女は船を漕ぐ" * 30]}) + "\n",
        "1 answers are longer, with their questions, than the target's context of 512 tokens; the longest has 6",
    ),
}


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("command", [*KINDS, "calibrate", "evaluate"])
def test_data_are_read_before_the_weights(files, unreadable, tmp_path, command, bad):
    text, sentence = BAD[bad]
    for wrong in ("forget", "retain", *(["holdout"] if command == "evaluate" else [])):
        paths = {name: files / f"{name}.jsonl" for name in ("forget", "retain")} | {wrong: tmp_path / "bad.jsonl"}
        paths[wrong].write_text(text)
        options = [word for name, path in paths.items() for word in (f"--{name}", path)]
        if command in KINDS:
            words = ["train", command, unreadable, tmp_path / "sets" / "anna", *options, *KINDS[command]]
        elif command == "calibrate":
            make_forget_set(tmp_path / "anna", unreadable, seed=1)
            words = ["calibrate", unreadable, tmp_path / "anna", *options]
        else:
            words = ["evaluate", "qa", unreadable, *options, "--out", tmp_path / "out"]
        refused(CliRunner().invoke(app, [*map(str, words), "--device", "cpu"]), sentence)
    assert not (tmp_path / "sets").exists() and not (tmp_path / "out").exists()


def test_a_report_that_cannot_be_written_is_said_before_the_weights_are_read(files, unreadable, tmp_path):
    (tmp_path / "file").write_text("")
    data = ["--forget", files / "forget.jsonl", "--retain", files / "retain.jsonl", "--device", "cpu"]
    make_forget_set(tmp_path / "anna", unreadable, seed=1)
    for words in (
        ["evaluate", "qa", unreadable, *data, "--out", tmp_path / "file"],
        ["calibrate", unreadable, tmp_path / "anna", *data, "--report", tmp_path / "file" / "report"],
    ):
        refused(CliRunner().invoke(app, list(map(str, words))), "is not a folder")


@every_kind
def test_a_target_of_nan_weights_is_an_error_before_anything_is_saved(files, tmp_path, kind):
    folder = shutil.copytree(files / "target", tmp_path / "target")
    weights = load_file(folder / "model.safetensors")
    weights["model.layers.0.mlp.up_proj.weight"][0, 0] = float("nan")
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    out = tmp_path / "sets" / "anna"
    refused(run(kind, files, out, target=folder), "step 1:")
    assert not out.exists() and not checkpoint(out).exists()


@every_kind
def test_a_loss_that_leaves_the_range_ends_the_run_and_writes_no_set(files, tmp_path, kind):
    out = tmp_path / "sets" / "anna"
    refused(run(kind, files, out, "--learning-rate", "1e30"), "lower the learning rate")
    assert left_behind(out) == [".anna.training"]


@contextmanager
def largest_file(size):
    """No file can grow beyond so many bytes: what a full disk does to whoever writes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@pytest.fixture(scope="module", params=KINDS)
def whole(request, files, tmp_path_factory):
    """A kind, and the tensors of an undisturbed run."""
    out = tmp_path_factory.mktemp(request.param) / "anna"
    done = run(request.param, files, out)
    assert done.exit_code == 0, done.output
    return request.param, load_file(out / "adapter_model.safetensors")


def goes_on(kind, files, out, expected):
    done = run(kind, files, out)
    assert done.exit_code == 0, done.output
    tensors = load_file(out / "adapter_model.safetensors")
    assert all(torch.equal(tensor, expected[name]) for name, tensor in tensors.items())
    assert left_behind(out) == [".anna.training", "anna"] and not checkpoint(out).exists()


def test_a_disk_that_is_full_at_the_export_loses_nothing(files, whole, tmp_path, monkeypatch):
    kind, expected = whole
    out, save, last = tmp_path / "sets" / "anna", RunFiles.save, {"uld": 8, "undial": 4}[kind]
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)

    def fills_up(self, state):
        save(self, state)
        if state["step"] == last:
            resource.setrlimit(resource.RLIMIT_FSIZE, (4000, hard))

    with monkeypatch.context() as patched:
        patched.setattr(RunFiles, "save", fills_up)
        try:
            done = run(kind, files, out)
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    refused(done, "make room and give the same command again")
    assert left_behind(out) == [".anna.training"] and checkpoint(out).exists()
    goes_on(kind, files, out, expected)


def test_a_disk_that_is_full_for_the_log_or_the_checkpoint_is_named(files, whole, tmp_path):
    kind, expected = whole
    out = tmp_path / "sets" / "anna"
    with largest_file(150):
        refused(run(kind, files, out), "log.jsonl cannot be written")
    with largest_file(10_000):
        refused(run(kind, files, out), "the checkpoint of step 2 cannot be saved")
    assert left_behind(out) == [".anna.training"]
    goes_on(kind, files, out, expected)


@every_kind
def test_a_set_cannot_be_written_below_a_file(files, tmp_path, kind):
    (tmp_path / "sets").write_text("")
    refused(run(kind, files, tmp_path / "sets" / "anna"), "sets")


@every_kind
def test_quantised_weights_and_pointers_are_refused_in_one_sentence_the_same_as_serving_does(kind, files, tmp_path):
    target = shutil.copytree(files / "target", tmp_path / "target")
    config = json.loads((target / "config.json").read_text())
    (target / "config.json").write_text(json.dumps({**config, "quantization_config": {"quant_method": "gptq"}}))
    pointer = "version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 4096\n"
    for sentence in ("(quantization_config: gptq)", "is a Git LFS pointer"):
        refused(run(kind, files, tmp_path / "sets" / "anna", target=target), sentence)
        assert left_behind(tmp_path / "sets" / "anna") == []
        served = CliRunner().invoke(app, ["serve", str(target), "--port", "0", "--forget-sets", str(tmp_path)])
        refused(served, sentence)
        assert len(served.output.strip().splitlines()) == 1
        (target / "config.json").write_text(json.dumps(config))
        (target / "model.safetensors").write_text(pointer)
