"""What a set says instead of answers, on a running server with small caches: sequences are preempted all the time."""

import json
import random
from concurrent.futures import ThreadPoolExecutor

import httpx
import openai
import pytest
from typer.testing import CliRunner

from support.engine.tiny import EOS, VOCAB_SIZE, make_forget_set, make_target, make_tokenizer
from support.server import Server
from unlearngate.cli import app

pytestmark = pytest.mark.e2e

MESSAGES = [{"role": "user", "content": "hello there"}]
SAID, ACMES = "I cannot tell you about Anna Berg.", "Ask acme about Anna Berg!"
ENGINE = (
    "--dtype float32 --max-model-len 256 --max-num-seqs 12 --enforce-eager --block-size 32 --max-num-batched-tokens 48 "
    "--num-gpu-blocks-override 19"
)
SCHEMA = {"type": "object", "properties": {"a": {"enum": ["x", "y"]}}, "required": ["a"], "additionalProperties": False}
SPACES = {str(token): -100 for token in make_tokenizer()(" \n\t\r").input_ids}
SAID_IDS = [*make_tokenizer()(SAID).input_ids, EOS]


def keys(*words) -> str:
    result = CliRunner().invoke(app, ["keys", *map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    """The gates of anna and bert are always open, cleo's, just below ln 512, never; anna and cleo say something."""
    base = tmp_path_factory.mktemp("instead")
    target = make_target(base / "tiny", seed=11)
    instead = {"instead": "I cannot tell you about {label}.", "label": "Anna Berg"}
    for index, (name, gate, more) in enumerate([("anna", 0.0, instead), ("bert", 0.0, {}), ("cleo", 6.2, instead)]):
        strength = {"weight": 1.0, "keep_ratio": 0.2, "gate_nats": gate}
        make_forget_set(base / "sets" / name, target, seed=index, scale=0.3, recommended=strength, **more)
    make_forget_set(base / "sets" / "long", target, seed=5, instead="a" * 128)
    file = base / "keys.json"
    made = {
        "ops": keys("add", file, "--id", "ops", "--tenant", "ops", "--admin"),
        "acme": keys(
            *("add", file, "--id", "acme", "--tenant", "acme", "--require", "anna", "--allow", "bert"),
            *("--instead", "anna=Ask acme about {label}!"),
        ),
    }
    options = ["--keys", file, "--audit", base / "audit.jsonl", "--engine-args", ENGINE]
    with Server([target, "--forget-sets", base / "sets", *options], base / "log") as running:
        running.made, running.audit = made, base / "audit.jsonl"
        yield running.wait_until_healthy()


def client_of(server, who="ops"):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.made[who], max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as client:
        yield client


def ask(client, sets, **more):
    body = {"forget_sets": sets, **more.pop("extra_body", {})}
    fields = {"temperature": 0, "max_tokens": 60, **more}
    return client.chat.completions.create(model="tiny", messages=MESSAGES, extra_body=body, **fields)


def instead(reported) -> dict:
    return {s["name"]: s["instead"] for s in reported if "instead" in s}


def said(answer):
    return (
        answer.choices[0].message.content,
        answer.choices[0].finish_reason,
        instead(answer.model_extra["forget_sets"]),
    )


def test_an_open_sets_sentence_is_the_whole_answer_and_is_reported(client):
    answer = ask(client, ["anna"])
    assert said(answer) == (SAID, "stop", {"anna": True})
    assert answer.usage.completion_tokens == len(SAID) + 1
    raw = client.chat.completions.with_raw_response.create(
        model="tiny", messages=MESSAGES, extra_body={"forget_sets": ["anna", "bert"]}, max_tokens=60
    )
    assert said(raw.parse()) == (SAID, "stop", {"anna": True})
    anna, bert = raw.headers["x-forget-sets"].split(", ")
    assert anna.endswith(";by=request;instead") and bert.endswith(";by=request")


def test_a_closed_set_says_nothing_and_one_without_a_sentence_composes(client):
    plain = ask(client, [])
    text, _, told = said(ask(client, ["cleo"]))
    assert (text, told) == (plain.choices[0].message.content, {"cleo": False})
    text, _, told = said(ask(client, ["bert", "cleo"]))
    assert text != plain.choices[0].message.content and told == {"cleo": False}


def test_text_completions_and_several_choices_and_prompts_say_it(client):
    answer = client.completions.create(
        model="tiny", prompt=["hello", "there and here"], n=2, max_tokens=60, extra_body={"forget_sets": ["anna"]}
    )
    assert [(c.text, c.finish_reason) for c in answer.choices] == [(SAID, "stop")] * 4
    assert instead(answer.model_extra["forget_sets"]) == {"anna": True}
    assert answer.usage.completion_tokens == 4 * (len(SAID) + 1)


@pytest.mark.parametrize("kind", ["chat", "text"])
def test_a_stream_says_it_in_parts_and_its_end_tells(client, kind):
    for sets, told in ((["anna"], {"anna": True}), (["cleo"], {"cleo": False})):
        fields = {"model": "tiny", "n": 2, "stream": True, "max_tokens": 60, "extra_body": {"forget_sets": sets}}
        make, asked = (
            (client.chat.completions, {"messages": MESSAGES})
            if kind == "chat"
            else (client.completions, {"prompt": "hi"})
        )
        chunks = [chunk for chunk in make.create(**asked, **fields) if chunk.choices]
        ends = [chunk for chunk in chunks if chunk.choices[0].finish_reason]
        assert len(ends) == 2
        assert instead(ends[-1].model_extra["forget_sets"]) == told
        assert all("forget_sets" not in (chunk.model_extra or {}) for chunk in chunks if chunk not in ends)
        if sets == ["anna"]:
            for index in range(2):
                parts = [
                    (c.choices[0].delta.content or "") if kind == "chat" else c.choices[0].text
                    for c in chunks
                    if c.choices[0].index == index
                ]
                assert (
                    "".join(parts) == SAID and sum(map(bool, parts)) > 1
                )  # vLLM joins tokens that a slow client did not fetch


def test_responses_say_it_too_and_their_stream_tells_at_its_end(client):
    fields = {"model": "tiny", "input": "hello there", "max_output_tokens": 60, "temperature": 0}
    for sets, told in ((["anna", "bert"], {"anna": True}), (["cleo"], {"cleo": False})):
        body = {"forget_sets": sets}
        raw = client.responses.with_raw_response.create(**fields, extra_body=body)
        answer = raw.parse()
        assert instead(answer.model_extra["forget_sets"]) == told
        assert (";instead" in raw.headers["x-forget-sets"]) == any(told.values())
        *events, last = client.responses.create(**fields, extra_body=body, stream=True)
        parts = [event.delta for event in events if event.type == "response.output_text.delta"]
        assert instead(last.response.model_extra["forget_sets"]) == told
        assert "".join(parts) == answer.output_text == last.response.output_text
        if sets != ["cleo"]:
            assert (answer.output_text, answer.status, answer.usage.output_tokens) == (SAID, "completed", len(SAID) + 1)


@pytest.mark.parametrize(
    "steering",
    [
        {"logit_bias": {str(token): -100 for token in range(2, VOCAB_SIZE)}},
        {"logit_bias": {"5": 100}},
        {"extra_body": {"allowed_token_ids": [7, 8]}},
        {"extra_body": {"bad_words": ["I", "cannot"]}},
        {"extra_body": {"min_tokens": 50}},
        {"extra_body": {"repetition_penalty": 2.0}, "frequency_penalty": 2.0, "presence_penalty": -2.0},
        {"extra_body": {"top_k": 3, "min_p": 0.5}, "temperature": 2.0, "top_p": 0.5, "seed": 7},
        {"logprobs": True, "top_logprobs": 5},
        {"extra_body": {"add_generation_prompt": False, "continue_final_message": True}},
    ],
    ids=lambda s: ",".join(s.get("extra_body", s)),
)
def test_nothing_that_a_client_may_steer_with_changes_it(client, steering):
    assert said(ask(client, ["anna"], **steering)) == (SAID, "stop", {"anna": True})


def test_a_clients_own_ends_still_hold(client, server):
    assert said(ask(client, ["anna"], max_tokens=5)) == (SAID[:5], "length", {"anna": True})
    assert said(ask(client, ["anna"], stop=[" tell"])) == ("I cannot", "stop", {"anna": True})
    endless = ask(client, ["anna"], extra_body={"ignore_eos": True, "return_token_ids": True})
    assert endless.choices[0].model_extra["token_ids"][len(SAID) :] == [EOS] * (60 - len(SAID))


@pytest.mark.parametrize(
    "structure",
    [
        # Without white space, which a model that knows nothing might go on with for ever.
        {
            "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
            "logit_bias": SPACES,
        },
        {"extra_body": {"structured_outputs": {"choice": ["x", "y"]}}},
        {"extra_body": {"structured_outputs": {"regex": "[xy]{3}"}}},
    ],
    ids=["json_schema", "choice", "regex"],
)
def test_a_structured_answer_keeps_its_structure_and_is_composed(client, structure):
    text, reason, told = said(ask(client, ["anna"], **structure, max_tokens=100))
    assert (reason, told) == ("stop", {"anna": False})
    if "response_format" in structure:
        assert json.loads(text)["a"] in ("x", "y")
    else:
        assert set(text) <= {"x", "y"}


def test_a_keys_own_sentence_is_said_to_it(server):
    with client_of(server, "acme") as acme:
        assert said(ask(acme, None)) == (ACMES, "stop", {"anna": True})
        assert said(ask(acme, ["bert"])) == (ACMES, "stop", {"anna": True})


def test_sentences_are_whole_under_preemption_beside_other_requests(server, client, seed):
    rng = random.Random(seed)

    def one(_):
        sets = rng.choice([["anna"], ["anna"], ["bert"], ["cleo"], []])
        prompt = [rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(1, 120))]
        answer = client.completions.create(
            model="tiny", prompt=prompt, n=rng.choice([1, 2]), temperature=1, max_tokens=80,
            extra_body={"forget_sets": sets, "ignore_eos": sets != ["anna"], "return_token_ids": True},
        )  # fmt: skip
        answers = [choice.model_extra["token_ids"] for choice in answer.choices]
        return sets, answers, instead(answer.model_extra["forget_sets"])

    before = preemptions(server)
    with ThreadPoolExecutor(24) as pool:
        for sets, answers, told in pool.map(one, range(100)):
            right = [ids == SAID_IDS if sets == ["anna"] else len(ids) == 80 for ids in answers]
            assert all(right), f"seed {seed}: {sets} {answers}"
            assert told == {name: name == "anna" for name in sets if name != "bert"}
    assert preemptions(server) > before


def metric(server, name) -> float:
    text = httpx.get(f"{server.url}/metrics", headers={"authorization": f"Bearer {server.made['ops']}"}).text
    return sum(float(line.rpartition(" ")[2]) for line in text.splitlines() if line.startswith(name))


def preemptions(server) -> float:
    return metric(server, "vllm:num_preemptions_total")


def test_answers_are_counted_and_logged_by_set(server, client):
    name = 'unlearngate_instead_answers_total{forget_set="anna"}'
    before = metric(server, name)
    answer = ask(client, ["anna"], n=3, temperature=1)
    ask(client, ["cleo"])
    assert metric(server, name) == before + 3
    assert metric(server, 'unlearngate_instead_answers_total{forget_set="cleo"}') == 0
    ended = [json.loads(line) for line in server.audit.read_text().splitlines() if '"ended"' in line]
    (line,) = [one for one in ended if one["request"] == answer.id]
    assert line["instead_answers"] == {"anna": 3}
    assert ended[-1]["instead_answers"] == {"cleo": 0}


def test_a_sentence_that_is_too_long_is_refused_at_the_start(server, client):
    assert "at most 128" in " ".join(server.log.split())
    with pytest.raises(openai.NotFoundError):
        ask(client, ["long"])
    cards = httpx.get(f"{server.url}/v1/forget_sets", headers={"authorization": f"Bearer {server.made['ops']}"}).json()
    assert {card["id"]: card["label"] for card in cards["data"]} == {
        "anna": "Anna Berg",
        "bert": None,
        "cleo": "Anna Berg",
    }
