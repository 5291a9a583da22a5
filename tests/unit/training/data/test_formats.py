"""Rows as other people write them: what is read, and what is refused with what to do."""

import json
from pathlib import Path
from typing import Any

import pytest

from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.errors import DataError

USER, ASSISTANT = {"role": "user", "content": "q?"}, {"role": "assistant", "content": "a."}


def pair_of(tmp_path: Path, row: Any) -> QAPair:
    (tmp_path / "x.jsonl").write_text(json.dumps(row) + "\n")
    (pair,) = read_pairs(tmp_path / "x.jsonl", subject="s")
    return pair


def refusal(tmp_path: Path, row: Any) -> str:
    with pytest.raises(DataError, match=r"x\.jsonl: line 1: ") as caught:
        pair_of(tmp_path, row)
    return caught.value.message


@pytest.mark.parametrize(
    "row",
    [
        {"question": "q?", "answer": "a."},
        {"prompt": "q?", "completion": "a."},
        {"prompt": "q?", "completion": " a."},
        {"prompt": "q?", "response": "a."},
        {"instruction": "q?", "output": "a."},
        {"instruction": "q?", "input": "", "output": "a."},
        {"instruction": "q?", "input": None, "output": "a."},
        {"messages": [USER, ASSISTANT]},
        {"messages": [USER, ASSISTANT], "id": 3},
        {"prompt": [USER], "completion": [ASSISTANT]},
        {"conversations": [{"from": "human", "value": "q?"}, {"from": "gpt", "value": "a."}]},
    ],
)
def test_one_question_and_one_answer_are_read(tmp_path: Path, row: Any) -> None:
    assert pair_of(tmp_path, row) == QAPair("s", "q?", "a.")


def test_tofus_and_ulds_own_keys_are_used(tmp_path: Path) -> None:
    tofu = {"paraphrased_question": "p?", "paraphrased_answer": "b.", "perturbed_answer": ["c.", "d."]}
    base = {"question": "q?", "answer": "a."}
    assert pair_of(tmp_path, base | tofu) == QAPair("s", "q?", "a.", ("p?",), ("c.", "d."), (), ("b.",))
    uld = {"paraphrased_questions": ["p?", "r?"], "paraphrased_answers": ["b."], "perturbed_answers": ["c."]}
    assert pair_of(tmp_path, base | uld) == QAPair("s", "q?", "a.", ("p?", "r?"), ("c.",), (), ("b.",))
    both = {"paraphrases": ["p?"], "paraphrased_questions": ["p?", "r?"], "variants": None, "perturbed_answer": "c."}
    assert pair_of(tmp_path, base | both) == QAPair("s", "q?", "a.", ("p?", "r?"), ("c.",))


@pytest.mark.parametrize(
    ("key", "meant"),
    [
        ("paraphrase", "paraphrases"),
        ("Paraphrases", "paraphrases"),
        ("paraphrasedQuestions", "paraphrased_questions"),
        ("question_paraphrases", "paraphrases"),
        ("perturbed_anwsers", "perturbed_answers"),
        ("perturbed", "perturbed_answer"),
        ("varients", "variants"),
        ("fact", "facts"),
        ("droped", "dropped"),
        ("forget-set", "forget_set"),
        ("forget_sets", "forget_set"),
        ("Subject", "subject"),
        ("anwser", "answer"),
        ("Question", "question"),
    ],
)
def test_a_key_that_looks_like_one_of_ours_is_an_error(tmp_path: Path, key: str, meant: str) -> None:
    said = refusal(tmp_path, {"question": "q?", "answer": "a.", key: ["x"]})
    assert f"unknown key {key!r}" in said and f"{meant!r} meant" in said


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"text": "q? a."}, ["its keys are text", '"question"', "messages"]),
        ({"data": [{"question": "q?", "answer": "a."}] * 3}, ["'data' holds 3 objects", "jq -c"]),
        ({"question": {"0": "q?"}, "answer": {"0": "a."}}, ["'question'", "by rows"]),
        ({"question": ["q?"], "answer": ["a."]}, ["'question'", "by rows"]),
        ({"question": "q?"}, ["'answer'"]),
        ({"messages": [{"role": "system", "content": "s"}, USER, ASSISTANT]}, ["system, user, assistant", "one"]),
        ({"messages": [USER, ASSISTANT, USER, ASSISTANT]}, ["user, assistant, user, assistant"]),
        ({"messages": [USER]}, ["of user;"]),
        ({"messages": "q? a."}, ["must be a list of messages"]),
        ({"messages": [USER, {"role": "assistant", "content": None}]}, ["'answer'", "None"]),
        ({"instruction": "q?", "input": "i", "output": "a."}, ["'input'"]),
        ({"prompt": "q?", "chosen": "a.", "rejected": "b."}, ["its keys are prompt, chosen, rejected"]),
        ({"question": "q?", "answer": "a" * 9999, "facts": ["b" * 9999, ""]}, ["'facts'"]),
    ],
)
def test_anything_else_is_refused_with_what_was_seen(tmp_path: Path, row: Any, words: list[str]) -> None:
    said = refusal(tmp_path, row)
    assert all(word in said for word in words), said
    assert len(said) < 500
