"""Texts that must not come out, over a target that knows them: the demo's, with sets of kind verbatim alone."""

import hashlib
import json
import re
import shutil

import httpx
import openai
import pytest
from typer.testing import CliRunner

from support.demo import QUESTION, build_demo, eventually, probes
from support.server import Server
from support.texts import longest_run, plain_letters, save_texts
from unlearngate.cli import app
from unlearngate.commands._shared import demo_folder
from unlearngate.target import load_tokenizer

pytestmark = pytest.mark.e2e

MESSAGES = [{"role": "user", "content": QUESTION}]
LONGEST = 39
SCHEMA = {"type": "object", "properties": {"said": {"type": "string"}}, "required": ["said"]}


def command(*words):
    result = CliRunner().invoke(app, [*map(str, words)])
    assert result.exit_code == 0, result.output
    return result.stdout.strip()


@pytest.fixture(scope="module")
def text(tmp_path_factory):
    build_demo(tmp_path_factory.mktemp("demo"))
    return "\n".join(probe.answer for probe in probes())


@pytest.fixture(scope="module")
def known(text):
    return next(probe.answer for probe in probes() if probe.question == QUESTION)


@pytest.fixture(scope="module")
def server(text, tmp_path_factory):
    base = tmp_path_factory.mktemp("verbatim")
    (base / "text.txt").write_text(text)
    command("train", "verbatim", base / "sets" / "answers", "--text", base / "text.txt")
    file = base / "keys.json"
    made = {
        "ops": command("keys", "add", file, "--id", "ops", "--tenant", "ops", "--admin"),
        "acme": command("keys", "add", file, "--id", "acme", "--tenant", "acme", "--require", "answers"),
    }
    options = ["--keys", file, "--watch-interval-s", "0.2", "--audit", base / "audit.jsonl", "--name", "demo"]
    target = demo_folder(None) / "target"
    with Server([target, "--forget-sets", base / "sets", *options], base / "log") as running:
        running.made, running.base, running.audit = made, base, base / "audit.jsonl"
        yield running.wait_until_healthy()


def client_of(server, who="ops"):
    return openai.OpenAI(base_url=f"{server.url}/v1", api_key=server.made[who], max_retries=0, timeout=120)


@pytest.fixture(scope="module")
def client(server):
    with client_of(server) as client:
        yield client


def ask(client, sets, **more):
    body = {**({} if sets is None else {"forget_sets": sets}), **more.pop("extra_body", {})}
    fields = {"temperature": 0, "max_tokens": 64, "messages": MESSAGES, **more}
    return client.chat.completions.create(model="demo", extra_body=body, **fields)


def test_the_answer_comes_out_without_the_set_and_no_run_of_it_with_the_set(client, text, known):
    plain = ask(client, []).choices[0].message.content
    assert plain_letters(known) == plain_letters(plain) and longest_run(text, plain) > LONGEST
    answer = ask(client, ["answers"])
    assert 10 < longest_run(text, answer.choices[0].message.content) <= LONGEST
    (told,) = answer.model_extra["forget_sets"]
    assert (told["name"], told["weight"], told["by"]) == ("answers", 1.0, "request")


def test_a_beginning_that_the_client_gives_counts(client, text, known):
    given = known[:30]
    assert len(plain_letters(given)) > 20
    prompt = load_tokenizer(demo_folder(None) / "target").apply_chat_template(
        MESSAGES, tokenize=False, add_generation_prompt=True
    )
    messages = [*MESSAGES, {"role": "assistant", "content": given}]
    going_on = {"add_generation_prompt": False, "continue_final_message": True}
    for sets, holds in (([], False), (["answers"], True)):
        fields = {"extra_body": {"forget_sets": sets}, "temperature": 0, "max_tokens": 64}
        text_answer = client.completions.create(model="demo", prompt=prompt + given, **fields).choices[0].text
        chat_answer = ask(client, sets, messages=messages, extra_body=going_on).choices[0].message.content
        for answer in (text_answer, chat_answer):
            assert (longest_run(text, given + answer.removeprefix(given)) <= LONGEST) == holds, answer


@pytest.mark.parametrize("temperature", [0.5, 1, 2])
def test_streams_and_several_choices_hold_it_too(client, text, temperature):
    said = ["", ""]
    for chunk in ask(client, ["answers"], n=2, stream=True, temperature=temperature):
        for choice in chunk.choices:
            said[choice.index] += choice.delta.content or ""
    said += [choice.message.content for choice in ask(client, ["answers"], n=16, temperature=temperature).choices]
    assert max(longest_run(text, answer) for answer in said) <= LONGEST


@pytest.mark.parametrize(
    "steering",
    [
        {"stop": [" shaped"]},
        {"extra_body": {"min_tokens": 60}},
        {"extra_body": {"ignore_eos": True}},
        {"extra_body": {"skip_special_tokens": False}},
        {"extra_body": {"repetition_penalty": 0.5}, "frequency_penalty": -2},
        {"extra_body": {"structured_outputs": {"regex": "[A-Za-z ,.']{20,120}"}}},
        {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}}},
    ],
    ids=str,
)
def test_nothing_that_steers_an_answer_lets_a_run_out(client, text, steering):
    choice = ask(client, ["answers"], **steering).choices[0]
    assert longest_run(text, choice.message.content) <= LONGEST
    if choice.finish_reason == "stop" and "response_format" in steering:
        assert json.loads(choice.message.content).keys() == {"said"}


