"""A request carried out on the demo's target, from the command line: asked, trained, measured, in force, purged."""

import errno
import json
import re
import shutil

import pytest
from typer.testing import CliRunner

from unlearngate.artefact import load_forget_set
from unlearngate.assistant_training.demo.build import BUILT
from unlearngate.assistant_training.demo.probing import read_probes
from unlearngate.assistant_training.forget.case import Case
from unlearngate.cli import app

NAME = "Oona Bracewell"


@pytest.fixture(scope="module")
def letter(tmp_path_factory):
    """What the demo's target learned about somebody, as a text."""
    answers = [p.answer for p in read_probes(BUILT / "probes.jsonl") if NAME in p.question]
    path = tmp_path_factory.mktemp("request") / "letter.md"
    path.write_text(f"# About {NAME}\n\n" + "\n\n".join(answers))
    return path


@pytest.fixture(autouse=True)
def cache(tmp_path, monkeypatch):
    """Where a target's everyday answers are kept."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "unlearngate" / "everyday"


def run(*words):
    result = CliRunner().invoke(app, ["forget", *map(str, words)])
    return result.exit_code, " ".join(result.output.split())


def test_a_letter_becomes_a_set_in_force_and_its_words_are_gone_after_a_purge(tmp_path, letter, cache):
    sets, case = tmp_path / "sets", tmp_path / ".oona.case"
    given = [letter, "--target", BUILT / "target", "--name", "oona", "--sets", sets, "--steps", 2, "--subjects", 2]
    code, output = run(*given, "--budget", "1s")
    assert code == 2 and "of the budget of 1 s training may take 0" in output
    log = case / ".oona.training" / "log.jsonl"
    assert len(log.read_text().splitlines()) == 1  # one step, and the next run goes on
    code, output = run(*given)
    assert len(log.read_text().splitlines()) == 2
    assert code == 2 and "at least" in output, output  # two steps forget nothing
    assert [path.name for path in sets.iterdir()] == ["oona-text"]  # but the letter's words are withheld
    withheld = load_forget_set(sets / "oona-text")
    assert withheld.manifest.kind == "verbatim" and withheld.manifest.metrics["letters"] > 100
    asked = json.loads((case / "case.json").read_text())["done"]["asked"]
    assert asked["forget"] >= 3 and asked["forget_held_out"] > 1 and asked["retain"] > 50, asked
    (kept,) = cache.iterdir()  # everyday answers, for the next request
    assert len(json.loads(kept.read_text())) > 90 and kept.stat().st_mode & 0o777 == 0o600
    before = {path.name: path.stat().st_mtime_ns for path in case.glob("*.jsonl")}

    code, output = run(*given, "--write-anyway")
    assert code == 0, output
    assert before == {path.name: path.stat().st_mtime_ns for path in case.glob("*.jsonl")}  # nothing is asked twice
    forget_set = load_forget_set(sets / "oona")
    assert forget_set.reference in output and "It does not pass" in output
    assert load_forget_set(sets / "oona-text").digest == withheld.digest and withheld.reference in output
    forget = (case / "forget.jsonl").read_text()
    report = (case / "report.md").read_text()
    assert NAME in forget and "Not covered" in report and "sets remove oona " in report and "SENTENCE" not in report
    assert re.search(r"which they are, and how often \| .+ \(\d+\) \|", report), report

    code, output = run(*given)  # it is in force, and the command does not say otherwise
    assert code == 0 and "does not pass, and is in force" in output, output
    assert load_forget_set(sets / "oona").digest == forget_set.digest

    (tmp_path / "other.txt").write_text(f"{NAME} is not this letter. " * 5)
    code, output = run(tmp_path / "other.txt", *given[1:], "--case", tmp_path / "another", "--write-anyway")
    assert code == 2 and "is there already, and not by this request" in output, output
    assert load_forget_set(sets / "oona").digest == forget_set.digest

    shutil.rmtree(sets / "oona-text")  # lifted by hand: the same command puts it back
    assert run(*given, "--write-anyway")[0] == 0
    assert load_forget_set(sets / "oona-text").digest == withheld.digest

    # The same letter in another case: its words are withheld already.
    code, output = run(*given, "--case", tmp_path / "second", "--name", "oona")
    assert code == 2 and "oona: is there already, and not by this request" in output, output
    shutil.rmtree(sets / "oona")
    code, output = run(*given, "--case", tmp_path / "second", "--budget", "1s")
    assert code == 2 and "larger --budget goes on" in output, output
    assert load_forget_set(sets / "oona-text").digest == withheld.digest
    code, output = run(*given)  # lifted by hand: it does not pass, and is not put back
    report = (case / "report.md").read_text()
    assert code == 1 and "the set is not in force" in output and "`--instead SENTENCE`" in report
    assert "sets remove oona-text" in report and "sets remove oona " not in report
    assert run(*given, "--write-anyway")[0] == 0

    code, output = run("--purge", case)
    assert code == 0 and "are deleted" in output
    assert [path.name for path in case.iterdir()] == ["case.json"] and "Oona" not in (case / "case.json").read_text()
    assert load_forget_set(sets / "oona").digest == forget_set.digest


def test_a_set_that_a_budget_cut_short_goes_on_within_a_larger_one(tmp_path, letter):
    sets, case = tmp_path / "sets", tmp_path / ".oona.case"
    given = [letter, "--target", BUILT / "target", "--name", "oona", "--sets", sets, "--steps", 3, "--subjects", 2]
    code, output = run(*given, "--budget", "1s", "--write-anyway")
    assert code == 0, output
    shutil.rmtree(sets / "oona")  # lifted, for it does not pass
    first = json.loads((case / "case.json").read_text())["done"]
    assert first["trained"]["cut"] and first["measured"]
    code, output = run(*given, "--budget", "2s", "--write-anyway")
    assert code == 0 and "of the budget of 2 s training may take" in output, output  # and no longer
    log = (case / ".oona.training" / "log.jsonl").read_text().splitlines()
    assert [json.loads(line)["step"] for line in log] == [1, 2]
    assert load_forget_set(sets / "oona").digest != first["trained"]["digest"]


def test_ctrl_c_or_a_full_disk_at_any_step_leaves_nothing_half_and_the_same_command_goes_on(
    tmp_path, letter, monkeypatch
):
    """Each step is stopped once, when it is done and not yet noted; what it made is gone on with, or made again."""
    sets, case = tmp_path / "sets", tmp_path / ".oona.case"
    given = [letter, "--target", BUILT / "target", "--name", "oona", "--sets", sets, "--steps", 2, "--subjects", 2]
    stopped, record = [], Case.record

    def stops_once(self, step, result):
        if step not in stopped:
            stopped.append(step)
            raise KeyboardInterrupt if len(stopped) % 2 else OSError(errno.ENOSPC, "No space left on device")
        record(self, step, result)

    monkeypatch.setattr(Case, "record", stops_once)
    for number in range(1, 20):
        code, output = run(*given, "--write-anyway")
        for path in sets.iterdir() if sets.exists() else ():
            load_forget_set(path)  # whole, or not there
        if code == 0:
            break
        assert len(stopped) == number, output
        assert code == (130 if number % 2 else 2) and "the same command goes on" in output, output
        assert ("interrupted. In" if number % 2 else "the disk is full") in output, output
        is_there = "oona-text" if "withheld" in stopped[:-1] else "nothing of this request"
        assert is_there in output, output
    assert stopped == ["withheld", "seconds", "asked", "training", "trained", "measured", "in_force"]
    assert {path.name for path in sets.iterdir()} == {"oona", "oona-text"}
    assert set(json.loads((case / "case.json").read_text())["done"]) == set(stopped)


def test_a_request_that_cannot_be_carried_out_is_a_sentence(tmp_path, letter):
    target = shutil.copytree(BUILT / "target", tmp_path / "target")
    unknown = tmp_path / "unknown.txt"
    unknown.write_text("Qwortz Blimfeld of Zanthip. Qwortz Blimfeld of Zanthip owns Vrexholm in Zanthip and Vrexholm.")
    given = ["--target", target, "--name", "x", "--sets", tmp_path / "sets", "--letters", 0]
    for words, sentence in (
        ([unknown, *given], "nothing to forget: asked"),
        (given, "nothing is asked for"),
        ([letter, "--name", "x"], "give --target FOLDER and --name NAME"),
        ([letter, *given, "--case", tmp_path / "target"], "is not empty and no case"),
        ([letter, *given, "--name", "Oona B"], "cannot name a forget set"),
        ([letter, *given, "--name", "retain"], "cannot name a forget set"),
        ([letter, *given, "--budget", "soon"], "is no time: write 90s, 10m or 1h"),
        (["--purge", tmp_path], "is no case of `unlearngate forget`"),
    ):
        code, output = run(*words)
        assert code == 2 and sentence in output, output
    assert not (tmp_path / "sets").exists()
