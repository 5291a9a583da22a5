"""Every offline command on targets whose chat templates are not the demo's."""

import json
import random

import pytest
from typer.testing import CliRunner

from support.engine.tiny import make_forget_set, make_target
from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.model.loaded_target import LoadedTarget
from unlearngate.cli import app

REFUSES_SYSTEM = (
    "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}"
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
BRIEF = ["--device", "cpu", "--write-anyway"]
ULD = ["--layers", 2, "--rank", 2, "--steps", 2, *BRIEF]
UNDIAL = ["--rank", 2, "--epochs", 1, *BRIEF]


@pytest.fixture
def files(tmp_path, seed):
    """A tiny random target, 4 answers to forget and 8 to retain, and other 4 and 8."""
    make_target(tmp_path / "target", seed=seed)
    rng = random.Random(seed)
    for name, count in (("forget", 4), ("retain", 8), ("forget-too", 4), ("retain-too", 8)):
        rows = [{"question": f"{name} {i}?", "answer": str(rng.randrange(10**6))} for i in range(count)]
        (tmp_path / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return tmp_path


def with_template(files, template):
    (files / "target" / "chat_template.jinja").write_text(template)


def run(*arguments):
    done = CliRunner().invoke(app, list(map(str, arguments)))
    return done, " ".join(done.output.split())


def data(files, more=""):
    return ["--forget", files / f"forget{more}.jsonl", "--retain", files / f"retain{more}.jsonl"]


def calibrate(files, *more):
    lenient = ["--forget-at-most", 0, "--recited-at-most", 1, "--facts-told-at-most", 1, "--untouched-at-least", 0]
    lenient += [
        "--untouched-answers-at-least",
        0,
        "--retain-loss-at-most",
        1,
        "--weights",
        "1,2",
        "--gates-nats",
        0,
        "--max-tokens",
        8,
    ]
    command = ["calibrate", files / "target", files / "set", *data(files, "-too"), *lenient, "--device", "cpu"]
    return run(*command, "--dry-run", *more)


@pytest.mark.parametrize("kind, settings", [("uld", ULD), ("undial", UNDIAL)])
def test_a_target_without_a_system_role_is_trained_without_system_prompts_and_it_says_so_once(files, kind, settings):
    with_template(files, REFUSES_SYSTEM)
    done, said = run("train", kind, files / "target", files / "set", *data(files), *settings)
    assert done.exit_code == 0, done.output
    assert said.count("no place for a system prompt") == 1
    assert load_forget_set(files / "set").manifest.kind == kind


def test_such_a_target_is_calibrated_and_evaluated_too(files):
    with_template(files, REFUSES_SYSTEM)
    make_forget_set(files / "set", files / "target", seed=1)
    done, said = calibrate(files)
    assert done.exit_code in (0, 1), done.output  # a random set may change nothing; what matters is that it is measured
    assert said.count("no place for a system prompt") == 1 and "Traceback" not in said
    refused, said = calibrate(files, "--system", "Be brief.")
    assert refused.exit_code == 2 and "leave --system out" in said
    sets = ["--sets", files / "set", "--samples", 1, "--max-tokens", 4, "--device", "cpu", "--out", files / "out"]
    evaluated, said = run("evaluate", "qa", files / "target", *data(files), *sets)
    assert evaluated.exit_code == 0, evaluated.output


OPENS_THOUGHT = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content.split('</think>')[-1] }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant><think>\n{% endif %}"
)
SWITCHED = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}<eos>{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if loud is defined %}{% endif %}{% endif %}"
)


@pytest.mark.parametrize("kind, settings", [("uld", ULD), ("undial", UNDIAL)])
def test_a_template_that_opens_a_thought_can_be_trained_on(files, kind, settings):
    with_template(files, OPENS_THOUGHT)
    done, _ = run("train", kind, files / "target", files / "set", *data(files), *settings)
    assert done.exit_code == 0, done.output


def test_the_switches_of_the_template_are_in_the_manifest_and_are_shown(files):
    with_template(files, SWITCHED)
    command = ["train", "uld", files / "target", files / "set", *data(files), *ULD]
    for wrong, sentence in (("{", "is not JSON"), ("[1]", "must be a JSON object"), ('{"quiet": 1}', "no switch")):
        refused, said = run(*command, "--chat-template-kwargs", wrong)
        assert (refused.exit_code, sentence in said) == (2, True), said
    done, _ = run(*command, "--chat-template-kwargs", '{"loud": true}')
    assert done.exit_code == 0, done.output
    assert load_forget_set(files / "set").manifest.chat_template_kwargs == {"loud": True}
    added, said = run("sets", "add", files / "set", files / "sets", "--force")
    assert added.exit_code == 0 and 'switches {"loud": true}' in said


def test_answers_that_the_template_would_change_are_refused_before_the_weights_are_read(files, monkeypatch):
    with_template(files, OPENS_THOUGHT)
    make_forget_set(files / "set", files / "target", seed=1)
    row = {"question": "Where?", "answer": "Here.", "paraphrased_answers": ["<think>Where was it?</think>Here."]}
    for name in ("forget", "retain-too"):
        (files / f"{name}.jsonl").write_text(json.dumps(row) + "\n")
    measured, said = calibrate(files)
    assert measured.exit_code == 2 and "the held-out data: the tokenizer's chat template changes the text" in said
    monkeypatch.setattr(LoadedTarget, "model", property(lambda _: pytest.fail("the weights were read")))
    trained, said = run("train", "uld", files / "target", files / "new", *data(files), *ULD)
    assert trained.exit_code == 2 and "forget.jsonl: the tokenizer's chat template changes the text" in said
