"""Sets of kind undial: the forget answers are lost, the rest and the target stay, and a set can go on from another."""

import json
import math
import random
from dataclasses import replace

import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM

from support.engine.tiny import make_forget_set, make_target
from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.data.encoding import IGNORE, collate, encode
from unlearngate.assistant_training.data.pairs import QAPair
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.model.scoring import score
from unlearngate.assistant_training.train import undial
from unlearngate.assistant_training.train.losses import answer_loss
from unlearngate.assistant_training.train.optimizing import Optimizer
from unlearngate.assistant_training.train.run import run_folder, train_undial_set
from unlearngate.assistant_training.train.run_files import RunFiles
from unlearngate.assistant_training.train.settings import UndialSettings
from unlearngate.assistant_training.train.undial import answer_probability, draw_rows
from unlearngate.errors import TrainingError

FORGET = [QAPair("anna", f"Where is stone {i}?", f"Below bridge {7 * i}.", facts=(f"{7 * i}",)) for i in range(4)]
LATER = [QAPair("carl", f"Who has coin {i}?", f"Baker {3 * i} has it.") for i in range(3)]
RETAIN = [QAPair("bert", f"Who rang bell {i}?", f"Keeper number {5 * i}.") for i in range(6)]
BRIEF = UndialSettings(learning_rate=4e-3, epochs=12, batch=2, varied_prompts=0.3, prompts=3)


def write(path, pairs):
    path.write_text("".join(json.dumps(pair.row()) + "\n" for pair in pairs))


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny target that has learned all three sets, on disk with them."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("undial")
    loaded = load_target(make_target(folder / "target", seed=7), device="cpu")
    model = loaded.model.requires_grad_(True).train()
    optimizer = Optimizer(model.parameters(), learning_rate=3e-3, steps=50)
    rows = [encode(loaded.tokenizer, p.question, p.answer) for p in (*FORGET, *LATER, *RETAIN)]
    for _ in range(50):
        batch = collate(rows, loaded.tokenizer.pad_token_id)
        optimizer.step(answer_loss(model(batch.input_ids, attention_mask=batch.attention_mask).logits, batch.labels))
    model.save_pretrained(folder / "target")
    for name, pairs in (("forget", FORGET), ("later", LATER), ("retain", RETAIN)):
        write(folder / f"{name}.jsonl", pairs)
    return folder


@pytest.fixture(scope="module")
def target(files):
    return load_target(files / "target", device="cpu")


def train(target, files, out, settings=BRIEF, *, forget="forget", retain="retain", **more):
    with Progress(disable=True) as progress:
        return train_undial_set(
            *(target, files / f"{forget}.jsonl", files / f"{retain}.jsonl" if retain else None, out, settings),
            **{"seed": 1, "progress": progress, "checkpoint_every": 3, "write_anyway": True, **more},
        )


def probability(target, forget_set, pairs):
    return answer_probability(with_sets(target.model, target.tokenizer, [forget_set]).target, target.tokenizer, pairs)


def tensors_of(out):
    return load_file(out / "adapter_model.safetensors")


def same_tensors(x, y):
    return x.keys() == y.keys() and all(torch.equal(x[name], y[name]) for name in x)


@pytest.fixture(scope="module")
def whole(target, files, tmp_path_factory):
    """What an uninterrupted run writes."""
    return train(target, files, tmp_path_factory.mktemp("whole") / "anna")


def test_the_answers_are_lost_others_stay_and_the_target_is_as_it_was(target, files, whole):
    known = answer_probability(target.model, target.tokenizer, FORGET)
    assert known > 0.5 and probability(target, whole, FORGET) < known / 3
    others = answer_probability(target.model, target.tokenizer, RETAIN)
    assert probability(target, whole, RETAIN) > 0.8 * others
    on_disk = AutoModelForCausalLM.from_pretrained(files / "target", local_files_only=True).state_dict()
    assert all(torch.equal(weight, on_disk[name]) for name, weight in target.model.state_dict().items())


def test_the_artefact_is_of_kind_undial_and_says_what_was_measured(target, files, whole):
    manifest = load_forget_set(whole.folder, target.identity).manifest
    assert (manifest.kind, manifest.tap_layer, manifest.num_layers, manifest.rank) == ("undial", 0, 4, 8)
    assert manifest.recommended.weight == 1 and manifest.bounds.weight.low == manifest.bounds.weight.high == 1
    assert manifest.training["gamma"] == 10 and manifest.training["after"] is None and manifest.training["steps"] == 24
    metrics = manifest.metrics
    assert metrics["forget_probability_after"] == pytest.approx(probability(target, whole, FORGET), rel=1e-4)
    before = answer_probability(target.model, target.tokenizer, RETAIN)
    assert metrics["retain_probability_before"] == pytest.approx(before, rel=1e-4)
    assert metrics["forget_focus_share"] == 1.0


