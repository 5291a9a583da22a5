"""Calibrating a set on disk: what is written when a setting is found, and that nothing is when none is."""

import csv
import json
import random
from dataclasses import replace

import pytest
import torch
from rich.progress import Progress
from safetensors.torch import load_file
from typer.testing import CliRunner

from support.engine.tiny import make_forget_set, make_target
from unlearngate.artefact import data_digest, load_forget_set
from unlearngate.assistant_training.calibrate.held_out import ask, read_held_out
from unlearngate.assistant_training.calibrate.run import calibrate_forget_set
from unlearngate.assistant_training.calibrate.settings import CalibrationSettings, Limits
from unlearngate.assistant_training.data.encoding import encode
from unlearngate.assistant_training.data.pairs import read_pairs
from unlearngate.assistant_training.evaluate.metrics import answer_probability
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.assistant_training.model.scoring import score
from unlearngate.cli import app
from unlearngate.errors import ArtefactError, CalibrationError, DataError
from unlearngate.server.sets.registry import Registry

# A random assistant forgets nothing in particular: what passes here is a matter of the limits.
LENIENT = Limits(forget_probability=0.0, forget_recited=1.0, retain_untouched=0.0, retain_lost=1.0, margin=1.0)
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
    arguments = {"out": forget_set.folder, "report_folder": tmp_path / "report", **changes}
    with Progress(disable=True) as progress:
        return calibrate_forget_set(target, forget_set, data, settings, progress=progress, **arguments)


@pytest.fixture(scope="module")
def passing(target, files, tmp_path_factory):
    """Settings of which some can be recommended: the limit is the lowest probability that a sweep finds."""
    tmp_path = tmp_path_factory.mktemp("passing")
    forget_set = make_forget_set(tmp_path / "anna", files / "target", seed=7)
    with pytest.raises(CalibrationError, match="forgets enough"):
        run(target, forget_set, data_of(forget_set, files), tmp_path)
    swept = json.loads((tmp_path / "report" / "sweep.json").read_text())
    least = min(max(s["forget_probability"], s["forget_probability_served"]) for s in swept["settings"])
    assert least < swept["no_set"]["forget_probability"]
    return replace(BRIEF, limits=replace(LENIENT, forget_probability=least))


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
    assert manifest.recommended == done.choice.setting.strength
    assert manifest.bounds == done.choice.bounds
    assert manifest.metrics["forget_probability"] == done.choice.setting.forget.probability
    assert manifest.metrics["held_out"] == 1.0 and "old" not in manifest.metrics
    assert 0.0 <= manifest.metrics["decoded_retain_unchanged"] <= 1.0
    calibration = manifest.training["calibration"]
    assert manifest.training["seed"] == 7
    assert calibration["before"]["metrics"] == {"old": 1.0}
    assert calibration["before"]["digest"] == trained.digest
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
    assert again.choice == run(target, first, data, tmp_path, passing, dry_run=True).choice


def test_nothing_but_the_report_is_written_when_no_setting_can_be_recommended(target, files, trained, tmp_path):
    data = data_of(trained, files)
    before = contents(trained.folder)
    with pytest.raises(CalibrationError, match=r"no setting .* forgets enough: .* The whole sweep is in"):
        run(target, trained, data, tmp_path)
    assert contents(trained.folder) == before
    report = tmp_path / "report"
    with (report / "sweep.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 3 * 3 * 2  # the set's own weight and keep ratio are swept too; its gate is in the grid
    assert {row["passes"] for row in rows} == {"False"}
    assert json.loads((report / "sweep.json").read_text())["recommended"] is None
    assert "No setting can be recommended." in (report / "sweep.md").read_text()
    assert (report / "sweep.png").read_bytes().startswith(b"\x89PNG")


def test_a_choice_that_decoding_contradicts_is_not_written(target, files, trained, passing, tmp_path, monkeypatch):
    data = data_of(trained, files)
    settings = replace(passing, limits=replace(passing.limits, forget_recited=0.2))
    monkeypatch.setattr(type(target.tokenizer), "decode", lambda self, ids, **_: data.forget[0].answer)
    before = contents(trained.folder)
    with pytest.raises(CalibrationError, match=r"decoded greedily, 33\.3% of the forget answers are still recited"):
        run(target, trained, data, tmp_path, settings)
    assert contents(trained.folder) == before


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
    with pytest.raises(CalibrationError, match="forgets enough"):
        run(target, trained, data, tmp_path, replace(BRIEF, limits=replace(LENIENT, margin=1e-9)))
    swept = json.loads((tmp_path / "report" / "sweep.json").read_text())
    level = sum(map(probability, answers)) / len(answers)
    assert swept["limits"]["forget_probability"] == pytest.approx(level, rel=1e-4)


def test_a_folder_that_is_no_forget_set_is_not_replaced(target, files, trained, tmp_path):
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "letter.txt").write_text("keep me")
    with pytest.raises(ArtefactError, match=r"letter\.txt: does not belong here"):
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


def run_cli(*arguments):
    done = CliRunner().invoke(app, ["calibrate", *map(str, arguments)])
    return done.exit_code, " ".join(done.output.split())


def test_the_command_says_what_it_did_and_what_was_wrong(files, trained, passing, tmp_path):
    limit = passing.limits.forget_probability
    brief = ["--weights", "2,0.5", "--keep-ratios", "0.02,0.3", "--gates-nats", "0,1", "--decode", 2, "--max-tokens", 4]
    lenient = ["--untouched-at-least", 0, "--retain-loss-at-most", 1, "--margin", 1, "--recited-at-most", 1]
    paths = [files / "target", trained.folder, "--forget", files / "forget.jsonl", "--retain", files / "retain.jsonl"]
    common = [*paths, *brief, *lenient, "--device", "cpu"]

    code, output = run_cli(*common, "--forget-at-most", limit, "--dry-run")
    assert (code, "a dry run" in output) == (0, True), output
    assert load_forget_set(trained.folder).digest == trained.digest
    code, output = run_cli(*common, "--forget-at-most", limit)
    assert code == 0, output
    assert load_forget_set(trained.folder).reference in output
    assert (trained.folder.parent / ".anna.calibration" / "sweep.png").exists()
    verify = ["sets", "verify", str(trained.folder.parent), "--target", str(files / "target")]
    assert CliRunner().invoke(app, verify).exit_code == 0

    for arguments, sentence in (
        ([*common, "--forget-at-most", 0], "no setting of the sweep"),
        ([*paths, "--weights", "1,big"], "--weights must be numbers with commas between"),
        ([*paths, "--weights", "0"], "weights to sweep must be numbers above 0"),
        ([*paths, "--ignorance", files / "retain.jsonl", "--forget-at-most", 0.1], "give --ignorance or"),
    ):
        code, output = run_cli(*arguments)
        assert (code, sentence in output) == (2, True), output
        assert "Traceback" not in output


def test_a_set_behind_a_tap_is_swept_as_well(target, files, tmp_path):
    tapped = make_forget_set(tmp_path / "anna", files / "target", seed=7, tap_layer=1)
    with pytest.raises(CalibrationError, match="forgets enough"):
        run(target, tapped, data_of(tapped, files), tmp_path)
    assert len(json.loads((tmp_path / "report" / "sweep.json").read_text())["settings"]) == 3 * 3 * 2


def test_a_set_that_is_in_force_or_not_has_nothing_to_sweep(target, files, tmp_path):
    undial = make_forget_set(tmp_path / "anna", files / "target", seed=7, kind="undial")
    with pytest.raises(CalibrationError, match="only sets of kind 'uld' have a weight"):
        run(target, undial, data_of(undial, files), tmp_path)
