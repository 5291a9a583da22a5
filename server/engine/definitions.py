"""Definitions that may take long to compile are tried first, in a process that can be killed.

The engine compiles a definition in a thread, which nothing can stop: not a time limit, and not the client hanging up.
So what may take long compiles first in `compiling`, and reaches the engine only if that was done in time.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import re
import sys
from collections import OrderedDict
from contextlib import suppress
from typing import Any

import psutil

from unlearngate.errors import TooManyRequestsError
from unlearngate.server.engine.compat import VLLMValidationError

logger = logging.getLogger(__name__)

_KINDS = ("json", "regex", "choice", "grammar", "structural_tag")
_SMALL_BYTES = 2048  # compiles in well under a second, unless it has large or several numbers, or repeated groups
_MAY_TAKE_LONG = re.compile(r"\d{3}|\d{2}.*\d{2}|\)[*+{]", re.DOTALL)
_REMEMBERED = 1024
_MOST_WAITING = 32
_START_S = 300.0  # for all that the process imports, on a slow and busy machine
_LOOK_EVERY_S = 0.5
_WAITS = 10  # times the limit: how long a definition may wait for its share of a busy processor


class Definitions:
    """What answers may be asked to match, as far as it is known to compile in time."""

    def __init__(self, tokenizer: str, vocab_size: int, most_s: float) -> None:
        """Start nothing yet.

        Args:
            tokenizer: the folder of the engine's.
            vocab_size: V, the number of the target's logits.
            most_s: seconds of a processor that a definition may take to compile.
        """
        self._command = (sys.executable, "-m", __name__.replace("definitions", "compiling"), tokenizer, str(vocab_size))
        self._most_s = most_s
        self._known: OrderedDict[bytes, str] = OrderedDict()  # why a definition is refused, or ""
        self._one_at_a_time = asyncio.Lock()
        self._num_waiting = 0
        self._process: asyncio.subprocess.Process | None = None
        self._may_start = True

    async def admit(self, asked: Any) -> None:
        """Return once the definition is known to compile in time. If the caller is cancelled, so is the compilation.

        Args:
            asked: vLLM's structured output parameters, or None.

        Raises: VLLMValidationError if it takes longer; TooManyRequestsError if too many others wait to be tried.
        """
        for kind in _KINDS:
            definition = getattr(asked, kind, None)
            if definition:
                text = definition if isinstance(definition, str) else json.dumps(definition)
                if len(text) >= _SMALL_BYTES or _MAY_TAKE_LONG.search(text):
                    await self._try_once(kind, text)

    async def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            await _kill(self._process)

    async def _try_once(self, kind: str, definition: str) -> None:
        digest = hashlib.sha256(f"{kind} {definition}".encode(errors="surrogatepass")).digest()
        if digest not in self._known:
            if self._num_waiting >= _MOST_WAITING:
                raise TooManyRequestsError(
                    f"{_MOST_WAITING} definitions wait to be compiled; send this one again in a while"
                )
            self._num_waiting += 1
            try:
                async with self._one_at_a_time:
                    if digest not in self._known:
                        self._remember(digest, await self._reason_against(kind, definition))
            finally:
                self._num_waiting -= 1
        self._known.move_to_end(digest)
        if self._known[digest]:
            raise VLLMValidationError(self._known[digest], parameter="structured_outputs")

    def _remember(self, digest: bytes, reason: str) -> None:
        self._known[digest] = reason
        if len(self._known) > _REMEMBERED:
            self._known.popitem(last=False)

    async def _reason_against(self, kind: str, definition: str) -> str:
        """Why the definition is refused, or ""; also where there is no process to try it in."""
        what = "JSON schema" if kind == "json" else kind.replace("_", " ")
        for _ in range(2):  # a process that was killed from outside says nothing about the definition
            process = await self._running()
            if process is None:
                return ""
            try:
                if await self._compiles(process, kind, definition):
                    return ""
            except TimeoutError:
                return (
                    f"this {what} takes more than {self._most_s:g} s to compile (--max-compile-s): ask for fewer "
                    "properties, alternatives or repeats"
                )
        return f"this {what} ends the compiler"

    async def _compiles(self, process: asyncio.subprocess.Process, kind: str, definition: str) -> bool:
        """Whether it is compiled, or the process ended.

        Raises: TimeoutError.
        """
        assert process.stdin and process.stdout
        self._process = None  # unless it answers it is killed, whatever happens meanwhile
        answer = asyncio.ensure_future(process.stdout.readline())
        try:
            before_s = _processor_s(process)
            process.stdin.write(json.dumps({"kind": kind, "definition": definition}).encode() + b"\n")
            async with asyncio.timeout(_WAITS * self._most_s):
                while not (await asyncio.wait([answer], timeout=min(_LOOK_EVERY_S, self._most_s)))[0]:
                    if _processor_s(process) - before_s > self._most_s:
                        raise TimeoutError
            if answer.result() == b"done\n":
                self._process = process
                return True
            return False
        finally:
            if self._process is None:
                answer.cancel()
                await _kill(process)

    async def _running(self) -> asyncio.subprocess.Process | None:
        """The process, started if there is none; None if it cannot be."""
        if self._process and self._process.returncode is None:
            return self._process
        if not self._may_start:
            return None
        pipe = asyncio.subprocess.PIPE
        process, answer = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe), b""
        assert process.stdout
        try:
            with suppress(TimeoutError):
                async with asyncio.timeout(_START_S):
                    answer = await process.stdout.readline()
        finally:
            if answer == b"ready\n":
                self._process = process
            else:
                await _kill(process)
        if answer != b"ready\n":
            self._may_start, self._process = False, None
            logger.warning("definitions are not tried before the engine compiles them: the tokenizer cannot be read")
        return self._process


def _processor_s(process: asyncio.subprocess.Process) -> float:
    try:
        times = psutil.Process(process.pid).cpu_times()
    except psutil.Error:  # it ended, which its output says
        return 0.0
    return float(times.user + times.system)


async def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
