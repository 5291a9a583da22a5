"""`unlearngate evaluate`, in process, on tiny random targets: the same numbers as from the parts."""

import json
import random

import numpy as np
import pytest
import torch
from rich.progress import Progress
from typer.testing import CliRunner

from support.engine.tiny import make_forget_set, make_target
from unlearngate.assistant_training.data.tofu import Benchmark, Question
from unlearngate.assistant_training.evaluate.memorization import member_auc
from unlearngate.assistant_training.evaluate.metrics import forget_quality
from unlearngate.assistant_training.evaluate.qa import answer_columns, evaluate_questions
from unlearngate.assistant_training.evaluate.run import Evaluation, combinations, evaluate_models, find_sets
from unlearngate.assistant_training.evaluate.tofu import evaluate
from unlearngate.assistant_training.model.loaded_sets import with_sets
from unlearngate.assistant_training.model.loaded_target import load_target
from unlearngate.commands.evaluate import app
from unlearngate.errors import ArtefactError, UnlearngateError

WORDS = "amber birch cedar delta ember fjord grove heath inlet jetty".split()


def make_questions(rng, count, *, num_wrong=2):
    def words():
        return " ".join(rng.sample(WORDS, rng.randint(2, 4)))

    return [
        Question(f"{i} {words()}?", words(), words(), tuple(words() for _ in range(num_wrong))) for i in range(count)
    ]


@pytest.fixture(scope="module")
def base(tmp_path_factory):
    """A target, a retain model, sets a and b of the target, and one of another."""
    torch.set_num_threads(1)
    base = tmp_path_factory.mktemp("evaluation")
    target, _ = make_target(base / "target", seed=5, num_layers=2), make_target(base / "retain", seed=6, num_layers=2)
    for seed, name in enumerate(["a", "b"]):
        make_forget_set(base / "sets" / name, target, seed=seed, num_layers=1, scale=0.3)
    make_forget_set(base / "foreign", base / "retain", seed=9, num_layers=1)
    return base


@pytest.fixture(scope="module")
def target(base):
    return load_target(base / "target", device="cpu")


@pytest.fixture(scope="module")
def sets(base, target):
    return find_sets([base / "sets"], target.identity)


@pytest.fixture
def rng(seed):
    return random.Random(seed)


def run(target, sets, chosen, evaluation, retain_model=None):
    with Progress(disable=True) as progress:
        return evaluate_models(target, sets, chosen, evaluation, retain_model=retain_model, progress=progress)


def test_tofus_rows_are_what_its_parts_say(base, target, sets, rng):
    benchmark = Benchmark(*(make_questions(rng, count) for count in (5, 4, 3, 3)), learned=[])
    holdout = make_questions(rng, 4, num_wrong=0)
    retain_model = load_target(base / "retain", device="cpu")
    evaluation = Evaluation(benchmark, holdout, modes=("scoring", "sampling"), num_samples=2, max_tokens=6)
    rows = run(target, sets, [("a", "b")], evaluation, retain_model)
    assert [(row.model, row.mode) for row in rows] == [
        *(("retain model", "scoring"), ("target", "scoring")),
        *(("a+b", "scoring"), ("a+b", "sampling")),
    ]
    assert rows[0].figures["forget_quality"].value == 1.0
    for row in rows[2:]:
        model = with_sets(target.model, target.tokenizer, [sets["a"], sets["b"]])
        expected = evaluate(model, benchmark, mode=row.mode, max_tokens=6)
        for name, figures in expected.items():
            assert row.questions[name]["probability"] == pytest.approx(figures.probability)
            assert row.questions[name]["generated"] == figures.generated
        ratios = (expected["forget"].truth_ratio, rows[0].questions["forget"]["truth_ratio"])
        assert row.figures["forget_quality"].value == pytest.approx(forget_quality(*ratios).p_value)
        others = answer_columns(model, holdout, mode=row.mode)["loss_score"]
        assert row.figures["mia_loss"].value == pytest.approx(member_auc(expected["forget"].loss_score, others))
        assert [entry["name"] for entry in row.in_force] == ["a", "b"]
        assert np.shape(row.questions["forget"]["sampled_rouge"]) == (5, 2)
    assert rows[2].questions["forget"]["sampled_rouge"] == rows[3].questions["forget"]["sampled_rouge"]
    assert 0.0 in rows[3].questions["forget"]["probability"]  # a token that is not kept