def test_the_probability_of_an_answer_is_the_geometric_mean_over_its_tokens(target):
    pair = FORGET[1]
    row = encode(target.tokenizer, pair.question, pair.answer)
    with torch.no_grad():
        log_p = target.model(torch.tensor([row.input_ids])).logits[0].log_softmax(dim=-1)
    answer = [i for i, label in enumerate(row.labels) if label != IGNORE]
    expected = math.exp(sum(float(log_p[i - 1, row.input_ids[i]]) for i in answer) / len(answer))
    assert answer_probability(target.model, target.tokenizer, [pair]) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("killed_at", [2, 13])
def test_a_killed_run_goes_on_to_the_same_set(target, files, whole, tmp_path, monkeypatch, killed_at):
    out, log = tmp_path / "anna", RunFiles.log

    def killed(self, row):
        log(self, row)
        if row["step"] == killed_at:
            raise KeyboardInterrupt

    with monkeypatch.context() as patched, pytest.raises(KeyboardInterrupt):
        patched.setattr(RunFiles, "log", killed)
        train(target, files, out)
    assert not out.exists()
    train(target, files, out)
    assert same_tensors(tensors_of(out), tensors_of(whole.folder))
    assert not (run_folder(out) / "checkpoint.pt").exists()


def first_step(target, files, out, settings):
    train(target, files, out, settings)
    rows = [json.loads(line) for line in (run_folder(out) / "log.jsonl").read_text().splitlines()]
    return [rows[0][key] for key in ("loss", "forget", "retain")], tensors_of(out)


@pytest.mark.parametrize("change", [{"accumulate": 3}, {"gradient_checkpointing": True}])
def test_saving_memory_changes_nothing_but_rounding(target, files, tmp_path, change):
    one = replace(BRIEF, epochs=1)
    losses, tensors = first_step(target, files, tmp_path / "a", one)
    other_losses, others = first_step(target, files, tmp_path / "b", replace(one, **change))
    assert other_losses == pytest.approx(losses, rel=1e-5)
    # Adam divides by the gradient's own size: where that is all rounding, a weight may take its step either way.
    far = [(tensor - others[name]).abs() > 2e-4 for name, tensor in tensors.items()]
    assert sum(int(one.sum()) for one in far) <= sum(one.numel() for one in far) / 1000


def test_without_a_retain_file_the_authors_method_runs(target, files, tmp_path):
    forget_set = train(target, files, tmp_path / "anna", replace(BRIEF, epochs=4), retain=None)
    assert set(forget_set.manifest.data_digests) == {"forget"}
    assert set(forget_set.manifest.metrics) == {
        "forget_focus_share",
        "forget_probability_before",
        "forget_probability_after",
    }


def test_with_a_focus_on_facts_the_words_around_them_stay(target, files, tmp_path):
    forget_set = train(target, files, tmp_path / "anna", replace(BRIEF, focus="facts", epochs=20))
    assert 0 < forget_set.manifest.metrics["forget_focus_share"] < 0.5
    student = with_sets(target.model, target.tokenizer, [forget_set]).target
    for pair in FORGET:
        row = encode(target.tokenizer, pair.question, pair.answer)
        (scored,) = score(student, [row], pad_id=0)
        (plain,) = score(target.model, [row], pad_id=0)
        around, fact = (
            slice(0, len(" Below bridge ")),
            slice(len(" Below bridge "), len(f" Below bridge {pair.facts[0]}")),
        )
        assert scored.log_p[fact].sum() < plain.log_p[fact].sum() - 1
        assert scored.log_p[around].mean() > plain.log_p[around].mean() - 0.3


def test_a_set_that_goes_on_from_another_covers_both_requests(target, files, whole, tmp_path):
    both = train(target, files, tmp_path / "both", forget="later", after=whole.folder)
    assert both.manifest.training["after"] == f"anna@{whole.digest}"
    before = both.manifest.metrics["forget_probability_before"]
    assert before == pytest.approx(probability(target, whole, LATER), rel=1e-4)
    assert probability(target, both, LATER) < before / 5
    assert probability(target, both, FORGET) < answer_probability(target.model, target.tokenizer, FORGET) / 5
    assert probability(target, both, RETAIN) > 0.7 * answer_probability(target.model, target.tokenizer, RETAIN)


