"""Bodies from a grammar of OpenAI's API: all documented fields, valid values up to extreme ones."""

from __future__ import annotations

import random
from collections.abc import Callable
from typing import Any

MODEL = "demo"
SETS = ("oona-bracewell", "tobias-renkel", "imke-verhoeven")
VOCAB = 400  # fewer than the demo's tokens
QUESTIONS = (
    "Where was Oona Bracewell born?",
    "What does Tobias Renkel do?",
    "hello",
    "Сколько?",
    "東京は？",
    "",
    "a" * 4000,
)

Value = Callable[[random.Random], Any]


def one_of(*values: Any) -> Value:
    """One of these; those that are functions are called."""

    def draw(rng: random.Random) -> Any:
        value = rng.choice(values)
        return value(rng) if callable(value) else value

    return draw


def schema(rng: random.Random, depth: int = 3) -> dict[str, Any]:
    """A JSON schema, now and then a large one."""
    size = rng.choice((1, 2, 5, 40, 200, 512)) if depth == 3 else rng.randint(1, 3)
    number = rng.choice((0, 1, 7, 50, 300, 1999))
    leaves: list[dict[str, Any]] = [
        {"type": "string"},
        {"type": "string", "maxLength": number},
        {"type": "string", "pattern": rng.choice(("^[a-z]+$", "^(a|b){2,9}$", r"^\d{4}-\d{2}$"))},
        {"type": "integer", "minimum": -number, "maximum": number},
        {"type": rng.choice(("number", "boolean", "null"))},
        {"enum": [f"value {i}" for i in range(number + 1)]},
        {"const": {"a": [1, 2, None]}},
        {"type": ["string", "null"]},
        {"type": "array", "items": {"type": "integer"}, "maxItems": min(number, 50)},
    ]
    if depth == 0 or rng.random() < 0.2:
        return rng.choice(leaves)
    if rng.random() < 0.2:
        return {rng.choice(("anyOf", "oneOf")): [schema(rng, depth - 1) for _ in range(min(size, 40))]}
    names = [f"field {i}" for i in range(size)]
    return {
        "type": "object",
        "properties": {name: schema(rng, depth - 1 if i < 2 else 0) for i, name in enumerate(names)},
        "required": rng.sample(names, rng.randint(0, min(size, 20))),
        "additionalProperties": rng.random() < 0.3,
    }


def _function(rng: random.Random) -> dict[str, Any]:
    function = {"name": f"tool_{rng.randrange(10**6)}", "description": "d" * rng.choice((0, 10, 2000))}
    function |= {"parameters": {"type": "object", "properties": {"a": schema(rng, 1)}}, "strict": rng.random() < 0.3}
    return {"type": "function", "function": function}


def _messages(rng: random.Random) -> list[dict[str, Any]]:
    said: list[dict[str, Any]] = [{"role": rng.choice(("system", "developer")), "content": "Be short."}]
    said = said if rng.random() < 0.3 else []
    for _ in range(rng.choice((0, 0, 1, 3, 8))):
        said += [{"role": "user", "content": rng.choice(QUESTIONS)}, {"role": "assistant", "content": "I see."}]
    if rng.random() < 0.1:
        call = {"id": "c1", "type": "function", "function": {"name": "find", "arguments": "{}"}}
        said += [{"role": "user", "content": "find it"}, {"role": "assistant", "content": None, "tool_calls": [call]}]
        said += [{"role": "tool", "tool_call_id": "c1", "content": "nothing"}]
    question = rng.choice(QUESTIONS)
    parts = [{"type": "text", "text": part} for part in (question, "Please.")]
    return [*said, {"role": "user", "content": rng.choice((question, parts)), **rng.choice(({}, {"name": "ann"}))}]


def _prompt(rng: random.Random) -> Any:
    tokens = [rng.randrange(VOCAB) for _ in range(rng.choice((1, 9, 900)))]
    texts = [rng.choice(QUESTIONS[:5]) or "x" for _ in range(rng.choice((1, 2, 16)))]
    return rng.choice((rng.choice(QUESTIONS) or "x", texts, tokens, [tokens, tokens[:3] or [1]]))


def _input(rng: random.Random) -> Any:
    items = [dict(message) for message in _messages(rng) if "tool_calls" not in message and message["role"] != "tool"]
    if rng.random() < 0.3:
        call = {"type": "function_call", "call_id": "c1", "name": "find", "arguments": "{}"}
        thought = {"type": "reasoning", "summary": [], "content": [{"type": "reasoning_text", "text": "so"}]}
        items += [thought, call, {"type": "function_call_output", "call_id": "c1", "output": "nothing"}]
    return rng.choice((rng.choice(QUESTIONS), items))


def _biases(rng: random.Random) -> dict[str, int]:
    return {str(rng.randrange(VOCAB)): rng.choice((-100, -1, 1, 100)) for _ in range(rng.choice((0, 1, 5, 1024)))}


def _structured(rng: random.Random) -> dict[str, Any]:
    return rng.choice(
        (
            {"choice": [f"choice {i}" for i in range(rng.choice((1, 3, 500)))]},
            {"regex": rng.choice(("[a-z]{1,9}", r"\d{3}-\d{4}", "(yes|no)( maybe){0,300}", "[ -~]{0,1500}"))},
            {"grammar": 'root ::= "a" b\nb ::= "b" | "c" b'},
            {"json": schema(rng)},
            {"json_object": True},
        )
    )


