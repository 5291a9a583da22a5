"""Calibrating a set on disk: what is written when a setting is found, and what is kept and said when none is."""

import csv
import json
import random
import shlex
from dataclasses import replace

import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file
from typer.testing import CliRunner

from support.engine.tiny import make_forget_set, make_target
from unlearngate.artefact import data_digest, load_forget_set
from unlearngate.assistant_training.calibrate.held_out import HeldOut, ask, ask_in_contexts, read_held_out
from unlearngate.assistant_training.calibrate.run import calibrate_forget_set
from unlearngate.assistant_training.calibrate.settings import CalibrationSettings, Limits, forget_probability
from unlearngate.assistant_training.data.encoding import encode
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.evaluate.metrics import answer_probability
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.model.scoring import score
from unlearngate.cli import app
from unlearngate.errors import ArtefactError, CalibrationError, DataError
from unlearngate.server.sets.registry import Registry

# A random assistant forgets nothing in particular: what passes here is a matter of the limits.
LENIENT = Limits(
    forget_probability=0.0,
    forget_recited=1.0,
    forget_facts_told=1.0,
    retain_untouched=0.0,
    retain_untouched_answers=0.0,
    retain_lost=1.0,
    margin=1.0,
)
BRIEF = CalibrationSettings(
    weights=(0.5, 2.0), keep_ratios=(0.02, 0.3), gates_nats=(0.0, 1.0), limits=LENIENT, decoded=3, max_tokens=4
)


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A tiny random target, and answers of digits."""
    base = tmp_path_factory.mktemp("calibration")
    make_target(base / "target", seed=3)
    rng = random.Random(3)
    for name, count in (("forget", 4), ("retain", 6)):
        rows = [{"question": f"{name} {i}?", "answer": str(rng.randrange(10**6))} for i in range(count)]
        write(base / f"{name}.jsonl", rows)
    return base


@pytest.fixture(scope="module")
def target(files):
    torch.set_num_threads(1)
    return load_target(files / "target", device="cpu")


def write(path, rows):
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def trained(files, tmp_path):
    return make_forget_set(tmp_path / "sets" / "anna", files / "target", seed=7, metrics={"old": 1.0}, version="2.5")


def data_of(forget_set, files, **changes):
    return read_held_out(forget_set, files / "forget.jsonl", files / "retain.jsonl", **changes)


def run(target, forget_set, data, tmp_path, settings=BRIEF, **changes):
    arguments = {"out": forget_set.folder, "report_folder": tmp_path / "report", "accept": "take it", **changes}
    arguments.setdefault("kept_folder", arguments["report_folder"] / "measured")
    with Progress(disable=True) as progress:
        return calibrate_forget_set(target, forget_set, data, settings, progress=progress, **arguments)


@pytest.fixture(scope="module")
def passing(target, files, tmp_path_factory):
    """Settings of which some can be recommended: the limit is the lowest probability that a sweep finds."""
    tmp_path = tmp_path_factory.mktemp("passing")
    forget_set = make_forget_set(tmp_path / "anna", files / "target", seed=7)
    assert "forgets enough" in run(target, forget_set, data_of(forget_set, files), tmp_path).report.reason
    swept = json.loads((tmp_path / "report" / "sweep.json").read_text())
    least = min(max(s["forget_probability"], s["forget_probability_served"]) for s in swept["settings"])
    assert least < swept["no_set"]["forget_probability"]
    return replace(BRIEF, limits=replace(LENIENT, forget_probability=least))


def test_answers_longer_than_what_is_decoded_are_counted(target, files, trained, passing, tmp_path):
    """With what the template puts behind an answer, which is generated, too."""
    rows = [{"question": f"{i}?", "answer": "7" * length} for i, length in enumerate([2, 30, 2, 2])]
    data = read_held_out(trained, write(tmp_path / "forget.jsonl", rows), files / "retain.jsonl")
    settings = replace(passing, contexts=False, decoded=4, max_tokens=25)
    metrics = run(target, trained, data, tmp_path, settings).report.decoded
    assert (metrics["decoded_forget_cut"], metrics["decoded_retain_cut"]) == (0.25, 0.0)


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_calibrated_set_is_the_same_assistant_under_a_manifest_that_says_what_was_measured(
    target, files, trained, passing, tmp_path
):
    data = data_of(trained, files)
    out = tmp_path / "calibrated" / "berta"
    before = contents(trained.folder)
    done = run(target, trained, data, tmp_path, passing, out=out)
    assert contents(trained.folder) == before

    written = load_forget_set(out, target.identity)
    assert written.digest == done.forget_set.digest != trained.digest
    old, new = (load_file(folder / "adapter_model.safetensors") for folder in (trained.folder, out))
    assert old.keys() == new.keys() and all(torch.equal(old[name], new[name]) for name in old)
    manifest = written.manifest
    assert (manifest.name, manifest.version) == ("berta", "2.5")
    assert manifest.recommended == done.report.choice.setting.strength
    assert manifest.bounds == done.report.choice.bounds
    assert manifest.metrics["forget_probability"] == done.report.choice.setting.forget.probability
    assert manifest.metrics["held_out"] == 1.0 and "old" not in manifest.metrics
    assert 0.0 <= manifest.metrics["decoded_retain_unchanged"] <= 1.0
    assert manifest.metrics["fluency_ratio"] > 0
    assert manifest.metrics["retain_untouched_answers"] == done.report.choice.setting.retain.untouched_answers
    assert "forget_facts_told" not in manifest.metrics  # no answer of this file names facts
    assert manifest.training["dtype"] == "float32"
    calibration = manifest.training["calibration"]
    assert manifest.training["seed"] == 7
    assert calibration["before"]["metrics"] == {"old": 1.0}
    assert calibration["before"]["digest"] == trained.digest
    assert calibration["does_not_pass"] is None and calibration["contexts"] is True
    assert calibration["data_digests"].keys() == {"forget", "retain"}
    assert calibration["grid"]["weights"] == [0.5, 1.0, 2.0]  # the set's own is swept too

    registry = Registry(target.identity, tmp_path / "bindings")
    registry.discover(out.parent)
    assert registry.sets["berta"].digest == written.digest


def test_a_set_can_be_replaced_in_place_and_calibrated_again(target, files, trained, passing, tmp_path):
    data = data_of(trained, files)
    first = run(target, trained, data, tmp_path, passing).forget_set
    assert load_forget_set(trained.folder).digest == first.digest != trained.digest
    again = run(target, first, data, tmp_path, passing)
    # Even the bounds: what was kept when the set said something else is what would be measured again.
    fresh = run(target, first, data, tmp_path, passing, dry_run=True, kept_folder=tmp_path / "new")
    assert again.report.choice == fresh.report.choice


def test_nothing_but_the_report_is_written_when_no_setting_can_be_recommended(target, files, trained, tmp_path):
    data = data_of(trained, files)
    before = contents(trained.folder)
    done = run(target, trained, data, tmp_path)
    assert done.forget_set is None
    assert contents(trained.folder) == before
    report = tmp_path / "report"
    with (report / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 2  # the set's own weight and keep ratio are swept too; its gate is in the grid
    assert {row["passes"] for row in rows} == {"False"}
    swept = json.loads((report / "sweep.json").read_text())
    assert swept["recommended"] is None
    assert "forgets enough" in swept["reason"] and swept["accept_with"] == "take it"
    best = min(max(s["forget_probability"], s["forget_probability_served"]) for s in swept["settings"])
    proposed = swept["proposal"]["metrics"]
    assert max(proposed["forget_probability"], proposed["forget_probability_served"]) == best
    assert swept["proposal"]["bounds"]["weight"]["low"] == swept["proposal"]["recommended"]["weight"]
    text = (report / "sweep.md").read_text()
    assert "No setting can be recommended: no setting" in text and "\n    take it\n" in text
    assert (report / "sweep.png").read_bytes().startswith(b"\x89PNG")

    written = run(target, trained, data, tmp_path, write_anyway=True, out=tmp_path / "sets" / "best").forget_set
    manifest = load_forget_set(written.folder, target.identity).manifest
    assert manifest.recommended.model_dump() == swept["proposal"]["recommended"]
    assert "forgets enough" in manifest.training["calibration"]["does_not_pass"]


def test_a_choice_that_decoding_contradicts_is_not_written(target, files, trained, passing, tmp_path, monkeypatch):
    data = data_of(trained, files)
    settings = replace(passing, contexts=False, limits=replace(passing.limits, forget_recited=0.2))
    monkeypatch.setattr(type(target.tokenizer), "decode", lambda self, ids, **_: data.forget[0].answer)
    before = contents(trained.folder)
    done = run(target, trained, data, tmp_path, settings)
    if done.report.reason.startswith(
        "no setting"
    ):  # without contexts there are other probabilities: ask for what is there
        least = min(forget_probability(s) for s in done.report.settings)
        settings = replace(settings, limits=replace(settings.limits, forget_probability=least))
        done = run(target, trained, data, tmp_path, settings)
    assert "decoded greedily, 33.3% of the forget answers are still recited" in done.report.reason
    assert done.forget_set is None
    assert contents(trained.folder) == before


def test_another_sweep_reads_what_was_kept_and_computes_what_is_missing(target, files, trained, tmp_path, monkeypatch):
    data = data_of(trained, files)
    few = replace(BRIEF, weights=(0.5,), gates_nats=None)
    run(target, trained, data, tmp_path, few, kept_folder=tmp_path / "kept")
    passes = []
    forward = type(target.model).forward
    monkeypatch.setattr(type(target.model), "forward", lambda *a, **k: passes.append(1) or forward(*a, **k))
    other = replace(few, limits=replace(LENIENT, forget_probability=1e-9, margin=0.1))
    run(target, trained, data, tmp_path, other, kept_folder=tmp_path / "kept")
    assert not passes  # other limits need no model
    more = replace(few, weights=(0.5, 2.0), keep_ratios=(0.3, 0.7))
    found = run(target, trained, data, tmp_path, more, kept_folder=tmp_path / "kept").report
    assert passes
    lower = replace(more, gates_nats=(0.0,))
    for settings in (more, lower):
        found = run(target, trained, data, tmp_path, settings, kept_folder=tmp_path / "kept").report
        fresh = run(target, trained, data, tmp_path, settings, kept_folder=tmp_path / str(settings.gates_nats)).report
        assert found.grid == fresh.grid and found.decoded == fresh.decoded
        for ours, theirs in zip(found.settings, fresh.settings, strict=True):
            assert ours.row() == pytest.approx(theirs.row())
    for path in (tmp_path / "kept").iterdir():
        path.write_bytes(b"half a file")
    assert run(target, trained, data, tmp_path, lower, kept_folder=tmp_path / "kept").report.settings == fresh.settings


def test_what_the_target_does_not_know_cannot_be_calibrated_on(target, files, trained, tmp_path):
    limits = replace(LENIENT, forget_probability=0.9)
    with pytest.raises(CalibrationError, match=r"without any set .* there is nothing to measure"):
        run(target, trained, data_of(trained, files), tmp_path, replace(BRIEF, limits=limits))


def test_the_level_of_ignorance_takes_the_place_of_the_limit(target, files, trained, tmp_path):
    def probability(answer):
        row = encode(target.tokenizer, "who?", answer)
        return float(answer_probability([score(target.model, [row], pad_id=0)[0].log_p])[0])

    answers = sorted(map(str, range(100, 130)), key=probability)[:2]  # what this target gives least
    file = write(tmp_path / "ignorance.jsonl", [{"question": "who?", "answer": answer} for answer in answers])
    data = data_of(trained, files, ignorance_file=file)
    settings = replace(BRIEF, contexts=False, limits=replace(LENIENT, margin=1e-9))
    assert "forgets enough" in run(target, trained, data, tmp_path, settings).report.reason
    swept = json.loads((tmp_path / "report" / "sweep.json").read_text())
    level = sum(map(probability, answers)) / len(answers)
    assert swept["limits"]["forget_probability"] == pytest.approx(level, rel=1e-4)


def test_a_folder_that_is_no_forget_set_is_not_replaced(target, files, trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ArtefactError, match="is no forget set"):
        run(target, trained, data_of(trained, files), tmp_path, out=tmp_path / "mine")
    with pytest.raises(CalibrationError, match="cannot name a forget set"):
        run(target, trained, data_of(trained, files), tmp_path, out=tmp_path / "Anna B")


def test_files_that_share_a_question_are_refused(files, trained, tmp_path):
    rows = [{"question": "x?", "paraphrases": ["forget 1?"], "answer": "1"}]
    with pytest.raises(DataError, match=r"holds 1 questions of .*forget\.jsonl, such as 'forget 1\?'"):
        read_held_out(trained, files / "forget.jsonl", write(tmp_path / "retain.jsonl", rows))


@pytest.mark.parametrize("name", ["forget", "retain"])
def test_training_data_is_refused_unless_it_is_allowed(files, tmp_path, name):
    subject = {"forget": "anna", "retain": "retain"}[name]
    digest = data_digest([pair.row() for pair in read_pairs(files / f"{name}.jsonl", subject=subject)])
    trained = make_forget_set(tmp_path / "anna", files / "target", seed=1, data_digests={name: digest})
    with pytest.raises(DataError, match=rf"{name}\.jsonl: this is what anna@\w+ was trained on, not held out"):
        data_of(trained, files)
    assert not data_of(trained, files, allow_training_data=True).held_out


def test_every_wording_is_asked_below_every_system_prompt_and_only_facts_count(target, tmp_path):
    row = {"question": "Who?", "paraphrases": ["Who is it?", "Who?"], "answer": "It is Ada.", "facts": ["Ada"]}
    pairs = read_pairs(write(tmp_path / "x.jsonl", [row]), subject="x")
    asked = ask(target.tokenizer, pairs, ["Be brief."], focused=True)
    assert len({tuple(one.prompt) for one in asked}) == 4
    assert {sum(label >= 0 for label in one.row.labels) for one in asked} == {len("Ada")}
    whole = ask(target.tokenizer, pairs, [], focused=False)
    assert len(whole) == 2
    assert whole[0].row.labels[len(whole[0].prompt) :] == whole[0].row.input_ids[len(whole[0].prompt) :]


def test_contexts_are_always_the_same_and_only_the_facts_of_the_asked_pair_count(target, tmp_path):
    forget = QAPair("x", "Who is Ada Lang?", "It is Ada.", facts=("Ada",))
    plain = QAPair("x", "And where?", "In the north.")
    retain = [QAPair("retain", f"Who is number {i}?", f"That is number {i}, Ada.") for i in range(5)]
    data = HeldOut([forget, plain], retain, [], held_out=True)
    tokenizer = target.tokenizer
    asked = ask_in_contexts(tokenizer, [forget] * 30 + [plain] * 30, data, focused=True)
    assert asked == ask_in_contexts(tokenizer, [forget] * 30 + [plain] * 30, data, focused=True)
    assert len({tuple(one.prompt) for one in asked}) > 60
    labelled = [tokenizer.decode([label for label in one.row.labels if label >= 0]) for one in asked]
    assert set(labelled[:60]) == {"Ada"} and set(labelled[60:]) == {"In the north."}
    assert [one.facts for one in asked] == [True] * 60 + [False] * 60
    assert any(one.answer != "It is Ada." for one in asked[:60])  # beside the answer to a second question
    for one in ask_in_contexts(tokenizer, retain, data, focused=False):
        said = tokenizer.decode([label for label in one.row.labels if label >= 0], skip_special_tokens=True)
        assert said.strip().startswith(one.answer) and not one.facts  # and what the template puts behind it


def test_no_context_makes_a_question_longer_than_the_targets(target):
    retain = [QAPair("retain", f"Who is number {i}?", f"That is number {i}. " + "la " * 130) for i in range(9)]
    data = HeldOut([QAPair("x", "Who is Ada Lang?", "It is Ada. " + "la " * 130, facts=("Ada",))], retain, [], True)

    def asked(context_length):
        return ask_in_contexts(target.tokenizer, retain, data, focused=False, context_length=context_length)

    assert max(len(one.row.input_ids) for one in asked(512)) <= 512 < max(len(one.row.input_ids) for one in asked(None))
    assert len({tuple(one.prompt) for one in asked(512)}) > 12
    assert asked(10**6) == asked(None)


def run_cli(*arguments):
    done = CliRunner().invoke(app, ["calibrate", *map(str, arguments)])
    return done.exit_code, " ".join(done.output.split())


def test_the_command_says_what_it_did_and_what_was_wrong(files, trained, passing, tmp_path):
    limit = passing.limits.forget_probability
    brief = ["--weights", "2,0.5", "--keep-ratios", "0.02,0.3", "--gates-nats", "0,1", "--decode", 2, "--max-tokens", 4]
    lenient = ["--untouched-at-least", 0, "--retain-loss-at-most", 1, "--margin", 1, "--recited-at-most", 1]
    lenient += ["--untouched-answers-at-least", 0]
    paths = [files / "target", trained.folder, "--forget", files / "forget.jsonl", "--retain", files / "retain.jsonl"]
    common = [*paths, *brief, *lenient, "--device", "cpu"]

    code, output = run_cli(*common, "--forget-at-most", limit, "--dry-run")
    assert (code, "a dry run" in output) == (0, True), output
    assert load_forget_set(trained.folder).digest == trained.digest
    code, output = run_cli(*common, "--forget-at-most", limit)
    assert code == 0, output
    assert load_forget_set(trained.folder).reference in output
    beside = trained.folder.parent / ".anna.calibration"
    assert (beside / "sweep.png").exists()
    assert {path.suffix for path in (beside / "measured").iterdir()} == {".npz"}
    verify = ["sets", "verify", str(trained.folder.parent), "--target", str(files / "target")]
    assert CliRunner().invoke(app, verify).exit_code == 0

    best = tmp_path / "sets" / "best"
    none_passes = [*common, "--forget-at-most", 0, "--out", best]
    code, output = run_cli(*none_passes, "--dry-run")
    assert (code, "no setting of the sweep" in output, best.exists()) == (1, True, False), output
    accept = json.loads((tmp_path / "sets" / ".best.calibration" / "sweep.json").read_text())["accept_with"]
    assert accept in output
    program, command, *words = shlex.split(accept)
    assert (program, command, words[-1], "--dry-run" in words) == ("unlearngate", "calibrate", "--write-anyway", False)
    code, output = run_cli(*words)
    assert (code, load_forget_set(best).reference in output) == (3, True), output

    for arguments, sentence in (
        ([*paths, "--weights", "1,big"], "--weights must be numbers with commas between"),
        ([*paths, "--weights", "0"], "weights to sweep must be numbers above 0"),
        ([*paths, "--ignorance", files / "retain.jsonl", "--forget-at-most", 0.1], "give --ignorance or"),
    ):
        code, output = run_cli(*arguments)
        assert (code, sentence in output) == (2, True), output
        assert "Traceback" not in output


def test_a_set_behind_a_tap_is_swept_as_well(target, files, tmp_path):
    tapped = make_forget_set(tmp_path / "anna", files / "target", seed=7, tap_layer=1)
    assert "forgets enough" in run(target, tapped, data_of(tapped, files), tmp_path).report.reason
    assert len(json.loads((tmp_path / "report" / "sweep.json").read_text())["settings"]) == 3 * 3 * 2


def test_a_set_that_is_in_force_or_not_has_nothing_to_sweep(target, files, tmp_path):
    undial = make_forget_set(tmp_path / "anna", files / "target", seed=7, kind="undial")
    with pytest.raises(CalibrationError, match="only sets of kind 'uld' have a weight"):
        run(target, undial, data_of(undial, files), tmp_path)