def test_the_answer_forced_by_a_grammar_ends_before_the_run(client, text, known):
    """A grammar that leaves no other token than the text's next: the row can only end."""
    only = {"structured_outputs": {"choice": [known]}}
    assert ask(client, [], extra_body=only).choices[0].message.content == known
    try:
        said = ask(client, ["answers"], extra_body=only).choices[0].message.content
    except openai.BadRequestError as error:
        said = str(error)
    assert longest_run(text, said) <= LONGEST


def test_a_key_that_requires_it_gets_it_and_cannot_leave_it_out(server, text):
    with client_of(server, "acme") as acme:
        answer = ask(acme, None)
        assert longest_run(text, answer.choices[0].message.content) <= LONGEST
        assert answer.model_extra["forget_sets"][0]["by"] == "key"
        for wish in ([], [{"name": "answers", "weight": 0}]):
            with pytest.raises(openai.APIStatusError) as refused:
                ask(acme, wish)
            assert refused.value.status_code in (400, 403)
        by_name = acme.chat.completions.create(model="demo:forget=answers", messages=MESSAGES, max_tokens=64)
        assert longest_run(text, by_name.choices[0].message.content) <= LONGEST


def cards(server):
    answer = httpx.get(f"{server.url}/v1/forget_sets", headers={"authorization": f"Bearer {server.made['ops']}"})
    return {card["id"]: card for card in answer.json()["data"]}


def test_a_request_to_forget_is_in_force_at_the_server_when_the_command_says_so(server, client, known, monkeypatch):
    about = "\n\n".join(probe.answer for probe in probes() if "Tobias Renkel" in probe.question)
    (server.base / "letter.txt").write_text(f"# Tobias Renkel\n\nWe ask you to forget Tobias Renkel.\n\n{about}")
    monkeypatch.setenv("UNLEARNGATE_API_KEY", server.made["ops"])
    words = ["forget", server.base / "letter.txt", "--target", demo_folder(None) / "target", "--name", "letter"]
    words += ["--sets", server.base / "sets", "--case", server.base / "case", "--letters", 24, "--subjects", 1]
    result = CliRunner().invoke(app, [*map(str, words), "--steps", "1", "--server", server.url])
    said = " ".join(result.output.split())
    assert re.search(rf"{server.url} has letter-text@\w+ in force", said) and "letter-text" in cards(server), said
    # It could not take what would be trained, and that is said before anything is asked: the words are withheld anyway.
    assert result.exit_code == 2 and "could not take the set: it was started for no assistants at all" in said, said
    assert "letter" not in cards(server)
    assert longest_run(known, ask(client, ["letter-text"]).choices[0].message.content) <= 23
    purged = ["forget", "--purge", server.base / "case", "--server", server.url]
    assert "are deleted" in command(*purged) and "its audit log says so" in command(*purged)  # twice: noted again
    (line, _) = [one for one in map(json.loads, server.audit.read_text().splitlines()) if one.get("case")]
    case_digest = hashlib.sha256((server.base / "case" / "case.json").read_bytes()).hexdigest()
    assert (line["event"], line["action"], line["key"]) == ("change", "purged", "ops")
    assert (line["name"], line["case"]) == ("letter", case_digest)


def test_a_set_is_added_pinned_and_removed_live_and_what_requires_it_fails_closed(server, client, text, known):
    card = cards(server)["answers"]
    assert (card["kind"], card["rank"], card["metrics"]["letters"]) == ("verbatim", 0, len(plain_letters(text)))
    made = save_texts(server.base / "made" / "more", known, letters=24)
    command("sets", "add", made.folder, server.base / "sets")
    assert eventually(lambda: "more" in cards(server))
    said = ask(client, ["answers", "more"]).choices[0].message.content
    assert longest_run(known, said) <= 23
    command("sets", "remove", "more", server.base / "sets")
    assert eventually(lambda: "more" not in cards(server))
    with pytest.raises(openai.NotFoundError):
        ask(client, ["more"])
    away = server.base / "away"
    shutil.move(server.base / "sets" / "answers", away)
    assert eventually(lambda: "answers" not in cards(server))
    with client_of(server, "acme") as acme, pytest.raises(openai.InternalServerError) as refused:
        ask(acme, None)
    assert refused.value.status_code == 503
    shutil.move(away, server.base / "sets" / "answers")
    assert eventually(lambda: "answers" in cards(server))
    lines = [json.loads(line) for line in server.audit.read_text().splitlines() if '"ended"' in line]
    assert any([one["name"] for one in line.get("sets", [])] == ["answers", "more"] for line in lines)
    assert all(line["finish"] == "completed" or line["status"] == 400 for line in lines)


@pytest.mark.parametrize(
    "path, asked, field",
    [
        ("completions", {"prompt": "hi", "prompt_logprobs": 1}, "prompt_logprobs"),
        ("completions", {"prompt": "hi", "echo": True, "logprobs": 1, "stream": True}, "echo"),
        ("chat/completions", {"messages": MESSAGES, "prompt_logprobs": 0}, "prompt_logprobs"),
        ("chat/completions", {"messages": MESSAGES, "echo": True}, "echo"),
    ],
)
def test_a_prompt_is_not_scored_while_the_set_is_in_force(server, path, asked, field):
    """In scoring mode nothing of it would be left: that would be the plain target."""
    headers = {"authorization": f"Bearer {server.made['ops']}"}
    for sets, status in ((["answers"], 400), ([], 200)):
        body = {"model": "demo", "max_tokens": 1, "forget_sets": sets, **asked}
        response = httpx.post(f"{server.url}/v1/{path}", json=body, headers=headers, timeout=120)
        assert response.status_code == status, response.text
        if sets:
            error = response.json()["error"]
            assert error["param"] == field and "verbatim is in force (answers)" in error["message"]
