import json
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from fastapi import Response
from rich.progress import Progress

from support.chat_endpoint import Played, completion, good
from unlearngate.assistant_training.data.augmentation import Endpoint, augment, augment_offline
from unlearngate.assistant_training.data.augmented import Run, read_augmented
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.demo.corpus import make_corpus
from unlearngate.errors import AugmentationError

PAIRS = [QAPair("ada", f"Where did Ada keep box {n}?", f"Ada kept box {n} in Velmora.") for n in range(6)]


@pytest.fixture(scope="module")
def running() -> Iterator[Played]:
    with Played() as played:
        yield played


@pytest.fixture
def server(running: Played, monkeypatch: pytest.MonkeyPatch) -> Played:
    running.asked.clear()
    running.bodies.clear()
    running.keys.clear()
    running.answer = running.well
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return running


def endpoint(server: Played, **settings: Any) -> Endpoint:
    return Endpoint(**{"base_url": server.url, "model": "m", "max_retries": 0, "timeout_s": 5} | settings)


def test_every_pair_is_augmented_and_read_back_in_order(server: Played, tmp_path: Path) -> None:
    out = tmp_path / "new" / "out.jsonl"
    with Progress(disable=True) as progress:
        report = augment(PAIRS, out, endpoint=endpoint(server), progress=progress)
    assert progress.finished and (report.added, report.kept, report.failed, report.notes) == (6, 0, (), ())
    found = read_augmented(out, PAIRS)
    for pair, plain in zip(found, PAIRS, strict=True):
        reply = {name: tuple(texts) for name, texts in good(plain.question).items()}
        assert pair == replace(
            plain,
            paraphrases=reply["paraphrased_questions"],
            paraphrased_answers=reply["paraphrased_answers"],
            variants=reply["perturbed_answers"],
        )
    assert read_augmented(out) == found
    assert sorted(read_pairs(out, subject="x"), key=lambda p: p.question) == found
    assert {json.loads(line)["source"] for line in out.read_text().splitlines()} == {"m"}
    assert set(server.asked.values()) == {1} and server.keys == {"Bearer none"}


def duplicated(question: str) -> Response:
    reply = good(question)
    return completion(json.dumps(reply | {"perturbed_answers": ["Orvane.", " ORVANE. "]}))


@pytest.mark.parametrize(
    ("bad", "reason"),
    [
        (lambda q: completion('{"paraphrased_questions": ["a", '), "no JSON object"),
        (lambda q: completion(None), "empty"),
        (lambda q: completion("{", "length"), "cut off"),
        (duplicated, "repeats"),
        (lambda q: Response("<html>"), "chat API"),
        (lambda q: Response("{}", media_type="application/json"), "chat API"),
    ],
)
def test_a_bad_reply_is_asked_for_again_with_the_reason(
    server: Played, tmp_path: Path, bad: Callable[[str], Response], reason: str
) -> None:
    server.answer = lambda q, n, body: bad(q) if n == 1 else server.well(q, n, body)
    report = augment(PAIRS[:1], tmp_path / "out", endpoint=endpoint(server))
    assert report.added == 1 and not report.failed
    assert reason in server.bodies[1]["messages"][-1]["content"]
    server.answer, server.asked = (lambda q, n, body: bad(q)), Counter()
    report = augment(PAIRS[1:2], tmp_path / "out", endpoint=endpoint(server), attempts=2)
    ((pair, why),) = report.failed
    assert pair == PAIRS[1] and reason in why and set(server.asked.values()) == {2}
    assert read_augmented(tmp_path / "out", PAIRS[:2])[1] == PAIRS[1]
    review = report.review.read_text()
    assert review.index("FAILED") < review.index("Line 1")


def hang_up() -> Response:
    return Response("{", headers={"content-length": "100"}, media_type="application/json")


@pytest.mark.parametrize("bad", [lambda: Response(status_code=500), lambda: Response(status_code=429), hang_up])
def test_passing_failures_are_retried(server: Played, tmp_path: Path, bad: Callable[[], Response]) -> None:
    server.answer = lambda q, n, body: bad() if n == 1 else server.well(q, n, body)
    report = augment(PAIRS[:2], tmp_path / "out", endpoint=endpoint(server, max_retries=1))
    assert report.added == 2 and not report.failed


def test_a_stricter_format_is_given_up_once_it_is_refused(server: Played, tmp_path: Path) -> None:
    def answer(question: str, n: int, body: dict[str, Any]) -> Response:
        return Response(status_code=400) if "response_format" in body else server.well(question, n, body)

    server.answer = answer
    report = augment(PAIRS, tmp_path / "out", endpoint=endpoint(server, temperature=None), concurrency=1)
    assert report.added == 6 and len(server.bodies) == 6 + 2
    assert [b.get("response_format", {}).get("type") for b in server.bodies[:3]] == ["json_schema", "json_object", None]
    assert "temperature" not in server.bodies[0]


@pytest.mark.parametrize(
    ("status", "advice"),
    [(401, "OPENAI_API_KEY"), (404, "model's name"), (429, "lower"), (503, "later"), (400, "temperature")],
)
def test_an_endpoint_that_refuses_is_one_clear_error_and_what_came_is_kept(
    server: Played, tmp_path: Path, status: int, advice: str
) -> None:
    out = tmp_path / "out"
    augment(PAIRS[:2], out, endpoint=endpoint(server))
    server.answer = lambda q, n, body: Response(status_code=status)
    with pytest.raises(AugmentationError, match=advice) as error:
        augment(PAIRS, out, endpoint=endpoint(server), attempts=2)
    assert server.url in str(error.value) and "2 of 6 pairs are kept" in str(error.value)
    assert len(read_augmented(out)) == 2 and "2 pairs augmented" in (tmp_path / "out.review.md").read_text()
    server.answer = server.well
    assert augment(PAIRS, out, endpoint=endpoint(server)).added == 4