BOTH: dict[str, Value] = {
    "temperature": one_of(0, 0.001, 0.7, 1, 2),
    "top_p": one_of(1e-6, 0.1, 1),
    "n": one_of(1, 2, 5, 32),
    "max_tokens": one_of(1, 4, 40, 400),
    "stop": one_of("a", ["."], ["a", "b", "c", "d"], "x" * 1000, "\n"),
    "presence_penalty": one_of(-2, 0, 0.5, 2),
    "frequency_penalty": one_of(-2, 0, 0.5, 2),
    "seed": one_of(0, -1, 7, 2**63 - 1, -(2**63)),
    "logit_bias": _biases,
    "stream": one_of(True, False),
    "user": one_of("u", "u" * 1000),
    # vLLM's
    "structured_outputs": _structured,
    "allowed_token_ids": one_of([5], [5, 6, 7], list(range(VOCAB))),
    "bad_words": one_of(["a"], ["hello there", "b"], [chr(97 + i % 26) * 3 for i in range(200)]),
    "min_tokens": one_of(0, 1, 3),
    "min_p": one_of(0, 0.5, 1),
    "top_k": one_of(-1, 0, 1, 50, 10**6),
    "repetition_penalty": one_of(0.1, 1, 1.3, 10),
    "ignore_eos": one_of(True, False),
    "stop_token_ids": one_of([], [5], list(range(50))),
    "skip_special_tokens": one_of(True, False),
    "include_stop_str_in_output": one_of(True, False),
    "truncate_prompt_tokens": one_of(1, 5, 100),
    # ours
    "forget_sets": one_of([], [SETS[0]], list(SETS[:2]), [{"name": SETS[1], "weight": 0.5}]),
}
CHAT: dict[str, Value] = {
    **BOTH,
    "messages": _messages,
    "max_completion_tokens": one_of(1, 40),
    "logprobs": one_of(True, False),
    "response_format": one_of(
        {"type": "text"},
        {"type": "json_object"},
        lambda rng: {"type": "json_schema", "json_schema": {"name": "a", "schema": schema(rng), "strict": True}},
    ),
    "tools": lambda rng: [_function(rng) for _ in range(rng.choice((1, 2, 30)))],
    "tool_choice": one_of("none", "required"),
    "parallel_tool_calls": one_of(True, False),
    "reasoning_effort": one_of("low", "high"),
    "service_tier": one_of("auto", "default"),
    "metadata": one_of({}, {"k": "v" * 512}),
    "store": one_of(False, True),
    "modalities": one_of(["text"]),
    "prediction": one_of({"type": "content", "content": "a b c"}),
    "verbosity": one_of("low", "high"),
    "prompt_cache_key": one_of("k"),
    "safety_identifier": one_of("s"),
}
TEXT: dict[str, Value] = {
    **BOTH,
    "prompt": _prompt,
    "logprobs": one_of(0, 1, 5, 20),
    "echo": one_of(True, False),
    "suffix": one_of("", "the end"),
    "best_of": one_of(1, 2, 4),
}
RESPONSES: dict[str, Value] = {
    **{
        name: value for name, value in BOTH.items() if name not in ("n", "max_tokens", "allowed_token_ids", "bad_words")
    },
    "input": _input,
    "instructions": one_of("Be short.", ""),
    "max_output_tokens": one_of(1, 4, 40, 400),
    "include": one_of(["message.output_text.logprobs"], ["reasoning.encrypted_content"]),
    "top_logprobs": one_of(0, 1, 20),
    "text": one_of(
        {"format": {"type": "text"}},
        {"format": {"type": "json_object"}},
        lambda rng: {"format": {"type": "json_schema", "name": "a", "schema": schema(rng), "strict": True}},
    ),
    "tools": lambda rng: [{"type": "function", **_function(rng)["function"]} for _ in range(rng.choice((1, 2, 30)))],
    "tool_choice": one_of("none", "required"),
    "parallel_tool_calls": one_of(True, False),
    "reasoning": one_of({"effort": "low"}, {"effort": "high", "summary": "auto"}),
    "truncation": one_of("auto", "disabled"),
    "store": one_of(False, True),
    "metadata": one_of({}, {"k": "v" * 512}),
    "include_reasoning": one_of(True, False),
    "enable_response_messages": one_of(True, False),
}
del RESPONSES["min_tokens"], RESPONSES["truncate_prompt_tokens"]
_NEEDS = {"tool_choice": "tools", "parallel_tool_calls": "tools"}


def body(rng: random.Random, kind: str) -> dict[str, Any]:
    """A body for a kind of route, "chat", "text" or "responses", with a few fields besides what it needs.

    All are of a type and range that OpenAI's API or vLLM's documents; two of them may contradict each other.
    """
    grammar, needed = {"chat": (CHAT, "messages"), "text": (TEXT, "prompt"), "responses": (RESPONSES, "input")}[kind]
    names = rng.sample(sorted(grammar), rng.choice((0, 1, 2, 2, 2, 3, 6)))
    drawn = {name: grammar[name](rng) for name in dict.fromkeys([needed, *names])}
    for name, other in _NEEDS.items():
        if name in drawn and other not in drawn:
            drawn[other] = grammar[other](rng)
    if drawn.get("logprobs") is True and rng.random() < 0.5:
        drawn["top_logprobs"] = rng.choice((0, 1, 20))
    if drawn.get("stream") and rng.random() < 0.5:
        drawn["stream_options"] = {"include_usage": True}
    return {"model": MODEL, **drawn}