def test_ones_own_questions_are_measured_as_tofus_are(target, sets, rng):
    questions = make_questions(rng, 6)
    model = with_sets(target.model, target.tokenizer, [sets["a"]])
    benchmark = Benchmark(questions, questions[:1], questions[:1], questions[:1], learned=[])
    for mode in ("scoring", "sampling"):
        expected = evaluate(model, benchmark, mode=mode, max_tokens=6)["forget"]
        columns = evaluate_questions(model, questions, mode=mode, max_tokens=6, batch_size=4)
        for name in sorted(columns.keys() - {"question", "answer", "generated"}):
            assert columns[name] == pytest.approx(getattr(expected, name).tolist()), name
        assert columns["generated"] == expected.generated


def test_only_questions_with_wrong_answers_have_a_truth_ratio(target, rng):
    questions = [*make_questions(rng, 2), *make_questions(rng, 2, num_wrong=0)]
    model = with_sets(target.model, target.tokenizer, [])
    ratios = evaluate_questions(model, questions, max_tokens=4)["truth_ratio"]
    assert [ratio is None for ratio in ratios] == [False, False, True, True]
    assert "truth_ratio" not in evaluate_questions(model, questions[2:], max_tokens=4)


def test_a_set_that_never_acts_leaves_every_answer_unchanged(target, sets, rng):
    asked = {"forget": make_questions(rng, 3), "retain": make_questions(rng, 3)}
    closed = sets["a"].manifest.recommended.model_copy(update={"gate_nats": 50.0})
    still = sets["a"]._replace(manifest=sets["a"].manifest.model_copy(update={"recommended": closed}))
    rows = run(
        target, {"a": sets["a"], "still": still}, [("still",), ("a",)], Evaluation(asked, num_samples=0, max_tokens=6)
    )
    plain, unmoved, moved = (row.figures for row in rows)
    assert unmoved["retain_unchanged"].value == unmoved["retain_untouched_positions"].value == 1.0
    assert moved["retain_unchanged"].value < 1.0 > moved["retain_untouched_positions"].value
    same = plain.keys() & unmoved.keys()
    assert {name: plain[name] for name in same} == {name: unmoved[name] for name in same}


def test_combinations_are_as_asked_or_every_set_alone():
    assert combinations([], ["a", "b"]) == [("a",), ("b",)]
    assert combinations(["a+b", "b", "a+b"], ["a", "b"]) == [("a", "b"), ("b",)]
    for wrong, message in (("a+zoe", "no forget set 'zoe'; there are: a, b"), ("a+a", "names a set twice"), ("", "''")):
        with pytest.raises(UnlearngateError, match=message):
            combinations([wrong], ["a", "b"])


def test_sets_are_verified_and_ambiguity_is_refused(base, target):
    assert list(find_sets([base / "sets" / "b", base / "sets" / "a"], target.identity)) == ["b", "a"]
    with pytest.raises(ArtefactError):
        find_sets([base / "foreign"], target.identity)
    with pytest.raises(UnlearngateError, match="both called a"):
        find_sets([base / "sets", base / "sets" / "a"], target.identity)
    with pytest.raises(UnlearngateError, match="is no forget set"):
        find_sets([base / "target"], target.identity)


def test_the_command_writes_a_report_and_says_what_is_wrong(base, rng, tmp_path):
    for name, count in (("forget", 3), ("retain", 2)):
        lines = [json.dumps({"question": q.question, "answer": q.answer}) for q in make_questions(rng, count)]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = ["--forget", str(tmp_path / "forget.jsonl"), "--retain", str(tmp_path / "retain.jsonl")]
    common = [*files, "--max-tokens", "4", "--samples", "1", "--device", "cpu", "--out", str(tmp_path / "out")]
    done = CliRunner().invoke(app, ["qa", str(base / "target"), *common, "--sets", str(base / "sets"), "--with", "a+b"])
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["model"] for row in report["rows"]] == ["target", "a+b"]
    assert "| forget rouge |" in done.output
    cut = "forget: 3 of 3 answers are longer than --max-tokens 4"  # a byte is a token
    assert cut in done.output and any(note.startswith(cut) for note in report["notes"])
    assert cut in (tmp_path / "out" / "report.md").read_text()
    for arguments, message in (
        ([], "give a TARGET folder"),
        ([str(base / "target"), "--with", "a"], "no forget set 'a'"),
        ([str(base / "target"), "--server", "http://127.0.0.1:9", "--model", "m"], "takes no TARGET"),
        (["--server", "http://127.0.0.1:9"], "needs --model"),
    ):
        failed = CliRunner().invoke(app, ["qa", *arguments, *common])
        assert failed.exit_code == 2
        assert message in failed.output
