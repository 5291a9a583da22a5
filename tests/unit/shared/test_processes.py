"""The processes of a server's engine: they outlive a Ctrl-C, but not the server; copies are as if they were new."""

import gc
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from unlearngate.commands.serve import _uncollected
from unlearngate.processes import collect_from_now

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="other systems have no signal for a parent's end")

SERVER = """
import multiprocessing, os, time
from unlearngate.processes import leave_group_and_end_with_parent

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


COPYING = """
import json, logging, os, signal, socket, sys, threading, torch
from unlearngate.processes import ForkContext, may_fork, use_one_thread

def report(send):
    fields = {"group": os.getpgid(0) == os.getpid(), "threads": torch.get_num_threads(), "may": may_fork()}
    fields["handlers"] = [signal.getsignal(n) is d for n, d in defaults.items()]
    kept = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if os.path.lexists(entry.path)]
    fields["closed"] = inode not in kept
    logging.getLogger("vllm").info("from the engine")
    fields["sum"] = float(torch.ones(2**20).sum())  # would wait for OpenMP's threads of the parent
    send.send(fields)

if __name__ == "__main__":
    num_threads = use_one_thread()
    torch.ones(2**20).sum()
    defaults = {signal.SIGTERM: signal.SIG_DFL, signal.SIGINT: signal.default_int_handler}
    for number in defaults:
        signal.signal(number, lambda *_: None)
    listener = socket.create_server(("127.0.0.1", 0))
    inode = f"socket:[{os.fstat(listener.fileno()).st_ino}]"
    assert os.readlink(f"/proc/self/fd/{listener.fileno()}") == inode
    threading.Thread(target=threading.Event().wait, daemon=True).start()
    receive, send = ForkContext(1).Pipe(duplex=False)
    several = may_fork()
    copy = ForkContext(num_threads, [listener.fileno()]).Process(target=report, args=(send,))
    copy.start()
    print(json.dumps({**receive.recv(), "several": several, "wanted": num_threads}))
    copy.join()
    sys.exit(copy.exitcode)
"""


def test_a_copy_has_its_own_handlers_threads_and_log_and_not_the_servers_socket(tmp_path):
    (tmp_path / "copying.py").write_text(COPYING)
    handlers = {"file": {"class": "logging.FileHandler", "filename": str(tmp_path / "log")}}
    loggers = {"vllm": {"handlers": ["file"], "level": "INFO"}}
    (tmp_path / "logging.json").write_text(json.dumps({"version": 1, "handlers": handlers, "loggers": loggers}))
    environment = {**os.environ, "OMP_NUM_THREADS": "2", "VLLM_LOGGING_CONFIG_PATH": str(tmp_path / "logging.json")}
    command = [sys.executable, tmp_path / "copying.py"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout) == {
        "group": True, "threads": 2, "may": True, "handlers": [True, True], "closed": True, "sum": 2.0**20,
        "several": False, "wanted": 2,
    }  # fmt: skip
    assert (tmp_path / "log").read_text() == "from the engine\n"


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except (FileNotFoundError, ProcessLookupError):
        return False


def test_nothing_is_collected_until_it_is_said_and_an_error_leaves_nothing_uncollected():
    with pytest.raises(ValueError), _uncollected():
        assert not gc.isenabled()
        collect_from_now()
        assert gc.isenabled() and gc.get_freeze_count()
        raise ValueError
    assert gc.isenabled() and not gc.get_freeze_count()
