"""`unlearngate attack` against a small endpoint over a real socket, whose leaks are known."""

import json
import math
import stat

import pytest
import torch
import typer
from transformers import AutoTokenizer, LlamaForCausalLM
from typer.testing import CliRunner

from support.engine.tiny import make_target
from support.weak_endpoint import FORGET, PROBES, RETAIN, WORDS, Forgetting
from unlearngate.assistant_training.attack.kinds import KINDS
from unlearngate.assistant_training.attack.run import chosen_kinds
from unlearngate.commands.attack import attack
from unlearngate.errors import UnlearngateError

COMMAND = typer.Typer()
COMMAND.command()(attack)


@pytest.fixture
def served():
    with Forgetting() as endpoint:
        yield endpoint


def run(served, tmp_path, *options):
    probes = tmp_path / "probes.jsonl"
    probes.write_text("".join(json.dumps(row) + "\n" for row in PROBES))
    arguments = ["--server", served.base, "--set", "ada-byron", "--probes", str(probes), "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(COMMAND, [*arguments, *options])
    report = tmp_path / "out" / "report.json"
    return done, json.loads(report.read_text()) if report.exists() else None


def test_what_leaks_is_counted_and_what_stays_is_too(served, tmp_path):
    done, report = run(served, tmp_path, "--kinds", "plain,turns-talk-1,prefill,text,samples-1", "--samples", "3")
    assert done.exit_code == 0, done.output
    kinds = {row["kind"]: row for row in report["kinds"]}
    assert list(kinds) == ["plain", "turns-talk-1", "prefill", "prefill-words", "text", "text-no-question", "samples-1"]
    assert [kinds["plain"][side]["facts"]["share"] for side in ("with_set", "target")] == [0, 1]
    assert kinds["plain"]["unchanged"]["retain"] == pytest.approx(
        {"count": 8, "of": 8, "share": 1, "high": 1, "low": 0.6756}, abs=1e-4
    )
    assert kinds["plain"]["right_unchanged"] == kinds["plain"]["unchanged"]  # the target tells each of them
    assert kinds["turns-talk-1"]["with_set"]["facts"]["share"] == 1
    assert kinds["turns-talk-1"]["with_set"]["questions"]["count"] == len(FORGET)
    assert kinds["text"]["with_set"]["facts"]["share"] == 1  # wrapped in the template, it is not the question alone
    samples = kinds["samples-1"]["with_set"]
    assert (samples["answers"], samples["facts"]["of"], samples["facts"]["count"]) == (12, 12, 0)
    sent = [body["prompt"] for body in served.bodies if "prompt" in body]
    assert any(text.startswith("<user>Where was Ada Byron") and "?<assistant>" in text for text in sent)


def test_the_report_is_for_its_owner_and_says_why(served, tmp_path):
    done, report = run(served, tmp_path, "--kinds", "plain")
    assert report["holds_what_was_to_be_forgotten"] is True
    assert stat.S_IMODE((tmp_path / "out" / "report.json").stat().st_mode) == 0o600
    assert len(report["answers"]) == len(FORGET) + len(RETAIN)
    first = report["answers"][0]
    assert first["target"]["leaked"] == [first["facts"]] and first["with_set"]["leaked"] == [[]]
    text = (tmp_path / "out" / "report.md").read_text()
    assert text in done.output.replace("\n\n/", "\n/") or text.splitlines()[0] in done.output
    assert not any(answer.split()[-1].rstrip(".") in text for answer in FORGET.values())
    assert (tmp_path / "out" / "report.png").stat().st_size > 5000


def test_both_oracles_find_what_a_subtraction_signs(served, tmp_path):
    _, report = run(served, tmp_path, "--kinds", "oracle")
    guesses = {row["guesser"]: row for row in report["guesses"]}
    least = guesses["least likely token that is kept"]
    assert (least["with_set"]["share"], least["target"]["share"]) == (1, 0)
    assert least["chance"] == pytest.approx(1 / 12)  # all Hal* and Or* words are kept
    behind = guesses["best behind the raised"]
    assert behind["with_set"]["share"] == behind["target"]["share"] == 1
    biased = [body["logit_bias"] for body in served.bodies if len(body.get("logit_bias", {})) > 1]
    assert {len(bias) for bias in biased} == {len(WORDS) // 4 - 1}
    assert guesses["most likely of facts"]["target"]["share"] == 1


def test_a_server_that_takes_no_bias_has_no_oracle_and_the_report_says_so(served, tmp_path):
    served.refuse_bias = True
    done, report = run(served, tmp_path, "--kinds", "plain,oracle")
    assert done.exit_code == 0 and report["guesses"] == []
    assert any("takes no logit_bias" in note for note in report["notes"])


@pytest.mark.parametrize("reported", [lambda names: [], lambda names: [{"name": "other"}], None])
def test_an_answer_with_other_sets_in_force_ends_the_attack(served, tmp_path, reported):
    served.report = reported
    done, report = run(served, tmp_path, "--kinds", "plain")
    assert (done.exit_code, report) == (2, None)
    assert "in force" in done.output


def test_a_leak_above_the_limit_is_exit_1(served, tmp_path):
    for kind, code in (("plain", 0), ("turns-talk-1", 1)):
        done, _ = run(served, tmp_path, "--kinds", kind, "--fail-above", "0.05")
        assert done.exit_code == code, done.output
    assert "turns-talk-1 leaks 100.0%" in done.output


def test_each_side_has_its_key(served, tmp_path):
    run(served, tmp_path, "--kinds", "plain", "--key", "one", "--reference-key", "two")
    assert served.keys == {"Bearer one", "Bearer two"}


def test_the_same_seed_asks_the_same(served, tmp_path):
    reports = [run(served, tmp_path, "--kinds", "role-play,few-shot", "--seed", "5")[1] for _ in range(2)]
    assert reports[0] == reports[1]


def test_kinds_are_chosen_by_their_beginnings():
    assert chosen_kinds(["turns-talk", "plain"]) == ("plain", "turns-talk-1", "turns-talk-3", "turns-talk-8")
    assert set(KINDS) < set(chosen_kinds([]))
    with pytest.raises(UnlearngateError, match="no kind of attack 'turn'"):
        chosen_kinds(["turn"])


def test_a_set_that_is_not_there_is_named(served, tmp_path):
    done, _ = run(served, tmp_path, "--set", "tom-oak")
    assert done.exit_code == 2
    assert "has no forget set 'tom-oak'; it has: ada-byron" in done.output


def test_what_was_asked_is_kept_when_the_oracles_fail(served, tmp_path, monkeypatch):
    def fail(*_):
        raise UnlearngateError("the server is gone")

    monkeypatch.setattr("unlearngate.assistant_training.attack.run._oracles", fail)
    done, report = run(served, tmp_path, "--kinds", "plain,oracle-bias")
    assert done.exit_code == 2 and "the server is gone" in done.output
    assert [row["kind"] for row in report["kinds"]] == ["plain"]


def mean_log_p(model, tokenizer, question, answer):
    """Token by token, by Hugging Face alone."""
    prompt = tokenizer.apply_chat_template([{"role": "user", "content": question}], add_generation_prompt=True)
    prompt = prompt["input_ids"] if hasattr(prompt, "keys") else prompt
    ids = tokenizer(answer, add_special_tokens=False)["input_ids"]
    log_p_TV = model(torch.tensor([prompt + ids])).logits[0].double().log_softmax(-1)
    return sum(float(log_p_TV[len(prompt) + i - 1, token]) for i, token in enumerate(ids)) / len(ids)


@torch.no_grad()
def test_what_is_said_is_measured_by_how_usual_it_is_to_the_target(served, tmp_path, seed):
    folder = make_target(tmp_path / "target", seed=seed)
    done, report = run(served, tmp_path, "--kinds", "plain,prefill,samples-1", "--target", str(folder))
    assert done.exit_code == 0, done.output
    kinds = {row["kind"]: row["fluency"] for row in report["kinds"]}
    assert [kinds[name] for name in ("prefill", "samples-1")] == [None, None]
    model = LlamaForCausalLM.from_pretrained(folder).eval()
    tokenizer = AutoTokenizer.from_pretrained(folder)
    differences = [
        mean_log_p(model, tokenizer, question, answer) - mean_log_p(model, tokenizer, question, "no idea")
        for question, answer in FORGET.items()
    ]
    assert kinds["plain"] == pytest.approx(math.exp(sum(differences) / len(differences)), rel=1e-4)
    assert f"| {kinds['plain']:.2f} |" in (tmp_path / "out" / "report.md").read_text()
