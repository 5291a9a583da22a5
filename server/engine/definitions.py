"""Definitions that take long to compile are tried first, in a process that can be killed.

The engine compiles a definition in a thread, which nothing can stop: not a time limit, and not the client hanging up.
So what is large compiles first in `compiling`, and reaches the engine only if that was done in time.
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

from unlearngate.server.engine.compat import VLLMValidationError

logger = logging.getLogger(__name__)

_KINDS = ("json", "regex", "grammar", "structural_tag")
_SMALL_BYTES = 2048  # compiles in well under a second, unless it has large numbers in it
_LARGE_NUMBER = re.compile(r"\d{3}")
_REMEMBERED = 1024


class Definitions:
    """What answers may be asked to match, as far as it is known to compile in time."""

    def __init__(self, tokenizer: str, vocab_size: int, most_s: float) -> None:
        """Start nothing yet.

        Args:
            tokenizer: the folder of the engine's.
            vocab_size: V, the number of the target's logits.
            most_s: seconds that a definition may take to compile, in one thread.
        """
        self._command = (sys.executable, "-m", __name__.replace("definitions", "compiling"), tokenizer, str(vocab_size))
        self._most_s = most_s
        self._known: OrderedDict[bytes, None] = OrderedDict()
        self._one_at_a_time = asyncio.Lock()
        self._process: asyncio.subprocess.Process | None = None

    async def admit(self, asked: Any) -> None:
        """Return once the definition is known to compile in time. If the caller is cancelled, so is the compilation.

        Args:
            asked: vLLM's structured output parameters, or None.

        Raises: VLLMValidationError if it takes longer.
        """
        for kind in _KINDS:
            definition = getattr(asked, kind, None)
            if definition:
                await self._admit(kind, definition if isinstance(definition, str) else json.dumps(definition))

    async def _admit(self, kind: str, definition: str) -> None:
        if len(definition) < _SMALL_BYTES and not _LARGE_NUMBER.search(definition):
            return
        digest = hashlib.sha256(f"{kind} {definition}".encode()).digest()
        async with self._one_at_a_time:
            if digest in self._known:
                self._known.move_to_end(digest)
                return
            process = self._process or await self._start()
            if process is None:
                return
            await self._compile(process, kind, definition)
            self._known[digest] = None
            if len(self._known) > _REMEMBERED:
                self._known.popitem(last=False)

    async def _compile(self, process: asyncio.subprocess.Process, kind: str, definition: str) -> None:
        assert process.stdin and process.stdout
        self._process = None  # unless it answers it is killed, whatever happens meanwhile
        what, answer = "JSON schema" if kind == "json" else kind, b""
        try:
            process.stdin.write(json.dumps({"kind": kind, "definition": definition}).encode() + b"\n")
            async with asyncio.timeout(self._most_s):
                answer = await process.stdout.readline()
        except TimeoutError:
            raise VLLMValidationError(
                f"this {what} takes more than {self._most_s:g} s to compile (--max-compile-s): ask for fewer "
                "properties, alternatives or repeats",
                parameter="structured_outputs",
            ) from None
        finally:
            if answer:
                self._process = process
            else:
                await _kill(process)
        if not answer:
            raise VLLMValidationError(f"this {what} ends the compiler", parameter="structured_outputs")

    async def _start(self) -> asyncio.subprocess.Process | None:
        pipe, answer = asyncio.subprocess.PIPE, b""
        process = await asyncio.create_subprocess_exec(*self._command, stdin=pipe, stdout=pipe)
        assert process.stdout
        try:
            answer = await process.stdout.readline()
        finally:
            if answer:
                self._process = process
            else:
                await _kill(process)
        if not answer:
            logger.warning("no definition is tried before the engine compiles it: its tokenizer cannot be read here")
        return self._process

    async def close(self) -> None:
        """End the process, if there is one."""
        if self._process:
            await _kill(self._process)


async def _kill(process: asyncio.subprocess.Process) -> None:
    with suppress(ProcessLookupError):
        process.kill()
    await process.wait()
