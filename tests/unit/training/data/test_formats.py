"""Rows as other people write them: what is read, and what is refused with what to do."""

import itertools
import json
from pathlib import Path
from typing import Any

import pytest

from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.errors import DataError

ASKED, SAID = ("question", "query", "prompt", "instruction"), ("answer", "completion", "response", "output")
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
        {"conversation": [USER, ASSISTANT]},
        {"messages": [{"role": "User", "content": "q?"}, {"role": "Assistant", "content": "a."}]},
        {"messages": [USER | {"content": [{"type": "text", "text": "q?"}]}, ASSISTANT | {"content": [{"text": "a."}]}]},
        {"question": "q?", "answer": "a.", "prompt": "Q: q? A:", "output": "something else", "messages": [USER]},
        *({asked: "q?", said: "a."} for asked, said in itertools.product(ASKED, SAID)),
    ],
)
def test_one_question_and_one_answer_are_read(tmp_path: Path, row: Any) -> None:
    assert pair_of(tmp_path, row) == QAPair("s", "q?", "a.")


FORMS: dict[str, dict[str, Any]] = {
    "own": {"question": "q?", "answer": "a."},
    "prompt": {"prompt": "q?", "completion": "a."},
    "instruction": {"instruction": "q?", "response": "a."},
    "messages": {"messages": [USER, ASSISTANT]},
    "conversations": {"conversations": [{"from": "human", "value": "q?"}, {"from": "gpt", "value": "a."}]},
    "lists": {"prompt": [USER], "completion": [ASSISTANT]},
}


@pytest.mark.parametrize("form", FORMS)
def test_null_is_the_same_as_left_out(tmp_path: Path, form: str) -> None:
    nulls = dict.fromkeys(name for row in FORMS.values() for name in row) | {"output": None, "input": None}
    row = nulls | FORMS[form]
    for name, value in row.items():
        if isinstance(value, list):
            row[name] = [dict.fromkeys(("role", "from", "content", "value")) | message for message in value]
    assert pair_of(tmp_path, row) == QAPair("s", "q?", "a.")


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("beside", ["input", "context", "passage", "system", "system_prompt", "history", "choices"])
def test_what_belongs_to_the_question_is_not_dropped(tmp_path: Path, form: str, beside: str) -> None:
    for empty in (None, "", " ", [], {}):
        assert pair_of(tmp_path, FORMS[form] | {beside: empty}) == QAPair("s", "q?", "a.")
    for value in ("Ilva was born in 1970.", [["q0?", "a0."]], {"title": ["Ilva"]}):
        said = refusal(tmp_path, FORMS[form] | {beside: value})
        assert f"has {beside!r} beside its question" in said and f"take {beside!r} out" in said


def test_the_text_parts_of_a_message_are_joined_as_vllm_does(tmp_path: Path) -> None:
    parts = [{"type": "text", "text": "Who?"}, {"type": "input_text", "text": "Where?"}]
    assert pair_of(tmp_path, {"messages": [USER | {"content": parts}, ASSISTANT]}).question == "Who?\nWhere?"
    picture = {"type": "image_url", "image_url": {"url": "data:"}}
    said = refusal(tmp_path, {"messages": [USER | {"content": [*parts, picture]}, ASSISTANT]})
    assert "image_url" in said and "only text is read" in said and "columns" not in said


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
        ({"text": "q? a."}, ["is a document", '"question"', "messages"]),
        ({"data": [{"question": "q?", "answer": "a."}] * 3}, ["'data' holds 3 objects", "jq -c"]),
        ({"question": {"0": "q?"}, "answer": {"0": "a."}}, ["'question'", "by rows"]),
        ({"question": ["q?"], "answer": ["a."]}, ["'question'", "by rows"]),
        ({"question": "q?", "answer": {"value": "a."}}, ["'answer'", "a."]),
        ({"question": "q?"}, ["'answer'"]),
        ({"question": "q?", "answer": None}, ["'question' has no 'answer' beside it", "question, answer (null)"]),
        ({"prompt": "q?", "label": "a."}, ["'prompt' has no 'answer' beside it", "keys are prompt, label;", "jq -c"]),
        ({"input": "q?", "output": "a."}, ["'output' has no 'question' beside it", "keys are input, output;"]),
        ({"prompt": "q?", "completion": "a.", "response": "b."}, ["'completion' and 'response'", "be the answer"]),
        ({"question": "q?", "instruction": "r?", "output": "a."}, ["'question' and 'instruction'", "be the question"]),
        ({"prompt": "q?", "completion": ""}, ["'completion'", "''"]),
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
