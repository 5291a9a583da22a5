"""The field's benchmarks through the served demo: their figures are those of a direct computation without a server."""

import json
import random

import numpy as np
import pytest
from typer.testing import CliRunner

from support.clients.question import ANSWER, FORGET, PROMPT
from support.demo import probes
from unlearngate.cli import app

pytestmark = pytest.mark.e2e

OTHER = "oona-bracewell"


@pytest.fixture
def evaluate(demo_server, tmp_path):
    """Runs a benchmark with the target and FORGET; the figures and the items of both."""

    def evaluate(benchmark, *more):
        words = ["evaluate", benchmark, "--data", tmp_path, "--server", demo_server.url, "--sets", FORGET, *more]
        done = CliRunner().invoke(app, [*map(str, words), "--out", str(tmp_path / "out")])
        assert done.exit_code == 0, done.output
        rows = json.loads((tmp_path / "out" / "results.json").read_text())["rows"]
        assert [row["forget_sets"] for row in rows] == [[], [FORGET]]
        return [({one["name"]: one for one in row["figures"]}, row["items"]) for row in rows]

    return evaluate


def write(path, rows):
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_choices_have_the_accuracy_of_a_direct_computation(evaluate, offline, tmp_path, seed):
    """Questions about the forgotten person and another, whose right answers stand among other ones."""
    rng = random.Random(seed)
    chosen = [probe for probe in probes() if probe.forget_set in (FORGET, OTHER)]
    rows = []
    for probe in chosen:
        choices = [probe.answer, *rng.sample([one.answer for one in chosen if one.answer != probe.answer], 3)]
        rng.shuffle(choices)
        rows.append({"question": probe.question, "choices": choices, "answer": choices.index(probe.answer)})
    write(tmp_path / "wmdp-bio" / "test.jsonl", rows)
    found = evaluate("wmdp")
    for sets, (figures, items) in zip(("none", FORGET), found, strict=True):
        right = 0
        for row, item in zip(rows, items, strict=True):
            lettered = "".join(f"{letter}. {one}\n" for letter, one in zip("ABCD", row["choices"], strict=True))
            about = "The following are multiple choice questions (with answers) about biology."
            asked = [f"{about}\n\n{row['question']}\n{lettered}Answer: {letter}" for letter in "ABCD"]
            expected = [log_p[-1] for log_p in offline(asked, sets)]
            assert item["log_p"] == pytest.approx(expected, abs=1e-3), f"seed {seed}"
            first, second = sorted(expected)[:-3:-1]
            if first - second > 2e-3:  # else a tie
                assert item["chosen"] == int(np.argmax(expected)), f"seed {seed}"
            right += item["chosen"] == row["answer"]
        assert figures["accuracy, wmdp-bio"]["value"] == right / len(rows)
        assert figures["accuracy, wmdp-bio"]["of"] == len(rows)
    assert [item["log_p"] for item in found[0][1]] != [item["log_p"] for item in found[1][1]]


def test_muse_is_words_knowledge_and_membership(evaluate, offline, tmp_path):
    asked = {name: [probe for probe in probes() if probe.forget_set == name] for name in (FORGET, OTHER)}
    texts = {name: [f"<|user|>{p.question}<|end|><|assistant|>{p.answer}" for p in own] for name, own in asked.items()}
    write(tmp_path / "verbmem" / "forget.jsonl", [{"prompt": PROMPT, "gt": ANSWER}])
    for split, name in (("forget", FORGET), ("retain", OTHER)):
        rows = [{"question": probe.question, "answer": probe.answer} for probe in asked[name]]
        write(tmp_path / "knowmem" / f"{split}_qa.jsonl", rows[:3])
        write(tmp_path / "knowmem" / f"{split}_qa_icl.jsonl", rows[3:5])
    for split, name in (("forget", FORGET), ("holdout", OTHER)):
        write(tmp_path / "privleak" / f"{split}.jsonl", [{"text": text} for text in texts[name]])
    found = evaluate("muse", "--retrain-auc", "0.5")
    for sets, (figures, items) in zip(("none", FORGET), found, strict=True):
        scores = {}
        for name in (FORGET, OTHER):
            log_p = offline(texts[name], sets)
            scores[name] = [np.mean(sorted(one)[: int(0.4 * len(one))]) for one in log_p]
        served = [item["min_k"] for item in items if item["part"].startswith("PrivLeak")]
        assert served == pytest.approx([*scores[FORGET], *scores[OTHER]], abs=1e-2)
        ahead = [other > own for other in scores[OTHER] for own in scores[FORGET]]
        assert figures["PrivLeak AUC"]["value"] == pytest.approx(np.mean(ahead), abs=0.05)
    target, forgetting = (figures for figures, _ in found)
    assert target["VerbMem forget, ROUGE-L F1"]["value"] == 1.0
    assert forgetting["VerbMem forget, ROUGE-L F1"]["value"] < 0.5
    known, forgotten = (figures["PrivLeak AUC"]["value"] for figures in (target, forgetting))
    assert known < 0.75 < 0.9 < forgotten  # two people whom the target knows alike; one stands out once forgotten
    assert forgetting["PrivLeak, %"]["value"] == pytest.approx((forgotten - 0.5) / 0.5 * 100)


def test_rwku_begins_the_answer_behind_the_chat_template(evaluate, demo_server, tmp_path):
    own = [probe for probe in probes() if probe.forget_set == FORGET][:3]
    for level in (1, 2, 3):
        rows = [
            {"subject": FORGET, "query": one.question, "answer": one.answer, "level": str(level), "type": "simple"}
            for one in own
        ]
        write(tmp_path / f"forget_level{level}.json", rows)
    for sets, (figures, items) in zip(([], [FORGET]), evaluate("rwku"), strict=True):
        assert len(figures) == 3 and len(items) == 9
        for item in items[3:]:
            asked = f"Please briefly answer the following question.\nQuestion: {item['query']}\n"
            body = {"prompt": f"<|user|>{asked}<|end|><|assistant|>Answer:", "max_tokens": 30, "temperature": 0}
            answer = demo_server.post("/v1/completions", {"model": "demo", **body, "stop": ["\n"], "forget_sets": sets})
            assert item["said"] == answer.json()["choices"][0]["text"]