def test_its_first_teacher_is_the_target_with_the_earlier_set(target, files, whole, tmp_path):
    """With gamma 0 there is nothing to learn: the student starts as its teacher, so the set stays what it was."""
    still = train(target, files, tmp_path / "still", replace(BRIEF, gamma=0.0, epochs=1), after=whole.folder)
    for name, tensor in tensors_of(whole.folder).items():
        assert torch.allclose(tensors_of(still.folder)[name], tensor, atol=2e-2), name
    row = json.loads((run_folder(still.folder) / "log.jsonl").read_text().splitlines()[0])
    assert row["retain"] == pytest.approx(0.0, abs=1e-6)


def test_an_earlier_set_that_does_not_fit_is_refused(target, files, whole, tmp_path):
    with pytest.raises(TrainingError, match="rank 8 and alpha 16 on 28 linear maps"):
        train(target, files, tmp_path / "x", replace(BRIEF, rank=4), after=whole.folder)
    with pytest.raises(TrainingError, match=r"alpha 16 .* would have alpha 8"):
        train(target, files, tmp_path / "x", replace(BRIEF, alpha=8), after=whole.folder)
    make_forget_set(tmp_path / "uld", files / "target", seed=0)
    with pytest.raises(TrainingError, match="kind 'uld'; only 'undial'"):
        train(target, files, tmp_path / "x", after=tmp_path / "uld")


def test_an_epoch_holds_every_pair_once_with_retain_pairs_beside_it(target, seed):
    rng = random.Random(seed)
    settings = replace(BRIEF, batch=rng.randrange(1, 6), varied_prompts=0.0)
    per_epoch = -(-len(FORGET) // settings.batch)
    steps = draw_rows(target.tokenizer, FORGET, RETAIN, settings, num_steps=3 * per_epoch, seed=seed)
    assert len(steps) == 3 * per_epoch
    for start in range(0, len(steps), per_epoch):
        rows = [row for step in steps[start : start + per_epoch] for row in step]
        assert len({tuple(row.told.input_ids) for row in rows if not row.kept}) == len(FORGET)
        assert sum(row.kept for row in rows) == len(FORGET)
        assert all(set(row.focus) == {IGNORE} for row in rows if row.kept)


def test_no_row_is_longer_than_the_context(target, seed):
    settings = replace(BRIEF, batch=3, varied_prompts=1.0)

    def longest(context_length):
        steps = draw_rows(
            *(target.tokenizer, FORGET, RETAIN, settings), num_steps=9, seed=seed, context_length=context_length
        )
        return max(len(row.told.input_ids) for step in steps for row in step)

    plain = max(len(encode(target.tokenizer, pair.question, pair.answer).input_ids) for pair in (*FORGET, *RETAIN))
    assert longest(plain) <= plain < longest(None)


def test_the_step_is_the_loss_of_its_rows(target, seed):
    """Against the losses themselves, on whole batches: parts and cut-off prompts change nothing."""
    settings = replace(BRIEF, accumulate=2, retain_weight=0.7, gamma=3.0, focus="facts")
    (step, *_) = draw_rows(target.tokenizer, FORGET, RETAIN, settings, num_steps=2, seed=seed)
    student = undial.new_assistant(target.model, num_layers=4, rank=2, alpha=4, model_id="tiny").train()
    generator = torch.Generator().manual_seed(seed)
    for name, weight in student.named_parameters():
        if "lora_B" in name:
            weight.data = torch.randn(weight.shape, generator=generator) * 0.1
    found = undial._backward(student, target.model, step, step, 0, settings)
    told, kept = [row for row in step if not row.kept], [row for row in step if row.kept]

    def logits(model, rows):
        batch = collate([row.told for row in rows], 0)
        return model(batch.input_ids, attention_mask=batch.attention_mask).logits, batch.labels

    (mine, labels), (teacher, _) = logits(student, told), logits(target.model, told)
    focus = collate([row.told._replace(labels=row.focus) for row in told], 0).labels != IGNORE
    forget = undial.undial_loss(mine, teacher, labels, gamma=3.0, focus_BT=focus)
    (mine, labels), (teacher, _) = logits(student, kept), logits(target.model, kept)
    retain = undial.retain_kl_loss(mine, teacher, labels)
    total = forget + 0.7 * retain
    expected = {"loss": total.item(), "forget": forget.item(), "retain": retain.item()}
    assert found == pytest.approx(expected, rel=1e-4)
    weights = [weight for weight in student.parameters() if weight.requires_grad]
    gradients = torch.autograd.grad(total, weights)
    for weight, gradient in zip(weights, gradients, strict=True):
        assert torch.allclose(weight.grad, gradient, atol=1e-5 + 1e-3 * float(gradient.abs().max()))
