"""What compilers say of a definition, and an engine that fails without a word: a sentence that has the reason."""

import asyncio
from types import SimpleNamespace

import pytest
from transformers import AutoTokenizer
from vllm.config import StructuredOutputsConfig
from vllm.exceptions import VLLMError, VLLMServerError, VLLMValidationError
from vllm.sampling_params import SamplingParams, StructuredOutputsParams
from vllm.v1.engine.exceptions import EngineGenerateError

from support.engine.tiny import make_target
from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, sign
from unlearngate.server.contract.tally import Tally
from unlearngate.server.engine.client import count_tokens
from unlearngate.server.engine.reasons import explained
from unlearngate.server.engine.usage import Meter

CASES = [
    ({"regex": "("}, "structured_outputs.regex cannot be used: unclosed group"),
    ({"regex": "a{5,2}"}, "structured_outputs.regex cannot be used: invalid repetition count range"),
    ({"regex": "(?=a)b"}, "structured_outputs.regex cannot be used: look-around"),
    ({"json": {"type": "string", "pattern": "("}}, "the JSON schema (response_format, structured_outputs.json or a"),
    ({"json": {"type": "string", "pattern": "("}}, "cannot be used: unclosed group"),
    ({"json": {"type": "strng"}}, "cannot be used: Invalid type: strng"),
    ({"json": {"$ref": "#/nope"}}, "cannot be used: Pointer '/nope' does not exist"),
    ({"json": "{"}, "cannot be used: Expecting property name"),
    ({"json": "[1]"}, "cannot be used: Expecting object schema"),
    ({"grammar": "root ::= undefined"}, "structured_outputs.grammar cannot be used: Rule 'undefined' not found"),
    ({"grammar": "start: foo"}, 'structured_outputs.grammar cannot be used: unknown name: "foo"'),
    ({"structural_tag": "{}"}, "the structural tag (response_format"),
]


@pytest.fixture(scope="module")
def tokenizer(tmp_path_factory):
    return AutoTokenizer.from_pretrained(make_target(tmp_path_factory.mktemp("target"), seed=1))


def refused(params, backend, tokenizer):
    with pytest.raises(VLLMError) as error:
        params._validate_structured_outputs(
            SimpleNamespace(is_diffusion=False), StructuredOutputsConfig(backend=backend), tokenizer
        )
    return error.value


@pytest.mark.parametrize("definition, sentence", CASES, ids=str)
def test_a_definition_that_does_not_compile_is_named_with_the_reason(tokenizer, definition, sentence):
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**definition))
    error = explained(refused(params, "auto", tokenizer), params)
    assert isinstance(error, VLLMValidationError) and sentence in str(error)
    assert "\n" not in str(error) and "Grammar error" not in str(error)


@pytest.mark.parametrize("definition", [case[0] for case in CASES], ids=str)
def test_with_xgrammar_alone_as_well(tokenizer, definition):
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**definition))
    message = str(explained(refused(params, "xgrammar", tokenizer), params))
    assert "cannot be used: " in message and not message.endswith(": ")
    assert "\n" not in message and ".cc:" not in message and "specification" not in message


@pytest.mark.parametrize("definition", [{"choice": []}, {"json_object": False}, {"regex": "\0"}], ids=str)
def test_a_sentence_of_vllm_stays(tokenizer, definition):
    params = SamplingParams(structured_outputs=StructuredOutputsParams(**definition))
    assert explained(refused(params, "auto", tokenizer), params) is None


def ask(meter, failure):
    """What a request raises if the engine fails in this way."""

    async def generate(*_, **__):
        raise failure
        yield

    async def run():
        engine = SimpleNamespace(generate=generate, engine_core=SimpleNamespace(add_request_async=None))
        count_tokens(engine, meter)
        token = sign(Plan(ticket=meter.open().ticket))
        with pytest.raises(VLLMError) as error:
            async for _ in engine.generate("a", SamplingParams(extra_args={TOKEN_FIELD: token}), "p"):
                pass
        return error.value

    return asyncio.run(run())


def caused_by(cause):
    failure = EngineGenerateError()
    failure.__cause__ = cause
    return failure


def test_an_engine_that_fails_without_a_word_is_given_some(tmp_path):
    meter = Meter(Tally.create(tmp_path, max_num_seqs=2, max_model_len=20))
    error = ask(meter, caused_by(OverflowError("can't serialize ints")))
    assert isinstance(error, VLLMValidationError) and "does not fit the 64 bits" in str(error)
    for cause, said in [(RuntimeError("no room"), "no room"), (TimeoutError(), "TimeoutError")]:
        error = ask(meter, caused_by(cause))
        assert isinstance(error, VLLMServerError) and said in str(error)
    refusal = VLLMValidationError("n is wrong", parameter="n")
    assert ask(meter, refusal) is refusal
