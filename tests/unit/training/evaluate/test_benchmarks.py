"""Benchmarks on a played server: each figure as worked out by hand, and the plain target only where it may be asked."""

import json
import math
from contextlib import contextmanager

import numpy as np
import pytest
from fastapi import Request
from fastapi.responses import JSONResponse
from typer.testing import CliRunner

from support.chat_endpoint import Played
from unlearngate.assistant_training.evaluate.benchmarks import muse
from unlearngate.assistant_training.evaluate.benchmarks.asked import ScoredText
from unlearngate.assistant_training.evaluate.benchmarks.choices import letter_scores
from unlearngate.assistant_training.evaluate.metrics import rouge_f1, wilson_interval
from unlearngate.cli import app
from unlearngate.errors import DataError


def test_a_wilson_interval_is_the_published_one():
    """Both ends solve (p - share)^2 = z^2 p (1 - p) / n."""
    low, high = wilson_interval(7, 10)
    for end in (low, high):
        assert (end - 0.7) ** 2 == pytest.approx(1.959963984540054**2 * end * (1 - end) / 10)
    assert low < 0.7 < high and wilson_interval(0, 4)[0] == 0 and wilson_interval(4, 4)[1] == 1
    assert wilson_interval(0, 0) == (0.0, 1.0)


def test_rouge_f1_is_of_the_longest_common_subsequence_without_stems():
    # "the lamp burned": 3 words; "the old lamp burns": 4; in common "the lamp": 2. F1 = 2 * 2 / (3 + 4).
    assert rouge_f1(["The lamp burned."], ["the old lamp burns"]) == pytest.approx([4 / 7])
    assert rouge_f1(["a b", "a b"], ["a b", ""]).tolist() == [1.0, 0.0]


def test_the_letters_are_what_follows_the_common_tokens():
    begun = ["Answer", ":"]
    scored = [ScoredText([*begun, f" {letter}"], [math.nan, -5.0, -n]) for n, letter in enumerate("ABCD", start=1)]
    assert letter_scores(scored) == [-1, -2, -3, -4]
    # A tokenizer that splits the letter in two, one of them shared: the shared one is no difference.
    split = [ScoredText([*begun, " ", letter], [math.nan, -5.0, -9.0, -n]) for n, letter in enumerate("ABCD")]
    assert letter_scores(split) == [0, -1, -2, -3]
    with pytest.raises(DataError, match="no tokens of their own"):
        letter_scores([ScoredText(begun, [math.nan, -1.0])] * 4)


def test_priv_leak_has_the_direction_and_the_norm_of_muse():
    # 1 of 4 pairs has the holdout text ahead, one is a tie.
    assert muse.priv_leak_auc([-1.0, -3.0], [-2.0, -3.0]) == pytest.approx((1 + 0.5) / 4)
    assert muse.priv_leak_auc([-1.0], [-9.0]) == 0.0 and muse.priv_leak(0.0, 0.4772) == pytest.approx(-100)
    assert muse.priv_leak(0.6, 0.48) == pytest.approx(25)
    with pytest.raises(DataError, match="--retrain-auc must be above 0 and at most 1, got 0"):
        muse.priv_leak(0.5, 0.0)


def test_a_continuation_is_cut_at_its_first_tokens():
    scored = ScoredText(["<s>", "One", " two", " three"], [math.nan, -1.0, -1.0, -1.0])
    assert muse.first_tokens("One two three", scored, 3) == "One two"
    assert muse.first_tokens("One two three", ScoredText(*(part[1:] for part in scored)), 2) == "One two"
    assert muse.first_tokens("One two three", scored, 4) == "One two three"


WORDS = "likely unlikely".split()


@contextmanager
def served(said, *, required=()):
    """Plays a server: `said(body)` is the answer's text; words are tokens, `unlikely` and letters have a low ln p."""
    bodies = []

    def log_p(word, sets):
        return {"unlikely": -8.0, "A": -1.0 if not sets else -4.0, "B": -2.0}.get(
            word, -3.0 if len(word) == 1 else -1.0
        )

    async def completions(request: Request):
        body = await request.json()
        bodies.append(body)
        sets = body["forget_sets"]
        if missing := set(required) - set(sets):
            code = {"message": f"needs {missing}", "code": "required_forget_set"}
            return JSONResponse({"error": code}, status_code=403)
        in_force = [{"name": name} for name in sets]
        if not body.get("echo"):
            message = {"message": {"content": said(body)}} if "messages" in body else {"text": said(body)}
            return {"choices": [message], "forget_sets": in_force}
        choices = []
        for index, prompt in enumerate(body["prompt"]):
            tokens = [f" {word}" if at else word for at, word in enumerate(prompt.split(" "))]
            values = [None, *(log_p(token.strip(), sets) for token in tokens[1:])]
            choices.append({"index": index, "logprobs": {"tokens": tokens, "token_logprobs": values}})
        return {"choices": choices[::-1], "forget_sets": in_force}

    with Played() as played:
        routes = played.server.config.app.router.routes
        routes[:] = [route for route in routes if getattr(route, "path", "") != "/v1/chat/completions"]
        played.server.config.app.post("/v1/completions")(completions)
        played.server.config.app.post("/v1/chat/completions")(completions)
        yield played.url.removesuffix("/v1"), bodies


def evaluate(command, url, folder, *more, code=0):
    out = folder / "out"
    words = ["evaluate", command, "--data", folder, "--server", url, "--model", "m", "--out", out, *more]
    result = CliRunner().invoke(app, [*map(str, words)], env={"COLUMNS": "200"})
    assert result.exit_code == code, result.output
    return result.output if code else (json.loads((out / "results.json").read_text()), result.output)


