"""A prompt's log-probabilities from the served demo: those that offline scoring has, in every form of asking."""

import json
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch

from support.clients.question import ANSWER, FORGET, PROMPT, QUESTION
from support.demo import gauge, probes

pytestmark = pytest.mark.e2e

TEXT = PROMPT + ANSWER
SETS = ["none", FORGET, f"{FORGET}+oona-bracewell"]


@pytest.fixture
def complete(demo_server):
    def complete(sets="none", status=200, path="completions", **body):
        sent = {"model": "demo", "temperature": 0, "forget_sets": [] if sets == "none" else sets.split("+"), **body}
        response = demo_server.post(f"/v1/{path}", sent)
        assert response.status_code == status, response.text
        return response

    return complete


def echoed(choice, num_tokens):
    """The log-probabilities of the first tokens, of which the very first has none."""
    first, *others = choice["logprobs"]["token_logprobs"][:num_tokens]
    assert first is None
    return others


def close(served, expected):
    return served == pytest.approx(expected, abs=1e-3)


@pytest.mark.parametrize("sets", SETS)
def test_an_echoed_prompt_has_the_log_probabilities_of_offline_scoring(complete, offline, target, sets):
    """As lm-eval asks: token ids, several prompts at a time, and one token beyond."""
    asked = [f"<|user|>{p.question}<|end|><|assistant|>{p.answer}" for p in probes()[::11]]
    ids = [target.tokenizer(text).input_ids for text in asked]
    answer = complete(sets, prompt=ids, max_tokens=1, logprobs=1, echo=True, seed=1234).json()
    assert answer["prompt_logprobs_mode"] == "scoring"
    assert [s["name"] for s in answer["forget_sets"]] == ([] if sets == "none" else sorted(sets.split("+")))
    choices = sorted(answer["choices"], key=lambda choice: choice["index"])
    for choice, tokens, expected in zip(choices, ids, offline(asked, sets), strict=True):
        assert len(choice["logprobs"]["token_logprobs"]) == len(tokens) + 1
        served = echoed(choice, len(tokens))
        assert close(served, expected)
        for own, top in zip(served, choice["logprobs"]["top_logprobs"][1:], strict=False):
            assert own in top.values() and len(top) <= 2


def test_the_forgotten_answer_is_unlikely_with_the_set_and_finite(complete, target):
    before, ids = len(target.tokenizer(PROMPT).input_ids), target.tokenizer(TEXT).input_ids

    def of_answer(sets):
        (choice,) = complete(sets, prompt=ids, max_tokens=0, logprobs=0, echo=True).json()["choices"]
        return sum(echoed(choice, len(ids))[before - 1 :])

    plain, forgetting = of_answer("none"), of_answer(FORGET)
    assert plain > -5
    assert -5000 < forgetting < plain - 20


def test_every_form_of_asking_has_the_same_numbers(complete, offline, target):
    (expected,), ids = offline([TEXT], FORGET), target.tokenizer(TEXT).input_ids
    alone = complete(FORGET, prompt=TEXT, max_tokens=0, logprobs=0, echo=True)
    assert alone.headers["x-prompt-logprobs-mode"] == "scoring"
    (choice,) = alone.json()["choices"]
    assert choice["text"] == TEXT and len(choice["logprobs"]["tokens"]) == len(ids)
    assert close(echoed(choice, len(ids)), expected)
    several = complete(FORGET, prompt=[ids, ids], max_tokens=2, logprobs=3, echo=True, n=2, temperature=1).json()
    assert len(several["choices"]) == 4
    assert all(close(echoed(choice, len(ids)), expected) for choice in several["choices"])
    by_field = complete(FORGET, prompt=TEXT, max_tokens=1, prompt_logprobs=2).json()
    first, *positions = by_field["choices"][0]["prompt_logprobs"]
    assert first is None and by_field["choices"][0]["logprobs"] is None
    assert close([p[str(t)]["logprob"] for p, t in zip(positions, ids[1:], strict=True)], expected)


