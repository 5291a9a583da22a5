"""The audit log: its chain, rotation, restarts, and what happens when it cannot be written."""

import hashlib
import json
import random
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor

import pytest

from unlearngate.errors import AuditUnavailableError
from unlearngate.server.audit.log import Audit
from unlearngate.server.audit.trail import BEFORE_THE_FIRST, read_trail

LARGE = 2**30


def write(path, num_lines, *, max_bytes=LARGE):
    audit = Audit(path, max_bytes=max_bytes, model="tiny")
    for number in range(num_lines):
        admit(audit, f"chatcmpl-{number}")
    audit.close()


def admit(audit, request_id):
    audit.append("admitted", request=request_id, client_request=None, sets=[])


def files(folder):
    return list(folder.glob("*.jsonl"))


def test_each_line_names_the_digest_of_the_line_before(tmp_path):
    write(tmp_path / "a.jsonl", 3)
    lines = (tmp_path / "a.jsonl").read_bytes().splitlines()
    contents = [json.loads(line) for line in lines]
    assert [c["seq"] for c in contents] == [1, 2, 3, 4]
    assert [c["event"] for c in contents] == ["started", "admitted", "admitted", "admitted"]
    digests = [BEFORE_THE_FIRST, *(hashlib.sha256(line).hexdigest() for line in lines)]
    assert [c["prev"] for c in contents] == digests[:-1]
    assert all(c["time"].endswith("+00:00") for c in contents)
    trail = read_trail([tmp_path / "a.jsonl"], anchor=digests[2])
    assert (trail.problems, trail.num_lines, trail.first, trail.last) == ([], 4, 1, 4)
    assert trail.digest == digests[-1]


def test_a_folder_gets_audit_jsonl(tmp_path):
    write(tmp_path, 1)
    assert [f.name for f in files(tmp_path)] == ["audit.jsonl"]


def test_the_chain_goes_on_over_rotated_files_and_restarts(tmp_path):
    for _ in range(3):
        write(tmp_path, 20, max_bytes=1500)
    assert len(files(tmp_path)) > 5
    assert all(f.stat().st_size <= 1500 for f in files(tmp_path))
    shuffled = files(tmp_path)
    random.shuffle(shuffled)
    trail = read_trail(shuffled)
    assert (trail.problems, trail.num_lines, trail.last) == ([], 63, 63)
    middle = sorted(files(tmp_path))[1]
    assert "missing" in read_trail([f for f in files(tmp_path) if f != middle]).problems[0]
    newest = sorted(files(tmp_path))[2:]  # the oldest files may be gone
    assert read_trail(newest).problems == []


def test_the_chain_goes_on_if_the_server_stopped_between_renaming_and_the_next_line(tmp_path):
    write(tmp_path, 2)
    (tmp_path / "audit.jsonl").rename(tmp_path / "audit-000000000001.jsonl")
    write(tmp_path, 2)
    trail = read_trail(files(tmp_path))
    assert (trail.problems, trail.num_lines) == ([], 6)


def test_the_file_may_be_renamed_or_copied_and_cut_while_it_is_written(tmp_path):
    audit = Audit(tmp_path / "a.jsonl", max_bytes=LARGE)
    admit(audit, "one")
    (tmp_path / "a.jsonl").rename(tmp_path / "a.jsonl.1")
    admit(audit, "two")
    (tmp_path / "a.jsonl.2").write_bytes((tmp_path / "a.jsonl").read_bytes())
    with (tmp_path / "a.jsonl").open("r+") as file:
        file.truncate(0)
    admit(audit, "three")
    audit.close()
    trail = read_trail(list(tmp_path.iterdir()), request_id="two")
    assert (trail.problems, trail.num_lines, len(trail.found)) == ([], 4, 1)


@pytest.mark.parametrize("how", ["change", "remove", "swap", "double", "insert", "renumber"])
def test_a_line_that_was_tampered_with_is_found(tmp_path, seed, how):
    rng = random.Random(seed)
    write(tmp_path, 30)
    path = tmp_path / "audit.jsonl"
    lines = path.read_bytes().splitlines(keepends=True)
    at = rng.randrange(1, 29)
    if how == "change":
        lines[at] = lines[at].replace(b'"sets":[]', b'"sets":[7]')
    elif how == "remove":
        del lines[at]
    elif how == "swap":
        lines[at], lines[at + 1] = lines[at + 1], lines[at]
    elif how == "double":
        lines.insert(at, lines[at])
    elif how == "insert":
        lines.insert(at, b"{}\n")
    else:  # with the numbers made good again
        del lines[at]
        lines = [json.dumps({**json.loads(line), "seq": i}).encode() + b"\n" for i, line in enumerate(lines, 1)]
    path.write_bytes(b"".join(lines))
    assert read_trail([path]).problems, f"seed {seed}"


