"""`unlearngate evaluate --server` against a small endpoint over a real socket, which forgets as it is told."""

import json
import math
from collections import Counter
from typing import ClassVar

import pytest
from fastapi import Request, Response
from typer.testing import CliRunner

from support.chat_endpoint import Played
from unlearngate.assistant_training.data.tofu import Question
from unlearngate.assistant_training.data.windows import Opening
from unlearngate.assistant_training.evaluate.asking import Asked, ask_all
from unlearngate.assistant_training.evaluate.served import cut_answers, evaluate_server
from unlearngate.commands.evaluate import app
from unlearngate.errors import UnlearngateError

FORGET = [Question(f"who is f{i}?", f"f{i} is a baker in town", "", ()) for i in range(4)]
RETAIN = [Question(f"who is r{i}?", f"r{i} is a clerk in town", "", ()) for i in range(3)]
KNOWN = {q.question: q.answer for q in (*FORGET, *RETAIN)}


class Served(Played):
    """Set `a` loses the first two forget answers, `b` changes the last retain answer; sampling is f0's undoing."""

    def __init__(self):
        super().__init__()
        self.report = lambda names: [{"name": name, "weight": 1.0} for name in names]
        self.server.config.app.get("/v1/forget_sets")(lambda: {"data": [{"id": name, "digest": name} for name in "ab"]})
        self.base = self.url.removesuffix("/v1")

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        question, names = body["messages"][0]["content"], body["forget_sets"]
        said = KNOWN[question]
        if "a" in names and question in (FORGET[0].question, FORGET[1].question):
            said = said if body["temperature"] and body["seed"] % 2 and question == FORGET[0].question else "no idea"
        if "b" in names and question == RETAIN[2].question:
            said = f"{said}!"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said},
                  "token_ids": list(said.encode())}  # fmt: skip
        reported = {} if self.report is None else {"forget_sets": self.report(names)}
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice], **reported}
        return Response(json.dumps(answer), media_type="application/json")


@pytest.fixture
def served():
    with Served() as endpoint:
        yield endpoint


def evaluate(served, chosen, **settings):
    asked = {"forget": FORGET, "retain": RETAIN}
    settings = {"num_samples": 2, "seed": 10, "max_tokens": 9, "concurrency": 4, **settings}
    return evaluate_server(served.base, "m", asked, chosen, **settings)


def test_figures_are_those_of_what_was_said(served):
    plain, a, both = evaluate(served, [("a",), ("a", "b")])
    assert [row.model for row in (plain, a, both)] == ["target", "a", "a+b"]
    assert plain.figures["forget_recited"].value == plain.figures["retain_rouge"].value == 1.0
    assert a.figures["forget_recited"].value == a.figures["forget_unchanged"].value == 0.5
    assert a.figures["retain_unchanged"].value == 1.0
    assert both.figures["retain_unchanged"].value == pytest.approx(2 / 3)
    assert both.figures["retain_recited"].value == 1.0
    # Seeds 11 and 12: of two samples of f0 the first leaks.
    assert a.questions["forget"]["sampled_rouge"] == [[1.0, 0.0], [0.0, 0.0], [1.0, 1.0], [1.0, 1.0]]
    assert a.figures["forget_leak_at_2"].value == 0.75
    assert a.in_force == [{"name": "a", "weight": 1.0}]


def test_a_documents_opening_is_sent_as_bare_text_and_its_continuation_compared_as_muse_does(served):
    asked = []

    async def completions(request: Request) -> Response:
        body = await request.json()
        asked.append(body)
        text = " is at an end, as all" if "a" in body["forget_sets"] else " is the beginning of the end of it, and more"
        choice = {"index": 0, "finish_reason": "length", "text": text, "token_ids": list(text.encode())}
        reported = [{"name": name} for name in body["forget_sets"]]
        answer = {"id": "1", "object": "text_completion", "created": 0, "model": "m", "choices": [choice]}
        return Response(json.dumps({**answer, "forget_sets": reported}), media_type="application/json")

    served.server.config.app.post("/v1/completions")(completions)
    document = Question(Opening("What we call the end"), " is the beginning of the end of it", "", ())
    plain, a = evaluate_server(
        served.base, "m", {"forget": [document, FORGET[2]], "retain": RETAIN}, [("a",)], num_samples=0, seed=1
    )
    assert [body["prompt"] for body in asked] == ["What we call the end"] * 2
    assert plain.questions["forget"]["verbmem"] == [1.0, None]
    # Of "is at an end as all" and "is the beginning of the end of it" two words are in order, of 6 and of 8.
    assert a.questions["forget"]["verbmem"] == [pytest.approx(2 * (2 / 6) * (2 / 8) / (2 / 6 + 2 / 8)), None]
    assert a.figures["forget_verbmem"].value == pytest.approx(2 / 7)
    assert "verbmem" not in a.questions["retain"]


def test_answers_that_a_server_cut_are_counted():
    columns = {"token_ids": [[1], [1, 2], [1, 2]]}
    said = cut_answers("forget", columns, 2)
    assert said is not None and said.startswith("forget: 2 of 3 answers of the plain target were cut at --max-tokens 2")
    assert cut_answers("forget", columns, 3) is None


