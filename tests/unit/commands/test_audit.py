"""`unlearngate audit verify` and `show`, as people run them."""

import json

import pytest
from typer.testing import CliRunner

from unlearngate.commands.audit import app
from unlearngate.server.audit.log import Audit
from unlearngate.server.audit.trail import read_trail

SETS = [{"name": "anna", "version": "1", "weight": 1.5}]


@pytest.fixture
def log(tmp_path):
    audit = Audit(tmp_path / "log.jsonl", max_bytes=600)
    for number in range(5):
        who = {"request": f"chatcmpl-{number}", "client_request": str(number), "sets": SETS}
        audit.append("admitted", **who)
        if number != 3:
            audit.append("ended", **who, finish="completed")
    audit.close()
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(a) for a in arguments])


def test_verify_says_that_a_log_is_whole_and_names_its_last_line(log):
    done = run("verify", log)
    assert done.exit_code == 0, done.output
    trail = read_trail(list(log.glob("*.jsonl")))
    assert "whole: 10 lines, 1 to 10" in done.output
    assert f"last line: 10 {trail.digest}" in done.output
    assert "admitted without an end (running, or the server was killed): 1" in done.output
    assert run("verify", log, "--anchor", trail.digest).exit_code == 0
    assert run("verify", log, "--anchor", "0" * 64).exit_code == 1


def test_verify_names_the_place_where_a_log_is_broken(log):
    first = min(log.glob("log-*.jsonl"))
    first.write_bytes(first.read_bytes().replace(b'"weight":1.5', b'"weight":0.5', 1))
    done = run("verify", *log.glob("*.jsonl"))
    assert done.exit_code == 1
    assert f"broken: {first}:3: line 2, before this one, was changed" in done.output or "was changed" in done.output
    assert "whole" not in done.output


@pytest.mark.parametrize("name", ["chatcmpl-2", "2"])
def test_show_prints_what_was_in_force_for_a_request(log, name):
    done = run("show", name, log)
    assert done.exit_code == 0, done.output
    printed = done.stdout[: done.stdout.rindex("}") + 1].replace("}\n{", "},{")
    events = json.loads(f"[{printed}]")
    assert [(e["event"], e["sets"]) for e in events] == [("admitted", SETS), ("ended", SETS)]


@pytest.fixture
def shared(tmp_path):
    """Three requests with the same x-request-id: two of acme, by different keys, one of globex."""
    audit = Audit(tmp_path / "log.jsonl", max_bytes=10**6)
    for number, (tenant, key) in enumerate([("acme", "acme-1"), ("globex", "globex-1"), ("acme", "acme-2")]):
        who = {"request": f"chatcmpl-same-{number}", "client_request": "same", "key": key, "tenant": tenant}
        audit.append("admitted", **who, sets=SETS)
        audit.append("ended", **who, sets=SETS, finish="completed")
    audit.close()
    return tmp_path


@pytest.mark.parametrize(
    "options, keys, warned",
    [
        ([], ["acme-1", "globex-1", "acme-2"], True),
        (["--tenant", "acme"], ["acme-1", "acme-2"], False),
        (["--tenant", "globex"], ["globex-1"], False),
        (["--key", "acme-2"], ["acme-2"], False),
        (["--tenant", "acme", "--key", "acme-1"], ["acme-1"], False),
    ],
)
def test_show_tells_tenants_with_the_same_id_apart(shared, options, keys, warned):
    done = run("show", "same", shared, *options)
    assert done.exit_code == 0, done.output
    printed = done.stdout[: done.stdout.rindex("}") + 1].replace("}\n{", "},{")
    assert [e["key"] for e in json.loads(f"[{printed}]")] == [key for key in keys for _ in range(2)]
    assert ("these are lines of several tenants: acme, globex; --tenant shows one's only" in done.output) == warned


def test_show_does_not_find_one_tenants_request_under_anothers_key(shared):
    done = run("show", "same", shared, "--tenant", "globex", "--key", "acme-1")
    assert done.exit_code == 1
    assert "no request 'same' of tenant 'globex' of key 'acme-1' in these files" in done.output


def test_show_fails_for_a_request_that_is_not_there_or_a_log_that_is_broken(log):
    assert run("show", "chatcmpl-9", log).exit_code == 1
    assert "no request 'chatcmpl-9'" in run("show", "chatcmpl-9", log).output
    last = log / "log.jsonl"
    last.write_bytes(last.read_bytes() + b"nonsense\n")
    assert run("show", "chatcmpl-2", log).exit_code == 1


def test_a_folder_without_a_log_is_an_error(tmp_path):
    done = run("verify", tmp_path)
    assert done.exit_code == 2
    assert "no file there is named *.jsonl" in done.output