def test_lines_cut_off_the_end_are_found_with_a_digest_that_was_noted_elsewhere(tmp_path):
    write(tmp_path, 5)
    path = tmp_path / "audit.jsonl"
    noted = read_trail([path]).digest
    path.write_bytes(b"".join(path.read_bytes().splitlines(keepends=True)[:-1]))
    assert read_trail([path]).problems == []
    assert "changed or removed" in read_trail([path], anchor=noted).problems[0]


def test_a_line_that_a_power_cut_tore_is_removed_at_the_start_and_that_is_said(tmp_path):
    write(tmp_path, 3)
    path = tmp_path / "audit.jsonl"
    with path.open("ab") as file:
        file.write(b'{"seq":5,"prev')
    write(tmp_path, 1)
    assert read_trail([path]).problems == []
    assert json.loads(path.read_bytes().splitlines()[4])["removed_bytes"] == 14


def test_a_file_that_is_no_audit_log_is_left_alone(tmp_path):
    (tmp_path / "notes").write_text("dear diary\n")
    with pytest.raises(OSError, match="not an audit log's"):
        Audit(tmp_path / "notes", max_bytes=LARGE)
    assert (tmp_path / "notes").read_text() == "dear diary\n"


def test_two_servers_cannot_write_one_log(tmp_path):
    audit = Audit(tmp_path, max_bytes=LARGE)
    with pytest.raises(OSError, match="another process writes"):
        Audit(tmp_path, max_bytes=LARGE)
    audit.close()
    Audit(tmp_path, max_bytes=LARGE).close()


def test_concurrent_lines_make_one_chain(tmp_path):
    audit = Audit(tmp_path, max_bytes=20_000)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda n: (admit(audit, f"r{n}"), audit.sync()), range(400)))
    audit.close()
    trail = read_trail(files(tmp_path))
    assert (trail.problems, trail.num_lines, trail.open_requests) == ([], 401, 400)


def test_a_requests_lines_are_found_by_both_of_its_ids(tmp_path):
    audit = Audit(tmp_path, max_bytes=LARGE)
    for event in ("admitted", "ended"):
        audit.append(event, request="cmpl-x", client_request="x")
    admit(audit, "cmpl-y")
    audit.close()
    for name in ("cmpl-x", "x"):
        trail = read_trail(files(tmp_path), request_id=name)
        assert [line["event"] for line in trail.found] == ["admitted", "ended"]
        assert trail.open_requests == 1


FULL_DISK = """
import json, resource, signal, sys
from pathlib import Path
from unlearngate.errors import AuditUnavailableError
from unlearngate.server.audit.log import Audit
audit = Audit(Path(sys.argv[1]), max_bytes=2**30)
_, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), hard))
refused = 0
for n in range(50):
    try:
        audit.append("admitted", request=f"r{n}", client_request=None)
    except AuditUnavailableError as error:
        refused += 1
        assert "File too large" in error.message, error.message
try:
    audit.check()
    raise SystemExit("a full disk went unnoticed")
except AuditUnavailableError:
    pass
resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
audit.check()
audit.append("admitted", request="last", client_request=None)
print(refused)
"""


def test_a_full_disk_refuses_leaves_no_torn_line_and_is_told_once_there_is_room(tmp_path, seed):
    limit = random.Random(seed).randrange(1000, 4000)
    done = subprocess.run(
        [sys.executable, "-c", FULL_DISK, str(tmp_path), str(limit)], capture_output=True, text=True, timeout=100
    )
    assert done.returncode == 0, f"seed {seed}: {done.stderr}"
    refused = int(done.stdout)
    path = tmp_path / "audit.jsonl"
    trail = read_trail([path])
    lines = [json.loads(line) for line in path.read_bytes().splitlines()]
    assert (trail.problems, lines[-1]["request"]) == ([], "last"), f"seed {seed}"
    assert refused > 0
    assert (lines[-2]["event"], lines[-2]["lost_lines"]) == ("resumed", refused)
    assert trail.num_lines == 1 + (50 - refused) + 2


def test_a_folder_that_is_taken_away_refuses(tmp_path):
    folder = tmp_path / "logs"
    folder.mkdir()
    audit = Audit(folder, max_bytes=LARGE)
    folder.rename(tmp_path / "away")
    with pytest.raises(AuditUnavailableError, match="No such file"):
        admit(audit, "lost")
    (tmp_path / "away").rename(folder)
    audit.check()
    admit(audit, "kept")
    audit.close()
    trail = read_trail(files(folder))
    assert (trail.problems, trail.num_lines) == ([], 3)