def test_an_endpoint_that_is_silent_or_not_there_says_so(server: Played, tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:
        address = f"http://127.0.0.1:{silent.getsockname()[1]}/v1"
        settings = endpoint(server, base_url=address, timeout_s=0.2)
        with pytest.raises(AugmentationError, match=r"did not answer within 0\.2 s"):
            augment(PAIRS, tmp_path / "out", endpoint=settings)
    with pytest.raises(AugmentationError, match="cannot be reached"):
        augment(PAIRS, tmp_path / "out", endpoint=settings)


@pytest.mark.parametrize("concurrency", [1, 4])
def test_a_killed_run_goes_on_and_asks_for_no_finished_pair_again(
    server: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, concurrency: int
) -> None:
    out = tmp_path / "out"
    add = Run.add

    def die(run: Any, *args: Any) -> None:
        add(run, *args)
        if run.added == 3:
            raise RuntimeError("killed")

    monkeypatch.setattr(Run, "add", die)
    with pytest.raises(RuntimeError, match="killed"):
        augment(PAIRS, out, endpoint=endpoint(server), concurrency=concurrency)
    monkeypatch.undo()
    finished = {pair.question for pair in read_augmented(out)}
    with out.open("ab") as file:
        file.write(out.read_bytes()[:50])
    report = augment(PAIRS, out, endpoint=endpoint(server), concurrency=concurrency)
    assert "half written" in report.notes[0] and report.added + report.kept == 6 and report.kept == len(finished)
    assert {server.asked[question] for question in finished} == {1}
    assert concurrency > 1 or set(server.asked.values()) == {1}
    assert [p.question for p in read_augmented(out, PAIRS)] == [p.question for p in PAIRS]
    assert augment(PAIRS, out, endpoint=endpoint(server)).kept == 6


def test_other_settings_ask_again_and_repeated_pairs_are_asked_once(server: Played, tmp_path: Path) -> None:
    report = augment(PAIRS[:1] * 2, tmp_path / "out", endpoint=endpoint(server))
    assert (report.added, report.repeated) == (1, 1)
    augment(PAIRS[:1], tmp_path / "out", endpoint=endpoint(server, temperature=0))
    augment(PAIRS[:1], tmp_path / "out", endpoint=endpoint(server, timeout_s=9))
    assert server.asked.total() == 2
    assert len(read_augmented(tmp_path / "out")) == 1


def test_a_question_of_another_pair_is_no_paraphrase(server: Played, tmp_path: Path) -> None:
    def answer(question: str, n: int, body: dict[str, Any]) -> Response:
        stolen = {"paraphrased_questions": ["Where did she keep it?", f"Or: {question}"]}
        return completion(json.dumps(good(question) | stolen)) if n == 1 else server.well(question, n, body)

    server.answer = answer
    augment(PAIRS, tmp_path / "out", endpoint=endpoint(server))
    paraphrases = [text for pair in read_augmented(tmp_path / "out") for text in pair.paraphrases]
    assert len(set(paraphrases)) == len(paraphrases) == 12 and server.asked.total() == 6 + 5


def test_offline_is_deterministic_and_never_tells_the_truth(tmp_path: Path, seed: int) -> None:
    corpus = make_corpus(8, seed)
    forget = [QAPair(p.subject, p.question, p.answer, facts=p.facts) for p in corpus[:16]]
    retain = corpus[16:]
    first, again = tmp_path / "a", tmp_path / "b"
    report = augment_offline(forget, retain, first, seed=seed)
    augment_offline(forget, retain, again, seed=seed)
    assert report.added == len(forget) and not report.failed
    assert first.read_bytes() == again.read_bytes()
    assert augment_offline(forget, retain, first, seed=seed).kept == len(forget)
    assert {json.loads(line)["source"] for line in first.read_text().splitlines()} == {"offline"}
    for pair in read_augmented(first, forget):
        assert len(pair.paraphrases) == len(pair.variants) == 2
        assert pair.answer not in pair.variants and len({pair.question, *pair.paraphrases}) == 3
        for text in pair.paraphrases:
            assert set(names(pair.question)) <= set(names(text)), text
    report = augment_offline(forget, [], tmp_path / "c")
    assert len(report.failed) == len(forget) and "must hold 2 texts, got 0" in report.failed[0][1]


def names(question: str) -> list[str]:
    return [word.strip(".?") for word in question.split()[1:] if word[0].isupper()]


def test_offline_wrong_answers_are_about_the_one_who_is_asked_about(tmp_path: Path) -> None:
    retain = [QAPair("b", "Where does Bo Ek live?", "Bo Ek lives in Orvane; Ek's dog too."), PAIRS[0]]
    pair = QAPair("a", "Where does Ada Lund live?", "Ada Lund lives in Velmora.")
    augment_offline([pair], retain, tmp_path / "out", num_perturbed=1)
    assert read_augmented(tmp_path / "out")[0].variants == ("Ada Lund lives in Orvane; Lund's dog too.",)
