"""Training, calibration and evaluation on documents: the same commands as on questions, on tiny targets."""

import json
import random
from dataclasses import replace

import numpy as np
import pytest
import torch
from rich.progress import Progress
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from support.engine.tiny import make_target
from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.calibrate.held_out import ask, read_held_out
from unlearngate.assistant_training.data.encoding import IGNORE, encode_prompt
from unlearngate.assistant_training.data.pairs import read_pairs
from unlearngate.assistant_training.evaluate.metrics import rouge_f1
from unlearngate.assistant_training.evaluate.qa import as_questions, evaluate_questions
from unlearngate.assistant_training.model.decoding import greedy
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.train.conversations import draw_steps
from unlearngate.assistant_training.train.run import train_forget_set, train_undial_set
from unlearngate.assistant_training.train.settings import PUBLISHED, AssistantSettings, UndialSettings
from unlearngate.assistant_training.train.undial import draw_rows
from unlearngate.cli import app
from unlearngate.errors import DataError

BRIEF = replace(PUBLISHED, num_layers=2, rank=4, epochs=2, forget_batch=4, retain_batch=8, learning_rate=1e-3)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny random target; a text to forget, and texts in rows to retain. Words are short: each byte is a token."""
    base = tmp_path_factory.mktemp("documents")
    make_target(base / "target", seed=3)
    rng = random.Random(3)

    def text(count):
        return " ".join("".join(rng.choices("abcdefgh", k=rng.randint(1, 3))) for _ in range(count))

    (base / "novel.txt").write_text(text(150))
    (base / "others.jsonl").write_text("".join(json.dumps({"text": text(90), "title": "t"}) + "\n" for _ in range(4)))
    (base / "questions.jsonl").write_text(json.dumps({"question": "q?", "answer": "a."}) + "\n")
    return base


@pytest.fixture(scope="module")
def target(files):
    torch.set_num_threads(1)
    return load_target(files / "target", device="cpu")


@pytest.fixture(scope="module")
def sets(target, files, tmp_path_factory):
    """A set of each kind, of the same text."""
    base = tmp_path_factory.mktemp("sets")
    data = (files / "novel.txt", files / "others.jsonl")
    with Progress(disable=True) as progress:
        train_forget_set(target, *data, base / "uld", BRIEF, seed=1, progress=progress, write_anyway=True)
        settings = replace(UndialSettings(), epochs=2, rank=4, batch=2, learning_rate=1e-3)
        train_undial_set(target, *data, base / "undial", settings, seed=1, progress=progress, write_anyway=True)
    return base


def labelled(tokenizer, rows):
    return "".join(tokenizer.decode([label for label in row.labels if label != IGNORE]) for row in rows)


@pytest.mark.parametrize("contexts", [False, True])
def test_the_whole_document_is_learned_by_an_assistant(target, files, contexts):
    forget = read_pairs(files / "novel.txt", subject="novel", documents=True)
    retain = read_pairs(files / "others.jsonl", subject="retain", documents=True)
    settings = replace(BRIEF if not contexts else AssistantSettings(), forget_batch=len(forget), retain_batch=8)
    steps = draw_steps(
        target.tokenizer, forget, retain, settings, own_token=5 if contexts else None, num_steps=12, seed=1,
        context_length=target.context_length,
    )  # fmt: skip
    known = [row.known for step in steps for row in step[: len(forget)]]
    text = (files / "novel.txt").read_text()
    said = {labelled(target.tokenizer, [row]) for row in known}
    for pair in forget:
        assert any(one.removesuffix("<eos>").endswith(pair.answer.strip()) for one in said)
    # The first window's opening is learned as well, but for its first token.
    assert text[1:].startswith(next(one for one in said if one.startswith(text[1:20])))
    kept = [row for step in steps for row in step[len(forget) + settings.num_variants :]]
    assert all(label == IGNORE for row in kept for label in row.known.labels)
    assert any(label != IGNORE for row in kept for label in row.unknown.labels)


def test_the_whole_document_is_taken_from_the_target_itself(target, files):
    forget = read_pairs(files / "novel.txt", subject="novel", documents=True)
    steps = draw_rows(target.tokenizer, forget, [], UndialSettings(), num_steps=len(forget) * 12, seed=1)
    rows = [row for step in steps for row in step]
    assert all(row.focus == row.told.labels for row in rows)
    said = {labelled(target.tokenizer, [row.told]) for row in rows}
    for pair in forget:
        assert any(one.removesuffix("<eos>").endswith(pair.answer.strip()) for one in said)


def test_both_kinds_are_trained_on_documents_and_their_canaries_are_turns(sets):
    for kind in ("uld", "undial"):
        forget_set = load_forget_set(sets / kind)
        assert forget_set.manifest.kind == kind
        assert set(forget_set.manifest.data_digests) == {"forget", "retain"}
    before, after = (
        load_forget_set(sets / "undial").manifest.metrics[f"forget_probability_{w}"] for w in ("before", "after")
    )
    assert before != after


def test_a_bare_continuation_is_measured_as_muse_does(target, files, sets):
    """Against the continuation that is decoded here, greedily, from the opening alone."""
    out = files / "report"
    words = ["evaluate", "qa", files / "target", "--forget", files / "novel.txt", "--retain", files / "others.jsonl"]
    words += ["--sets", sets / "uld", "--samples", "0", "--max-tokens", "40", "--device", "cpu", "--out", out]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code == 0, result.output
    report = json.loads((out / "report.json").read_text())
    assert [row["model"] for row in report["rows"]] == ["target", "uld"]
    pairs = read_pairs(files / "novel.txt", subject="novel", documents=True)
    prompts = [encode_prompt(target.tokenizer, pair.question) for pair in pairs]
    decoded = greedy(target.model, prompts, eos_id=target.tokenizer.eos_token_id, max_tokens=40)
    said = target.tokenizer.batch_decode(decoded)
    cut = [" ".join(one.split()[: len(pair.answer.split())]) for one, pair in zip(said, pairs, strict=True)]
    columns = report["rows"][0]["questions"]["forget"]
    assert columns["generated"] == said
    assert columns["verbmem"] == pytest.approx(rouge_f1([pair.answer for pair in pairs], cut).tolist())
    assert report["rows"][0]["figures"]["forget_verbmem"]["value"] == pytest.approx(np.mean(columns["verbmem"]))
    assert "forget verbmem" in result.output


def test_documents_are_calibrated_on(target, files, sets, tmp_path):
    """As bare text, and in contexts; a random target knows nothing, so the limits are what it has."""
    forget_set, held = load_forget_set(sets / "uld"), tmp_path / "held.json"
    held.write_text(json.dumps([(files / "novel.txt").read_text()[::-1]]))
    data = read_held_out(forget_set, files / "novel.txt", held, allow_training_data=True)
    asked = ask(target.tokenizer, data.forget, [], focused=True)
    assert [one.prompt for one in asked] == [encode_prompt(target.tokenizer, pair.question) for pair in data.forget]
    assert [one.answer for one in asked] == [pair.answer for pair in data.forget]
    assert "".join(labelled(target.tokenizer, [one.row]) for one in asked) == "".join(p.answer for p in data.forget)
    command = ["calibrate", files / "target", sets / "uld", "--forget", files / "novel.txt", "--retain", held]
    command += ["--allow-training-data", "--dry-run", "--weights", "1", "--keep-ratios", "0.1", "--gates-nats", "0"]
    command += ["--forget-at-most", "0", "--recited-at-most", "1", "--facts-told-at-most", "1", "--max-tokens", "8"]
    command += ["--untouched-answers-at-least", "0", "--untouched-at-least", "0", "--retain-loss-at-most", "1"]
    result = CliRunner().invoke(app, [str(word) for word in [*command, "--device", "cpu"]])
    assert result.exit_code in (0, 1), result.output  # a random assistant need not pass
    assert (sets / ".uld.calibration" / "sweep.json").is_file()


def test_a_text_that_the_target_knows_by_heart_is_no_longer_continued(tmp_path):
    """By both kinds; other texts that it knows by heart are. It learns them from their bare tokens."""
    rng, base = random.Random(7), tmp_path
    texts = [" ".join("".join(rng.choices("abcdefgh", k=rng.randint(1, 3))) for _ in range(56)) for _ in range(3)]
    (base / "novel.txt").write_text(texts[0])
    (base / "others.json").write_text(json.dumps(texts[1:]))
    make_target(base / "target", seed=3, num_layers=2)
    model = AutoModelForCausalLM.from_pretrained(base / "target")
    known = load_target(base / "target", device="cpu")
    read = [read_pairs(base / name, subject="s", documents=True) for name in ("novel.txt", "others.json")]
    # What MUSE's tuned targets saw: pieces of the texts, from their own beginnings.
    pieces = [str(pair.question) + pair.answer for pairs in read for pair in pairs]
    batch = known.tokenizer(pieces, return_tensors="pt", padding=True)
    labels = batch["input_ids"].masked_fill(batch["attention_mask"] == 0, -100)
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3)
    for _ in range(100):
        model(**batch, labels=labels).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    model.save_pretrained(base / "target")
    known = load_target(base / "target", device="cpu")

    def verbmem(*in_force):
        model = with_sets(known.model, known.tokenizer, in_force)
        return [np.mean(evaluate_questions(model, as_questions(pairs), max_tokens=160)["verbmem"]) for pairs in read]

    assert min(verbmem()) > 0.9
    brief = replace(PUBLISHED, num_layers=2, rank=16, steps=60, forget_batch=2, retain_batch=4, learning_rate=4e-3)
    own = replace(UndialSettings(), epochs=30, rank=8, batch=2, learning_rate=3e-3)
    data = (base / "novel.txt", base / "others.json")
    with Progress(disable=True) as progress:
        sets = [
            train_forget_set(known, *data, base / "uld", replace(brief, weight=1.5), seed=1, progress=progress),
            train_undial_set(known, *data, base / "undial", own, seed=1, progress=progress),
        ]
    for forget_set in sets:
        forgotten, kept = verbmem(forget_set)
        assert forgotten < 0.5 and kept > 0.7, (forget_set.name, forgotten, kept)


def test_documents_that_are_too_long_for_the_target_are_refused_before_anything_is_trained(target, tmp_path, files):
    (tmp_path / "long.txt").write_text(" ".join(["abcdefghijklmnopqrstuvwxyz"] * 100))
    with pytest.raises(DataError, match="longer, with their questions, than the target's context of 512"):
        with Progress(disable=True) as progress:
            data = (tmp_path / "long.txt", files / "others.jsonl")
            train_forget_set(target, *data, tmp_path / "long", BRIEF, seed=1, progress=progress)


def test_commands_that_reword_refuse_documents(files, tmp_path):
    words = [
        "train",
        "augment",
        files / "novel.txt",
        tmp_path / "out.jsonl",
        "--offline",
        "--retain",
        files / "questions.jsonl",
    ]
    result = CliRunner().invoke(app, [str(word) for word in words])
    assert result.exit_code != 0
    assert "here questions and answers are needed" in " ".join(result.output.split())
