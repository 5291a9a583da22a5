import functools
import json
import socket
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from support.chat_endpoint import Played, completion
from unlearngate.assistant_training.data import augmentation
from unlearngate.assistant_training.data.augmentation import Endpoint
from unlearngate.assistant_training.data.pairs import QAPair, read_pairs
from unlearngate.assistant_training.demo.corpus import make_corpus
from unlearngate.cli import app

PAIRS = [QAPair("ada", f"Where did Ada keep box {n}?", f"Ada kept box {n} in Velmora.") for n in range(3)]


@pytest.fixture
def server() -> Iterator[Played]:
    with Played() as played:
        yield played


def run_cli(*arguments: Any) -> tuple[int, str]:
    done = CliRunner().invoke(app, ["train", "augment", *map(str, arguments)])
    assert "Traceback" not in done.output
    return done.exit_code, " ".join(done.output.split())


def write(path: Path, pairs: list[QAPair]) -> Path:
    path.write_text("".join(json.dumps({"question": p.question, "answer": p.answer}) + "\n" for p in pairs))
    return path


def test_the_command_rewords_offline_for_the_training_command(tmp_path: Path, seed: int) -> None:
    corpus = make_corpus(8, seed)
    forget, retain = write(tmp_path / "forget", corpus[:4]), write(tmp_path / "retain", corpus[16:])
    out = tmp_path / "out"
    arguments = (forget, out, "--offline", "--retain", retain, "--seed", seed, "--perturbed", 1)
    code, text = run_cli(*arguments)
    assert code == 0 and "4 pairs added, 0 kept, 0 failed" in text and str(tmp_path / "out.review.md") in text
    pairs = read_pairs(out, subject="given")
    assert [(p.subject, p.question) for p in pairs] == [("given", p.question) for p in corpus[:4]]
    assert all((len(p.paraphrases), len(p.variants)) == (2, 1) for p in pairs)
    assert "0 pairs added, 4 kept" in run_cli(*arguments)[1]


def test_the_command_asks_an_endpoint_and_exits_1_if_pairs_failed(
    server: Played, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "key")
    server.answer = lambda q, n, body: completion("[no]") if "box 1" in q else server.well(q, n, body)
    arguments = (write(tmp_path / "x", PAIRS), tmp_path / "out", "--base-url", server.url, "--model", "m")
    code, text = run_cli(*arguments, "--attempts", 2, "--temperature", 1)
    assert code == 1 and "2 pairs added, 0 kept, 1 failed" in text
    assert f"failed: {PAIRS[1].question}: no JSON object" in text and server.asked[PAIRS[1].question] == 2
    assert server.keys == {"Bearer key"} and {body["temperature"] for body in server.bodies} == {1}
    server.answer = server.well
    assert run_cli(*arguments, "--temperature", 1)[0] == 0


def test_the_command_says_what_is_wrong_and_exits_2(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(augmentation, "Endpoint", functools.partial(Endpoint, max_retries=0))
    pairs, out = write(tmp_path / "pairs", PAIRS), tmp_path / "out"
    with socket.create_server(("127.0.0.1", 0)) as closed:
        url = f"http://127.0.0.1:{closed.getsockname()[1]}/v1"
    for arguments, sentence in (
        ([pairs, out], "give --base-url and --model, or --offline and --retain"),
        ([pairs, out, "--model", "m"], "give --base-url and --model"),
        ([pairs, out, "--base-url", url, "--model", "m", "--retain", pairs], "give --base-url and --model"),
        ([pairs, out, "--offline"], "--offline needs --retain"),
        ([pairs, out, "--offline", "--retain", pairs, "--model", "m"], "takes neither"),
        ([pairs, out, "--base-url", "localhost:80", "--model", "m"], "must be like http://"),
        ([pairs, out, "--base-url", "http://x:port", "--model", "m"], "must be like http://"),
        ([pairs, pairs, "--base-url", url, "--model", "m"], "give OUT a file of its own"),
        ([tmp_path / "none", out, "--base-url", url, "--model", "m"], "cannot be read"),
        ([pairs, out, "--offline", "--retain", pairs, "--paraphrases", 0, "--perturbed", 0], "nothing to ask for"),
        ([pairs, out, "--base-url", url, "--model", "m"], f"error: {url} cannot be reached"),
    ):
        code, text = run_cli(*arguments)
        assert code == 2 and sentence in text, text
