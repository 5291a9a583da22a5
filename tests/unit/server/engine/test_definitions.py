"""Large definitions are tried in a process that can be killed: by the time limit, and when the client is gone."""

import asyncio
import json
import logging
from contextlib import asynccontextmanager
from types import SimpleNamespace

import psutil
import pytest
from vllm.exceptions import VLLMValidationError

from support.engine.tiny import make_target
from unlearngate.server.engine.definitions import Definitions

SMALL = {"type": "object", "properties": {"a": {"type": "string"}}}


def large(n):
    return {"type": "object", "properties": {f"property {i}": {"type": "string"} for i in range(n)}}


def asked(**definition):
    return SimpleNamespace(**definition)


@asynccontextmanager
async def definitions(tokenizer, most_s=60.0):
    opened = Definitions(str(tokenizer), 512, most_s)
    try:
        yield opened
    finally:
        await opened.close()


def compilers():
    return [p for p in psutil.Process().children() if "compiling" in " ".join(p.cmdline())]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return make_target(tmp_path_factory.mktemp("target"), seed=1)


def test_only_a_large_definition_is_tried_and_only_once(tokenizer):
    async def run():
        async with definitions(tokenizer) as tried:
            for small in (None, asked(json=SMALL), asked(json=json.dumps(SMALL)), asked(regex="[a-z]{2,99}")):
                await tried.admit(small)
            assert not compilers()
            await tried.admit(asked(json=large(100)))
            (process,) = compilers()
            assert process.nice() == 10
            await tried.admit(asked(grammar="root ::= " + "x" * 3000))  # does not compile: the engine says so
            await tried.admit(asked(regex="[a-z]{2,100}"))
            process.kill()
            await tried.admit(asked(json=json.dumps(large(100))))  # known
            with pytest.raises(VLLMValidationError, match="regex ends the compiler"):
                await tried.admit(asked(regex="[a-z]{2,101}"))
            await tried.admit(asked(regex="[a-z]{2,101}"))
            assert [p for p in compilers() if p != process]

    asyncio.run(run())


def test_the_time_limit_ends_a_compilation_and_the_next_one_is_tried(tokenizer):
    async def run():
        async with definitions(tokenizer, most_s=1e-4) as tried:
            with pytest.raises(VLLMValidationError, match=r"more than 0\.0001 s to compile \(--max-compile-s"):
                await tried.admit(asked(json=large(100)))
            assert not compilers()
            tried._most_s = 60.0
            await tried.admit(asked(json=large(100)))

    asyncio.run(run())


def test_a_client_that_is_gone_takes_its_compilation_along(tokenizer):
    async def run():
        async with definitions(tokenizer) as tried:
            for _ in range(2):  # while the process starts, and while it compiles
                gone = asyncio.create_task(tried.admit(asked(json=large(512))))
                while not compilers():
                    await asyncio.sleep(0.01)
                (process,) = compilers()
                waiting = asyncio.create_task(tried.admit(asked(json=large(100))))
                await asyncio.sleep(0)
                gone.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await gone
                assert not process.is_running()
                await waiting

    asyncio.run(run())


def test_a_tokenizer_that_cannot_be_read_is_said_and_stops_nobody(tmp_path, caplog):
    async def run():
        async with definitions(tmp_path) as tried:
            await tried.admit(asked(json=large(100)))

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert "its tokenizer cannot be read here" in caplog.text
