"""Large definitions are tried in a process that can be killed: by the time limit, and when the client is gone."""

import asyncio
import json
import logging
import sys
from contextlib import asynccontextmanager
from types import SimpleNamespace

import psutil
import pytest
import xgrammar
from transformers import AutoTokenizer
from vllm.exceptions import VLLMValidationError

from support.engine.tiny import make_target
from unlearngate.errors import TooManyRequestsError
from unlearngate.server.engine.compiling import _compile
from unlearngate.server.engine.definitions import Definitions

SMALL = {"type": "object", "properties": {"a": {"type": "string"}}}

LEGACY_TAG = {"structures": [{"begin": "<f>", "schema": SMALL, "end": "</f>"}], "triggers": ["<f"]}
TAG = {"type": "structural_tag", "format": {"type": "json_schema", "json_schema": SMALL}}


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
            assert process.nice() == min(19, psutil.Process().nice() + 10)
            await tried.admit(asked(grammar="root ::= " + "x" * 3000))  # does not compile: the engine says so
            await tried.admit(asked(regex="[a-z]{2,100}"))
            process.kill()
            process.wait()
            await tried.admit(asked(json=json.dumps(large(100))))  # known
            assert not compilers()
            await tried.admit(asked(regex="(a|b)*c"))
            assert [p for p in compilers() if p != process]

    asyncio.run(run())


def helper(then):
    """A stand-in that is ready at once, and then does this with the definition whose number of properties is 100."""
    return (sys.executable, "-c", f"""
import sys, time
print("ready", flush=True)
for line in sys.stdin:  # compiling
    if "property 99" in line and "property 100" not in line:
        {then}
    print("done", flush=True)
""")  # fmt: skip


@pytest.mark.parametrize("then", ["time.sleep(600)", "while True: pass"])
def test_the_time_limit_ends_a_compilation_and_the_next_one_is_tried(tokenizer, then):
    async def run():
        async with definitions(tokenizer, most_s=0.3) as tried:
            tried._command = helper(then)
            for _ in range(2):  # the second time it is known
                with pytest.raises(VLLMValidationError, match=r"more than 0\.3 s to compile \(--max-compile-s"):
                    await tried.admit(asked(json=large(100)))
                assert not compilers()
            await tried.admit(asked(json=large(101)))

    asyncio.run(run())


def test_a_client_that_is_gone_takes_its_compilation_along(tokenizer):
    async def run():
        async with definitions(tokenizer) as tried:
            for started in (False, True):  # the real one while it starts, and one while it compiles
                if started:
                    await tried.close()
                    tried._command = helper("time.sleep(600)")
                gone = asyncio.create_task(tried.admit(asked(json=large(100))))
                while not compilers():
                    await asyncio.sleep(0.01)
                (process,) = compilers()
                if started:
                    await asyncio.sleep(1)
                    waiting = asyncio.create_task(tried.admit(asked(json=large(101))))
                    await asyncio.sleep(0)
                gone.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await gone
                assert not process.is_running()
            await waiting

    asyncio.run(run())


@pytest.mark.parametrize(
    "kind, definition",
    [
        ("json", json.dumps(SMALL)),
        ("regex", "(a|b)*"),
        ("choice", json.dumps(["yes", 'or "no"', "da nicht für"])),
        ("grammar", 'root ::= "a" | "b"'),
        ("grammar", 'start: "a" | "b"'),
        (
            "structural_tag",
            json.dumps({"structures": [{"begin": "<f>", "schema": SMALL, "end": "</f>"}], "triggers": ["<f"]}),
        ),
        (
            "structural_tag",
            json.dumps({"type": "structural_tag", "format": {"type": "json_schema", "json_schema": SMALL}}),
        ),
    ],
)
def test_every_kind_of_definition_compiles(tokenizer, kind, definition):
    vocabulary = xgrammar.TokenizerInfo.from_huggingface(AutoTokenizer.from_pretrained(tokenizer), vocab_size=512)
    _compile(xgrammar.GrammarCompiler(vocabulary, max_threads=1), kind, definition)


def test_a_definition_that_ends_the_process_twice_is_refused_and_the_queue_is_bounded(tokenizer):
    async def run():
        async with definitions(tokenizer) as tried:
            tried._command = (sys.executable, "-c", "print('ready', flush=True); input()")
            with pytest.raises(VLLMValidationError, match="JSON schema ends the compiler"):
                await tried.admit(asked(json=large(100)))
            tried._command = (sys.executable, "-c", "print('ready', flush=True); input(); input()")
            waiting = [asyncio.create_task(tried.admit(asked(json=large(200 + i)))) for i in range(32)]
            await asyncio.sleep(0)
            with pytest.raises(TooManyRequestsError):
                await tried.admit(asked(json=large(100 + 99)))
            with pytest.raises(VLLMValidationError):  # it is known
                await tried.admit(asked(json=large(100)))
            for one in waiting:
                one.cancel()
            await asyncio.gather(*waiting, return_exceptions=True)
            assert not compilers()

    asyncio.run(run())


def test_a_tokenizer_that_cannot_be_read_is_said_and_stops_nobody(tmp_path, caplog):
    async def run():
        async with definitions(tmp_path) as tried:
            for n in (100, 101):
                await tried.admit(asked(json=large(n)))

    with caplog.at_level(logging.WARNING):
        asyncio.run(run())
    assert caplog.text.count("the tokenizer cannot be read") == 1