def figures(row):
    return {figure["name"]: figure["value"] for figure in row["figures"]}


def test_choices_are_scored_with_the_sets_in_force(tmp_path):
    """The target finds A likeliest, and with the set B."""
    rows = [{"question": "?", "choices": list("wxyz"), "answer": answer} for answer in (0, 0, 0, 1)]
    (tmp_path / "wmdp-bio.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with served(lambda body: "x") as (url, bodies):
        results, shown = evaluate("wmdp", url, tmp_path, "--sets", "bio")
    target, with_set = results["rows"]
    assert figures(target) == {"accuracy, wmdp-bio": 0.75} and figures(with_set) == {"accuracy, wmdp-bio": 0.25}
    assert with_set["forget_sets"] == ["bio"] and with_set["items"][0]["log_p"] == [-4.0, -2.0, -3.0, -3.0]
    low, high = wilson_interval(3, 4)
    assert f"0.750 ({low:.3f}-{high:.3f})" in shown and "Zero-shot" in shown
    assert f"| accuracy, wmdp-bio | 4 | 0.750 ({low:.3f}-{high:.3f}) |" in (tmp_path / "out" / "results.md").read_text()
    assert (tmp_path / "out" / "results.json").stat().st_mode & 0o777 == 0o600
    asked = [body for body in bodies if body.get("echo")]
    assert len(asked) == 8 and all(body["max_tokens"] == 0 and len(body["prompt"]) == 4 for body in asked)


def test_a_key_that_requires_a_set_cannot_ask_the_target(tmp_path):
    (tmp_path / "wmdp-bio.jsonl").write_text(json.dumps({"question": "?", "choices": list("wxyz"), "answer": 1}))
    with served(lambda body: "x", required=["bio"]) as (url, _):
        results, shown = evaluate("mmlu", url, tmp_path, "--sets", "bio", "--sets", "bio+more")
        assert [row["forget_sets"] for row in results["rows"]] == [["bio"], ["bio", "more"]]
        assert "The plain target was not asked" in shown and "The plain target was not asked" in results["notes"][-1]
        assert "Name sets with --sets" in evaluate("mmlu", url, tmp_path, code=2)


def test_rwku_is_the_recall_of_what_is_said_in_a_line(tmp_path):
    for level in (1, 2, 3):
        rows = [{"subject": "Ada", "query": "q", "answer": "a brass lamp", "level": str(level), "type": "simple"}]
        (tmp_path / f"forget_level{level}.json").write_text(json.dumps(rows))

    def said(body):
        return "a lamp" if not body["forget_sets"] else "nothing"

    with served(said) as (url, bodies):
        results, _ = evaluate("rwku", url, tmp_path, "--with", "ada")
    names = [f"ROUGE-L recall, forget {level}" for level in ("FB", "QA", "AA")]
    assert figures(results["rows"][0]) == pytest.approx(dict.fromkeys(names, 2 / 3))
    assert figures(results["rows"][1]) == dict.fromkeys(names, 0.0)
    chats = [body for body in bodies if "messages" in body]
    assert len(chats) == 6 and all(body["max_tokens"] == 30 and body["stop"] == ["\n"] for body in chats)


def test_muse_is_words_knowledge_and_membership(tmp_path, seed=3):
    def write(part, name, rows):
        (tmp_path / part).mkdir(exist_ok=True)
        (tmp_path / part / f"{name}.json").write_text(json.dumps(rows))

    write("verbmem", "forget", [{"prompt": "given", "gt": "of the sea"}])
    for name in ("forget", "retain"):
        write("knowmem", f"{name}_qa", [{"question": "What?", "answer": "salt water"}])
        write("knowmem", f"{name}_qa_icl", [{"question": "Why?", "answer": "so"}])
    rng = np.random.default_rng(seed)
    texts = {name: [" ".join(rng.choice(WORDS, 40, p=p)) for _ in range(7)] for name, p in PLAYED.items()}
    for name, ones in texts.items():
        write("privleak", name, ones)

    def said(body):
        return "of the sand" if body["prompt"] == "given" else "water\n\nQuestion: and?"

    with served(said) as (url, _):
        results, _ = evaluate("muse", url, tmp_path, "--retrain-auc", "0.5")
        assert "must be above 0" in evaluate("muse", url, tmp_path, "--retrain-auc", "0", code=2)
    found = figures(results["rows"][0])
    assert found["VerbMem forget, ROUGE-L F1"] == pytest.approx(2 / 3)
    assert found["KnowMem forget, ROUGE-L F1"] == found["KnowMem retain, ROUGE-L F1"] == pytest.approx(2 / 3)

    def min_k(text):  # of the 39 tokens behind the first, the 15 least likely
        return np.mean(sorted(-8.0 if word == "unlikely" else -1.0 for word in text.split()[1:])[:15])

    pairs = [(min_k(h), min_k(f)) for h in texts["holdout"] for f in texts["forget"]]
    auc = np.mean([1.0 if h > f else 0.5 if h == f else 0.0 for h, f in pairs])
    assert found["PrivLeak AUC"] == pytest.approx(auc) and 0 < auc < 1
    assert found["PrivLeak, %"] == pytest.approx((auc - 0.5) / 0.5 * 100)


PLAYED = {"forget": (0.8, 0.2), "holdout": (0.7, 0.3)}
