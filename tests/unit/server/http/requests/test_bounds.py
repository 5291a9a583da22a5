"""What one request may ask for: just at a bound it goes through, just above it is a 400 that names the bound."""

import json
import random
import re
from dataclasses import replace

import pytest

from unlearngate.errors import InvalidRequestError
from unlearngate.server.http.requests.bounds import Bounds, written_out

BOUNDS = Bounds(
    sequences=6,
    prompt_chars=50,
    request_chars=80,
    messages=5,
    definition_kb=2,
    definition_items=4,
    repeats=20,
    biases=3,
    parameters_kb=2,
)


def properties(count):
    return {"type": "object", "properties": {f"p{i}": {"type": "string"} for i in range(count)}}


def schema(value):
    return {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": value}}}


def tool(value, **more):
    return {"tools": [{"type": "function", "function": {"name": "a", "parameters": value, **more}}]}


def flat(value, **more):
    return {"tools": [{"type": "function", "name": "a", "parameters": value, **more}]}


def format_of(value):
    return {"text": {"format": {"type": "json_schema", "name": "a", "schema": value}}}


# The option, the field that is blamed, and a body for a number that is at, and one above, the bound.
CASES = [
    ("sequences", "n", lambda n: {"messages": [], "n": n}),
    ("sequences", "n", lambda n: {"prompt": ["a", "b"], "n": n // 2} if n == 6 else {"prompt": ["a"] * n}),
    ("prompt-chars", "prompt", lambda n: {"prompt": "a" * n}),
    ("prompt-chars", "prompt", lambda n: {"prompt": ["b", "a" * n]}),
    ("prompt-chars", "messages", lambda n: {"messages": [{"content": "a" * (n - 4)}, {"content": [{"text": "aaaa"}]}]}),
    ("prompt-chars", "messages", lambda n: {"messages": [], "tools": [{"function": {"name": "a" * (n - 12)}}]}),
    ("prompt-chars", "messages", lambda n: {"messages": [], "documents": [{"a" * (n - 1): "b"}]}),
    ("prompt-chars", "messages", lambda n: {"messages": [], "chat_template_kwargs": {"a": "b" * (n - 1)}}),
    ("request-chars", "prompt", lambda n: {"prompt": ["a" * 40, "b" * (n - 40)]}),
    ("request-chars", "prompt", lambda n: {"prompt": "a" * 40, "bad_words": ["b" * (n - 41), "c"]}),
    (
        "request-chars",
        "prompt",
        lambda n: {"prompt": "a" * 40, "bad_words": "b" * (n - 40), "truncate_prompt_tokens": 1},
    ),
    ("messages", "messages", lambda n: {"messages": [{}] * n}),
    ("messages", "messages", lambda n: {"messages": [{"content": ["a"] * (n - 4)}, {"content": [{}, {}]}]}),
    ("messages", "messages", lambda n: {"messages": [{"tool_calls": [{}] * (n - 1)}]}),
    ("messages", "messages", lambda n: {"messages": [{"role": "user"}], "tools": [{}] * (n - 1)}),
    ("parameters-kb", "allowed_token_ids", lambda n: {"allowed_token_ids": [55] * (256 * n)}),
    (
        "parameters-kb",
        "allowed_token_ids",
        lambda n: {"allowed_token_ids": [55] * 256, "prompt": ["a", "b"], "n": n // 2 + n % 2},
    ),
    ("parameters-kb", "vllm_xargs", lambda n: {"vllm_xargs": {"a": "b" * (1024 * n - 10)}}),
    ("parameters-kb", "stop", lambda n: {"stop": ["b" * (512 * n - 8)] * 2}),
    ("parameters-kb", "stop", lambda n: {"stop": "b" * (512 * n - 20), "logit_bias": {"1": 0.5, "2": 0.5}, "n": 2}),
    ("definition-kb", "response_format", lambda n: schema({"enum": ["a" * 1024 * n if n > 2 else "a"]})),
    ("definition-kb", "structured_outputs", lambda n: {"structured_outputs": {"choice": ["a" * 990 * n]}}),
    ("definition-items", "response_format", lambda n: schema(properties(n))),
    ("definition-items", "response_format", lambda n: schema({"anyOf": [{"const": i} for i in range(n)]})),
    ("definition-items", "structured_outputs", lambda n: {"structured_outputs": {"json": json.dumps(properties(n))}}),
    ("definition-items", "structured_outputs", lambda n: {"structured_outputs": {"grammar": "\n".join("a" * n)}}),
    ("definition-items", "tools", lambda n: tool(properties(n), strict=True)),
    ("definition-items", "tools", lambda n: {**tool(properties(n)), "tool_choice": "required"}),
    ("repeats", "response_format", lambda n: schema({"type": "string", "maxLength": n})),
    ("repeats", "response_format", lambda n: schema({"properties": {"a": {"items": {}, "minItems": n}}})),
    ("repeats", "response_format", lambda n: schema({"type": "string", "pattern": f"^[a-z]{{0,{n - 2}}}$"})),
    ("repeats", "structured_outputs", lambda n: {"structured_outputs": {"regex": f"x{{{n}}}"}}),
    ("repeats", "guided_regex", lambda n: {"guided_regex": f"(ab){{0,{n // 2}}}" + "c" * (n % 2)}),
    ("biases", "logit_bias", lambda n: {"logit_bias": {str(i): 1 for i in range(n)}}),
    ("biases", "bad_words", lambda n: {"bad_words": ["a"] * n}),
    # /v1/responses
    ("prompt-chars", "input", lambda n: {"input": "a" * n}),
    ("prompt-chars", "input", lambda n: {"input": [{"content": "a" * (n - 4)}, {"content": [{"text": "aaaa"}]}]}),
    ("prompt-chars", "input", lambda n: {"input": "a", "instructions": "a" * (n - 1)}),
    ("prompt-chars", "input", lambda n: {"input": [], "tools": [{"name": "a" * (n - 4)}]}),
    ("messages", "input", lambda n: {"input": [{}] * n}),
    ("messages", "input", lambda n: {"input": [{"content": ["a"] * (n - 4)}, {"output": [{}, {}]}]}),
    ("messages", "input", lambda n: {"input": [{"role": "user"}], "tools": [{}] * (n - 1)}),
    ("definition-kb", "text", lambda n: format_of({"enum": ["a" * 1024 * n if n > 2 else "a"]})),
    ("definition-items", "text", lambda n: format_of(properties(n))),
    ("definition-items", "tools", lambda n: flat(properties(n), strict=True)),
    ("definition-items", "tools", lambda n: {**flat(properties(n)), "tool_choice": "required"}),
    ("repeats", "text", lambda n: format_of({"type": "string", "maxLength": n})),
    # A field that the route does not read hides none that it does.
    ("prompt-chars", "prompt", lambda n: {"messages": [], "input": "", "prompt": "a" * n}),
    ("prompt-chars", "messages", lambda n: {"messages": [{"content": "a" * n}], "input": "", "prompt": ""}),
    ("prompt-chars", "input", lambda n: {"messages": [], "input": "a" * n, "prompt": ""}),
]


@pytest.mark.parametrize("option, field, body", CASES)
def test_what_is_at_a_bound_goes_through_and_what_is_above_names_it(option, field, body):
    most = getattr(BOUNDS, option.replace("-", "_"))
    BOUNDS.check(body(most))
    with pytest.raises(InvalidRequestError, match=rf"at most {most:,} \(--max-{option}\)") as refused:
        BOUNDS.check(body(most + 1))
    assert refused.value.param == field


@pytest.mark.parametrize(
    "body",
    [
        schema({"enum": [f"v{i}" for i in range(100)]}),  # plain values compile fast
        flat(properties(100)),
        {"text": "json", "input": 5, "instructions": [1]},
        tool(properties(100)),  # a tool that may be called makes no grammar
        {"prompt": list(range(1000))},
        {"messages": None, "n": "many", "tools": {}, "response_format": "json", "logit_bias": 1},
        [1],
        "text",
    ],
)
def test_what_no_bound_is_for_goes_through(body):
    BOUNDS.check(body)


def test_what_is_nested_without_end_is_refused_as_well():
    nested = "(" * 2000 + "a" + "){999999999}" * 2000
    with pytest.raises(InvalidRequestError, match="--max-repeats"):
        replace(BOUNDS, definition_kb=64).check({"structured_outputs": {"regex": nested}})
    deep = {}
    for _ in range(100_000):
        deep = {"a": deep}
    with pytest.raises(InvalidRequestError, match="nested too deeply"):
        BOUNDS.check(schema(deep))


@pytest.mark.parametrize(
    "pattern, size",
    [
        ("", 0),
        ("abc", 3),
        ("(ab{3}){0,10}", 40),
        (r"\d{4}-\d{2}", 7),
        ("[a{9}]{2,}", 2),
        (r"a\{3\}", 4),
        ('"{9}" "b"{2}', 4),
        ("((a{10}){10}){10}", 1000),
        ("{3}", 3),
        ("a{0,999999999999}", 999999999),
    ],
)
def test_repeats_are_written_out(pattern, size):
    assert written_out(pattern) == size


def test_what_is_written_out_is_as_long_as_what_it_matches(seed):
    rng = random.Random(seed)

    def draw(depth):
        """A pattern that matches one text, and that text."""
        pattern = text = ""
        for _ in range(3):
            part = matched = rng.choice("abc")
            if depth and rng.random() < 0.5:
                inner, matched = draw(depth - 1)
                part = f"({inner})"
            times = rng.randrange(1, 4)
            pattern += part + (f"{{{times}}}" if times > 1 else "")
            text += matched * times
        return pattern, text

    for _ in range(50):
        pattern, text = draw(3)
        assert re.fullmatch(pattern, text)
        assert written_out(pattern) == len(text), pattern