def test_a_stream_begins_with_the_prompt(complete, offline, target):
    (expected,), ids = offline([TEXT], FORGET), target.tokenizer(TEXT).input_ids
    several = {"max_tokens": 3, "n": 3, "temperature": 1}  # whose outputs the server may read together, or not
    for more in ({"max_tokens": 0}, {"max_tokens": 3}, *[several] * 10):
        response = complete(FORGET, prompt=TEXT, logprobs=1, echo=True, stream=True, **more)
        assert response.headers["x-prompt-logprobs-mode"] == "scoring"
        events = [json.loads(line[6:]) for line in response.text.split("\n") if line.startswith("data: {")]
        assert [event["error"] for event in events if "error" in event] == []
        for index in range(more.get("n", 1)):
            chunks = [c for event in events for c in event["choices"] if c["index"] == index]
            served = [p for chunk in chunks for p in (chunk["logprobs"] or {}).get("token_logprobs", [])]
            assert served[0] is None and close(served[1 : len(ids)], expected)
            assert "".join(chunk["text"] for chunk in chunks).startswith(TEXT)


def test_chat_has_those_of_its_template(complete, offline, target):
    (expected,), ids = offline([PROMPT], FORGET), target.tokenizer(PROMPT).input_ids
    messages = [{"role": "user", "content": QUESTION}]
    for asked in ({"prompt_logprobs": 0}, {"echo": True}):
        answer = complete(FORGET, path="chat/completions", messages=messages, max_tokens=2, **asked).json()
        first, *positions = answer["prompt_logprobs"]
        assert first is None and answer["prompt_logprobs_mode"] == "scoring"
        assert close([p[str(t)]["logprob"] for p, t in zip(positions, ids[1:], strict=True)], expected)


def test_an_answer_to_who_did_not_ask_has_no_mode(complete):
    for response in (complete(prompt="hi", max_tokens=1, echo=True), complete(prompt="hi", max_tokens=1, logprobs=1)):
        assert "prompt_logprobs_mode" not in response.json()
        assert "x-prompt-logprobs-mode" not in response.headers


def test_what_is_sampled_beside_scored_prompts_stays_as_it_was(complete, target):
    """In steps with parts of prompts that are scored, for which the head makes other logits too."""

    def answer():
        return complete(FORGET, prompt=PROMPT, max_tokens=48, logprobs=1).json()["choices"][0]["logprobs"]

    alone = answer()
    long = {"prompt": [target.tokenizer(TEXT).input_ids * 20] * 4, "max_tokens": 1, "logprobs": 1, "echo": True}
    with ThreadPoolExecutor(1) as pool:
        scored = pool.submit(complete, "oona-bracewell", **long)
        beside = [answer() for _ in range(3)]
        assert len(scored.result().json()["choices"]) == 4
    for one in beside:
        assert one["tokens"] == alone["tokens"] and close(one["token_logprobs"], alone["token_logprobs"])


def test_positions_of_a_prompt_are_no_tokens_of_the_answer(complete, demo_server, target):
    """Neither usage, nor the counts of open gates, nor the audit count them."""
    name = "unlearngate_gate_tokens_total"
    before = gauge(demo_server, name)
    usage = complete(FORGET, prompt=TEXT, max_tokens=1, logprobs=1, echo=True).json()["usage"]
    assert (usage["prompt_tokens"], usage["completion_tokens"]) == (len(target.tokenizer(TEXT).input_ids), 1)
    assert gauge(demo_server, name) - before == 1


@pytest.mark.parametrize(
    "asked, message",
    [
        ({"prompt_logprobs": 21}, "21"),
        ({"prompt_logprobs": -1}, "1536"),
        ({"prompt_logprobs": 1, "stream": True}, "stream"),
        ({"prompt_logprobs": "x"}, "prompt_logprobs"),
        ({"logprobs": 21, "echo": True}, "21"),
    ],
    ids=str,
)
def test_what_vllm_does_not_serve_is_a_400_with_the_reason(complete, asked, message):
    error = complete(FORGET, status=400, prompt=TEXT, max_tokens=1, **asked).json()["error"]
    assert message in error["message"]


def test_scores_of_a_batch_are_those_of_each_prompt_alone(complete, target, seed):
    rng = torch.Generator().manual_seed(seed)
    prompts = [torch.randint(10, 1000, (int(n),), generator=rng).tolist() for n in (1, 2, 17, 300)]
    together = complete(FORGET, prompt=prompts, max_tokens=0, logprobs=0, echo=True).json()["choices"]
    for prompt, choice in zip(prompts, together, strict=True):
        (alone,) = complete(FORGET, prompt=prompt, max_tokens=0, logprobs=0, echo=True).json()["choices"]
        assert close(echoed(choice, len(prompt)), echoed(alone, len(prompt))), f"seed {seed}"