def test_everything_is_asked_once_with_its_sets(served):
    evaluate(served, [("a",), ("a", "b")])
    asked = Counter(
        (b["messages"][0]["content"], *b["forget_sets"], b["temperature"], b["seed"]) for b in served.bodies
    )
    assert set(asked.values()) == {1}
    assert len(asked) == 3 * (len(FORGET) * 3 + len(RETAIN))
    assert {b["max_tokens"] for b in served.bodies} == {9}
    assert all(b["return_token_ids"] for b in served.bodies)


@pytest.mark.parametrize(
    "report, message",
    [
        (lambda names: [], r"was asked with \['a'\] and answered with \[\] in force"),
        (lambda names: [{"name": "b"}], r"answered with \['b'\] in force"),
        (lambda names: [{"name": name} for name in (*names, *names)], "in force"),
        (None, "does not say which forget sets"),
    ],
)
def test_an_answer_with_other_sets_in_force_is_an_error_and_never_counted(served, report, message):
    served.report = report
    with pytest.raises(UnlearngateError, match=message):
        ask_all(served.base, "m", [Asked(FORGET[0].question, ("a",))], max_tokens=4)


def test_an_error_ends_the_rest(served):
    served.report = None
    with pytest.raises(UnlearngateError):
        ask_all(served.base, "m", [Asked(FORGET[0].question)] * 500, max_tokens=4, concurrency=2)
    assert len(served.bodies) < 50


class Multilingual(Served):
    """Says the true answers of `SCRIPTS`; from request `broken_from` on it is out of order."""

    SCRIPTS: ClassVar = {"他是谁?": "他是渡船船長", "☂?": "→ ☂", "кто?": "Ильва Брандт", "ใคร?": "กล้า"}
    broken_from = math.inf

    async def chat(self, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        if len(self.bodies) >= self.broken_from:
            return Response("{}", 400, media_type="application/json")
        said = self.SCRIPTS[body["messages"][0]["content"]] if not body["forget_sets"] else "12 \ud83d"
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": said},
                  "token_ids": list(range(len(said)))}  # fmt: skip
        answer = {"id": "1", "object": "chat.completion", "created": 0, "model": "m", "choices": [choice]}
        return Response(json.dumps({**answer, "forget_sets": self.report(body["forget_sets"])}))


def test_answers_of_any_script_are_measured_and_none_is_lost_when_the_server_breaks(tmp_path):
    rows = [json.dumps({"question": q, "answer": a}) for q, a in Multilingual.SCRIPTS.items()]
    (tmp_path / "forget.jsonl").write_text("\n".join(rows[:2]))
    (tmp_path / "retain.jsonl").write_text("\n".join(rows[2:]))
    files = ["--forget", str(tmp_path / "forget.jsonl"), "--retain", str(tmp_path / "retain.jsonl")]
    with Multilingual() as served:
        command = ["qa", "--server", served.base, "--model", "m", *files, "--with", "a", "--out", str(tmp_path)]
        switches = ["--chat-template-kwargs", '{"loud": false}']
        done = CliRunner().invoke(app, [*command, *switches, "--samples", "1"])
        assert done.exit_code == 0, done.output
        figures = [row["figures"] for row in json.loads((tmp_path / "report.json").read_text())["rows"]]
        assert [figures[0][name]["value"] for name in ("forget_recited", "retain_recited")] == [1.0, 1.0]
        assert [figures[1][name]["value"] for name in ("forget_rouge", "retain_rouge")] == [0.0, 0.0]
        kept = [json.loads(line) for line in (tmp_path / "answers.jsonl").read_text().splitlines()]
        assert len(kept) == len(served.bodies) == 12
        assert {json.dumps(body.get("chat_template_kwargs")) for body in served.bodies} == {'{"loud": false}'}
        assert {row["text"] for row in kept if not row["forget_sets"]} == set(served.SCRIPTS.values())
        served.broken_from = len(served.bodies) + 4
        broken = CliRunner().invoke(app, [*command, "--samples", "1", "--concurrency", "1"])
    assert broken.exit_code == 2 and f"is in {tmp_path / 'answers.jsonl'}" in broken.output
    assert len((tmp_path / "answers.jsonl").read_text().splitlines()) == 3


def test_the_command_takes_the_servers_sets_and_reports(served, tmp_path):
    for name, questions in (("forget", FORGET), ("retain", RETAIN)):
        lines = [json.dumps({"question": q.question, "answer": q.answer}) for q in questions]
        (tmp_path / f"{name}.jsonl").write_text("\n".join(lines))
    files = ["--forget", str(tmp_path / "forget.jsonl"), "--retain", str(tmp_path / "retain.jsonl")]
    arguments = [
        "qa",
        "--server",
        served.base,
        "--model",
        "m",
        *files,
        "--samples",
        "1",
        "--out",
        str(tmp_path / "out"),
    ]
    done = CliRunner().invoke(app, arguments)
    assert done.exit_code == 0, done.output
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert [row["model"] for row in report["rows"]] == ["target", "a", "b"]
    assert report["rows"][1]["questions"]["forget"]["generated"][0] == "no idea"
    unknown = CliRunner().invoke(app, [*arguments, "--with", "a+zoe"])
    assert (unknown.exit_code, "no forget set 'zoe'; there are: a, b" in unknown.output) == (2, True)
    served.report = lambda names: []
    lied = CliRunner().invoke(app, [*arguments, "--with", "a"])
    assert (lied.exit_code, "in force" in lied.output) == (2, True)
