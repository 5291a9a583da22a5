"""Commands in processes of their own, copied from one that has imported what they import: that takes most of a start.

Run as a program it is that process: it reads a JSON line for each command, copies itself, and answers with the copy's
process id. When a copy ends its exit code is in the file that the line names.
"""

from __future__ import annotations

import atexit
import json
import os
import runpy
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache
from importlib import import_module
from pathlib import Path

import setproctitle

IMPORTED = (
    "unlearngate.cli",
    "unlearngate.assistant_training.demo.build",
    "unlearngate.server.launch",
    "unlearngate.server.http.app",
    "unlearngate.server.http.admin",
    "vllm.entrypoints.launchers.api_server.entry",
    "vllm.entrypoints.launchers.api_server.app_state",
    "vllm.v1.engine.core",
    "vllm.v1.engine.llm_engine",
    "vllm.v1.executor.multiproc_executor",
    "vllm.v1.worker.cpu_worker",
    "vllm.model_executor.models.llama",
    "transformers.models.llama.modeling_llama",
    "support.engine.reference",
)


class Process:
    """Such a command, with what tests use of `subprocess.Popen`."""

    def __init__(self, pid: int, code: Path) -> None:
        self.pid, self._code = pid, code

    @property
    def returncode(self) -> int | None:
        return self.poll()

    def poll(self) -> int | None:
        """The exit code, negative for a signal, or None while it runs."""
        text = self._code.read_text() if self._code.exists() else ""
        return int(text) if text.endswith("\n") else None

    def wait(self, timeout: float | None = None) -> int:
        """The exit code, or subprocess.TimeoutExpired."""
        deadline = None if timeout is None else time.monotonic() + timeout
        while (code := self.poll()) is None:
            if deadline is not None and time.monotonic() > deadline:
                raise subprocess.TimeoutExpired(str(self.pid), timeout)
            time.sleep(0.02)
        return code

    def send_signal(self, number: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, number)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def run(module: str, arguments: list[object], out: Path, env: dict[str, str]) -> Process:
    """Start `python -m module arguments`, as the leader of a session, with all of its output in a file."""
    code = out.with_name(f"{out.name}.code")
    code.unlink(missing_ok=True)
    line = {"module": module, "arguments": [str(a) for a in arguments], "out": str(out), "code": str(code), "env": env}
    line["cwd"] = os.getcwd()
    preloaded = _preloaded()
    preloaded.stdin.write(json.dumps(line) + "\n")
    preloaded.stdin.flush()
    return Process(int(preloaded.stdout.readline()), code)


@cache
def _preloaded() -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "support.preloaded"]
    paths = [str(Path(__file__).parents[1]), *filter(None, [os.environ.get("PYTHONPATH")])]
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(paths)}
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=env)
    atexit.register(process.communicate)  # it ends with its input
    return process


def main() -> None:
    running: dict[int, str] = {}

    def reap(*_: object) -> None:
        while running:
            pid, status = os.waitpid(-1, os.WNOHANG)
            if not pid:
                return
            Path(running.pop(pid)).write_text(f"{os.waitstatus_to_exitcode(status)}\n")

    for module in IMPORTED:
        import_module(module)
    setproctitle.getproctitle()  # finds where the title is, which it cannot once the environment is another
    signal.signal(signal.SIGCHLD, reap)
    for text in sys.stdin:
        line = json.loads(text)
        signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGCHLD})
        if (pid := os.fork()) == 0:
            signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
            _become(line)
        running[pid] = line["code"]
        signal.pthread_sigmask(signal.SIG_UNBLOCK, {signal.SIGCHLD})
        print(pid, flush=True)


def _become(line: dict) -> None:
    """Run the command in this process, a copy, and end it as the interpreter would."""
    os.setsid()
    os.chdir(line["cwd"])
    os.environ.clear()
    os.environ.update(line["env"])
    tempfile.tempdir = None  # TMPDIR may be another
    out = os.open(line["out"], os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
    for descriptor, place in ((os.open(os.devnull, os.O_RDONLY), 0), (out, 1), (out, 2)):
        os.dup2(descriptor, place)
    sys.argv = [line["module"], *line["arguments"]]
    code: object = 1
    try:
        runpy.run_module(line["module"], run_name="__main__", alter_sys=True)
        code = 0
    except SystemExit as end:
        code = end.code
        if isinstance(code, str):
            print(code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code if isinstance(code, int) else int(code is not None))


if __name__ == "__main__":
    main()
