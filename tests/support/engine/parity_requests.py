"""The random requests of a parity run: prompts, sets, steering and sentences."""

from __future__ import annotations

import random
from itertools import combinations

# Of a request that is asked again.
FRESH = ("max_tokens", "steering", "abort_after", "tokens", "together", "logprobs", "prompt_logprobs", "scored")


def draw_prefixes(rng: random.Random) -> list[list[int]]:
    return [[rng.randrange(2, 512) for _ in range(n)] for n in (40, 90, 160, 230)]


def draw_requests(rng: random.Random, registry, num_requests: int) -> list[dict]:
    """Random requests; each tenth asks the one before again, with the same sets: its prompt is in the prefix cache.

    Of each eight one is steered with a set that acts at every token, and one says a set's sentence: what chance might
    leave out of a small run. Most requests have a set; then each other one; then two of eight.
    """
    prefixes, requests = draw_prefixes(rng), []
    for index in range(num_requests):
        is_plain = ((index % 24) // 8 == 1 and index % 2) or ((index % 24) // 8 == 2 and index % 8 not in (4, 6))
        request = draw_request(rng, registry, prefixes)
        while (
            (index % 8 == 4 and not (request["steering"] and acts_always(request)))
            or (index % 8 == 6 and not speaks_always(request))
            or (is_plain and request["names"])
        ):
            request = draw_request(rng, registry, prefixes)
        if index % 10 == 9:
            request = {**requests[-1], **{key: request[key] for key in FRESH}}
            # Of two such one is to read the cache, and one must not: a position from there has no logits.
            request["prompt_logprobs"] = rng.randint(0, 5) if index % 20 == 9 else None
        requests.append(request)
    return requests


def score_most(requests: list[dict], rng: random.Random) -> None:
    """Have all ask for their prompts' log-probabilities and a few tokens, but each twentieth.

    That one asks what the one before asked, so that it reads the cache: a prompt that is scored never does.
    """
    for index, request in enumerate(requests):
        request |= {"max_tokens": rng.randint(1, 4), "abort_after": None}
        request["prompt_logprobs"] = None if index % 20 == 19 else rng.randint(0, 5)


def requests_to_score(num_prompts: int) -> int:
    """Of how many requests `score_most` scores so many prompts at least."""
    return -(-20 * num_prompts // 19)


def acts_always(request: dict) -> bool:
    return any(weight and not gate for weight, gate in zip(request["weights"], request["gates"], strict=True))


def speaks_always(request: dict) -> bool:
    drawn = zip(request["weights"], request["gates"], request["sentences"], strict=True)
    return "regex" not in request["steering"] and any(w and not gate and said for w, gate, said in drawn)


def draw_request(rng: random.Random, registry, prefixes: list[list[int]]) -> dict:
    """A random request: a prompt of 1 to 300 tokens, often with a shared beginning; a few sets or none."""
    if rng.random() < 0.5:
        prefix = rng.choice(prefixes)
        prompt = prefix + [rng.randrange(2, 512) for _ in range(rng.randint(1, 300 - len(prefix)))]
    else:
        prompt = [rng.randrange(2, 512) for _ in range(rng.choice([1, 2, rng.randint(1, 300)]))]
    by_kind = {kind: [n for n, s in registry.sets.items() if s.manifest.kind == kind] for kind in ("uld", "undial")}
    names = rng.choice([c for size in range(3) for c in combinations(by_kind["uld"], size)])
    student = rng.choice([None, *by_kind["undial"]])
    if student and registry.tap_layer:
        names = ()  # refused together: the assistant would start from the student's hidden states
    bound = sorted([*names, student] if student else names)
    return {
        "prompt": prompt,
        "max_tokens": rng.choice([1, rng.randint(1, 64), rng.randint(16, 64)]),
        "names": names,
        "student": student,
        "binding": registry.bindings.bind([registry.get(n) for n in bound]) if bound else None,
        "weights": [rng.choice([0.0, 0.5, 1.0, rng.uniform(0, 2)]) for _ in names],
        "gates": [rng.choice([0.0, rng.uniform(0.5, 4.0)]) for _ in names],
        "lowers": [registry.sets[n].manifest.rule == "lower" for n in names],
        "keep_ratio": rng.choice([0.0, 1.0, 0.01, rng.uniform(0, 0.5)]) if names else 0.0,
        "tail_ratio": rng.choice([0.0, 1.0, 0.01, rng.uniform(0, 0.5)]) if names else 0.0,
        "steering": draw_steering(rng) if rng.random() < 0.4 else {},
        "abort_after": rng.choice([0, rng.randint(1, 20)]) if rng.random() < 0.15 else None,
        "sentences": [draw_sentence(rng) for _ in names],
        "tokens": [],
        "together": 0,  # tokens at most that came from one step
        "logprobs": [],
        "prompt_logprobs": rng.choice([None, 0, rng.randint(1, 5)]),
        "scored": None,
    }


def draw_sentence(rng: random.Random) -> tuple[int, ...]:
    """What a set says instead of an answer; most say nothing."""
    from support.engine.tiny import EOS

    return (*(rng.randrange(2, 512) for _ in range(rng.randint(1, 20))), EOS) if rng.random() < 0.15 else ()


def draw_steering(rng: random.Random) -> dict:
    """Sampling parameters that change the target's logits before they are composed, or after: each now and then."""
    text = [tokens_of(chr(code))[0] for code in range(ord("a"), ord("m") + 1)]
    bad_words = ["".join(rng.choices("abcdefghijklm", k=rng.randint(1, 2))) for _ in range(8)]
    steering = {
        "logit_bias": {rng.randrange(2, 512): rng.uniform(-100, 100) for _ in range(6)},
        "allowed_token_ids": rng.sample(range(2, 258), rng.choice([2, 40, 200])),
        "bad_words": bad_words,
        "min_tokens": rng.randint(1, 16),
        "regex": "[a-m]*",
        "repetition_penalty": rng.uniform(0.8, 1.25),
        "frequency_penalty": rng.uniform(-2, 2),
        "presence_penalty": rng.uniform(-2, 2),
    }
    chosen = {name: value for name, value in steering.items() if rng.random() < 0.4}
    if "regex" in chosen:
        # Ended by nothing but a length, as everything here, so that what is allowed never changes: see `steering_of`.
        chosen["min_tokens"] = 500
        if "allowed_token_ids" in chosen:
            chosen["allowed_token_ids"] = rng.sample(text, 4)
        chosen.pop("bad_words", None)
    elif "bad_words" in chosen:  # of letters, which are said if nothing else may be
        chosen["allowed_token_ids"] = [*text, *rng.sample(range(130, 258), 3)]
    return chosen


def tokens_of(text: str) -> list[int]:
    from support.engine.tiny import make_tokenizer

    return make_tokenizer().encode(text, add_special_tokens=False)


def steering_of(asked: dict):
    """The same for the reference."""
    from support.engine.reference import Steering
    from support.engine.tiny import EOS

    allowed = asked.get("allowed_token_ids")
    if "regex" in asked:
        letters = {tokens_of(chr(code))[0] for code in range(ord("a"), ord("m") + 1)} | {EOS}
        allowed = sorted(letters if allowed is None else letters & set(allowed))
    words = [tokens_of(text) for text in asked.get("bad_words", [])]
    penalties = {name: value for name, value in asked.items() if name.endswith("_penalty")}
    return Steering(asked.get("logit_bias", {}), allowed, words, asked.get("min_tokens", 0), [EOS], **penalties)


def sampling_params(request: dict, token: str):
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    from unlearngate.server.contract.plan import TOKEN_FIELD

    steering = dict(request["steering"])
    if regex := steering.pop("regex", None):
        steering["structured_outputs"] = StructuredOutputsParams(regex=regex)
    most = request["max_tokens"]
    return SamplingParams(
        temperature=0.0,
        max_tokens=most,
        ignore_eos=True,
        detokenize=False,
        logprobs=0,
        prompt_logprobs=request["prompt_logprobs"],
        extra_args={TOKEN_FIELD: token},
        **{**steering, "min_tokens": min(most, steering.get("min_tokens", 0))},
    )
