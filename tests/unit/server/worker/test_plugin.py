"""The processes of a server's engine: they outlive a Ctrl-C, but not the server."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

SERVER = """
import multiprocessing, os, time
from unlearngate.server.worker.plugin import leave_group_and_end_with_parent

def engine(depth):
    leave_group_and_end_with_parent()
    worker = multiprocessing.get_context("METHOD").Process(target=engine, args=(depth - 1,)) if depth else None
    if worker:
        worker.start()
    os.write(1, b"%d %d\\n" % (os.getpid(), os.getpgid(0)))  # whole lines, however Python buffers
    time.sleep(300)

if __name__ == "__main__":
    leave_group_and_end_with_parent()
    multiprocessing.get_context("METHOD").Process(target=engine, args=(1,)).start()
    time.sleep(300)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal for a parent's end")
@pytest.mark.parametrize("method", ["fork", "spawn"])
def test_an_engine_and_its_workers_leave_the_group_of_their_server_and_end_when_it_is_killed(tmp_path, method):
    (tmp_path / "server.py").write_text(SERVER.replace("METHOD", method))
    server = subprocess.Popen(
        [sys.executable, tmp_path / "server.py"], stdout=subprocess.PIPE, text=True, start_new_session=True
    )
    with server:
        started = [tuple(map(int, server.stdout.readline().split())) for _ in range(2)]
        assert os.getpgid(server.pid) == server.pid
        assert all(group == pid for pid, group in started)
        server.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 30
    while any(_runs(pid) for pid, _ in started):
        assert time.monotonic() < deadline
        time.sleep(0.05)


QUICK = """
import atexit, multiprocessing, os, sys
from unlearngate.server.worker.plugin import end_without_teardown

class Slow:
    def __del__(self):
        print("torn down", flush=True)

def work(code):
    global kept
    kept = Slow()
    kept.itself = kept
    end_without_teardown()
    atexit.register(print, "said goodbye")
    try:
        sys.exit(9)
    except SystemExit as leaving:
        print("still an exception", leaving.code)
    if code:
        raise ValueError("no")

if __name__ == "__main__":
    codes = []
    for code in (0, 1):
        process = multiprocessing.get_context("spawn").Process(target=work, args=(code,))
        process.start()
        process.join()
        codes.append(process.exitcode)
    print(codes)
"""


def test_a_spawned_process_ends_with_its_code_and_without_teardown(tmp_path):
    (tmp_path / "quick.py").write_text(QUICK)
    done = subprocess.run([sys.executable, tmp_path / "quick.py"], capture_output=True, text=True, timeout=120)
    assert done.stdout.splitlines() == ["still an exception 9", "said goodbye"] * 2 + ["[0, 1]"], done.stderr
    assert done.stderr.count("ValueError: no") == 1


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False
