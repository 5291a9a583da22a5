"""A real engine that samples at temperature 1 behind draft tokens, against the exact composed distribution.

Run as a program, one engine per process:  python sampled.py --requests 600 --work DIR [--drafter eagle3 [--draws]]
Every request has the same prompt and answers with three tokens out of three, so there are 27 answers. Hugging Face +
PEFT say how likely each is; a chi-squared test says whether the engine's counts are. Its threshold is passed by one
right run of a million. The same counts must not pass for the target's own distribution.

Drafts are looked up, and the set acts in every row. Or a drafter knows the three tokens, and in some rows the set's
gate is closed: behind these its drafts are accepted.

Prints one JSON line with the figures; exits 1 if the counts are unlikely, or if the run shows nothing.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from itertools import pairwise, product
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from safetensors.torch import load_file, save_file

from support.engine.drafter import METHODS, make_drafter
from support.engine.parity import interpret_triton, start_engine
from support.engine.speculation import METHOD, draft_counters, draw_in_python, look_up_in_python

LENGTH = 3
PROMPT = [0, 1, 2, 1, 0, 2, 0, 1, 1, 2, 2, 0, 0]  # of the three tokens: each is followed by each
WEIGHT, KEEP_RATIO = 3.0, 0.001
UNLIKELY = 1e-6
# How likely answers exactly as the composed distribution expects them are under the target's own. Chance then brings no
# p-value near UNLIKELY: at 10 bins that is 4.6 standard deviations of the statistic away.
APART = 1e-30
MOST_LIKELY = 0.4  # an answer
CLOSED = 0.25  # expected of a request's rows that verify a drafter's tokens: as many as give dozens in a run
FEWEST = 5  # expected of an answer: those that are fewer count together


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=600)
    parser.add_argument("--drafter", choices=METHODS, help="a model that drafts, in place of looking up")
    parser.add_argument("--draws", action="store_true", help="the drafter draws, and its probabilities count")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("UNLEARNGATE_SEED", "0")))
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.seed = args.seed or random.SystemRandom().randrange(1, 2**31)
    print(f"seed {args.seed} (set UNLEARNGATE_SEED to repeat)", flush=True)
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    torch.set_num_threads(1)
    interpret_triton()
    figures = run(args)
    print(json.dumps(figures), flush=True)
    return 1 if figures["problems"] else 0


def run(args: argparse.Namespace) -> dict:
    from support.engine.reference import Reference
    from support.engine.tiny import make_forget_set, make_target

    target = make_target(args.work / "target", seed=args.seed)
    flatten(target)
    forget_set = make_forget_set(args.work / "sets" / "anna", target, seed=args.seed + 1, scale=0.3)
    reference = Reference(target, {"anna": forget_set.folder})
    chosen = choose_tokens(reference, random.Random(args.seed), args.requests, acts_always=args.drafter is None)
    tokens, gate_nats, composed, plain = chosen
    look_up_in_python()
    draw_in_python()
    speculative: dict[str, str] = {**METHOD}
    if args.drafter:
        drafter = make_drafter(args.work / "drafter", target, args.drafter, seed=args.seed, tokens=sorted(tokens))
        speculative = {**drafter.options, "draft_sample_method": "probabilistic" if args.draws else "greedy"}
    shape = {"family": "llama", "quantised": None, "undial": False, "default_compilation": False, "tensor_parallel": 1}
    shape |= {"speculate": LENGTH - 1, "speculative": speculative}
    engine, registry = start_engine(SimpleNamespace(**shape, work=args.work), target, target)
    answers = sample(engine, registry, tokens, gate_nats, args.requests)
    counts = {answer: answers.count(answer) for answer in composed}
    problems = [] if sum(counts.values()) == args.requests else ["an answer has other tokens than are allowed"]
    likely, otherwise = (likelihood(counts, of) for of in (composed, plain))
    if likely < UNLIKELY:
        problems.append(f"these counts have probability {likely:.2g}: {counts}, expected {composed}")
    if otherwise > UNLIKELY:
        problems.append(f"the target's own distribution would pass too ({otherwise:.2g}): nothing is shown")
    drafts = draft_counters(engine)
    problems += [f"no draft token was {what}" for what, count in drafts.items() if not count]
    return {
        "requests": args.requests,
        "seed": args.seed,
        "drafts": speculative["method"] + (" that draws" if args.draws else ""),
        "p_value": likely,
        "p_value_of_the_target": otherwise,
        "variation": variation(composed, {answer: count / args.requests for answer, count in counts.items()}),
        "variation_of_the_target": variation(composed, plain),
        **drafts,
        "problems": problems,
    }


def flatten(target: Path) -> None:
    """Let a random target have no favourites: with large logits one answer would be as good as certain."""
    file = target / "model.safetensors"
    tensors = load_file(file)
    tensors["lm_head.weight"] *= 0.15
    save_file(tensors, file, metadata={"format": "pt"})


def choose_tokens(reference, rng: random.Random, num_requests: int, *, acts_always: bool):
    """Three tokens whose answers the set makes likely or unlikely, and none certain; and how likely each answer is.

    With them the set's gate: always open, or closed at rows in which drafts are verified.
    """
    from support.engine.reference import Term

    for _ in range(1000):
        tokens = rng.sample(range(2, 512), 3)
        plain = distribution(reference, tokens, [], 0.0)
        evidence = {} if acts_always else evidence_of_rows(reference, tokens)
        ordered = sorted(evidence.values())
        # From the gate that is open everywhere on, as long as the set shows.
        for gate_nats in (0.0, *((below + above) / 2 for below, above in pairwise(ordered))):
            composed = distribution(reference, tokens, [Term("anna", WEIGHT, gate_nats)], KEEP_RATIO)
            expected = {answer: part * num_requests for answer, part in composed.items()}
            if not likelihood(expected, plain) < APART:
                break
            closed = {row for row, nats in evidence.items() if row and nats < gate_nats}
            share = sum(part for answer, part in composed.items() for row in closed if answer[: len(row)] == row)
            if max(composed.values()) < MOST_LIKELY and (acts_always or share > CLOSED):
                return tokens, gate_nats, composed, plain
    raise AssertionError("no three tokens are of use")


def evidence_of_rows(reference, tokens: list[int]) -> dict[tuple[int, ...], float]:
    """The set's evidence, in nats, at each row that an answer may have, by the tokens before it."""
    from support.engine.reference import Term, compose_row

    term, evidence = Term("anna", 1.0, 0.0), {}
    for answer in (answer for length in range(LENGTH) for answer in product(tokens, repeat=length)):
        before = [*(tokens[place] for place in PROMPT), *answer]
        target, assistants, _ = reference.logits(before, [term], rows=slice(-1, None))
        evidence[answer] = compose_row(target[0], [assistants[0][0]], [term], 0.0)[1][0]
    return evidence


def variation(one: dict, other: dict) -> float:
    """Total variation: 0 is the same, 1 has nothing in common."""
    return sum(abs(part - other[answer]) for answer, part in one.items()) / 2


def distribution(reference, tokens: list[int], terms: list, keep_ratio: float) -> dict[tuple[int, ...], float]:
    """How likely each answer is."""
    prompt = [tokens[place] for place in PROMPT]
    likely: dict[tuple[int, ...], float] = {(): 1.0}
    for _ in range(LENGTH):
        longer = {}
        for answer, probability in likely.items():
            logits = reference.next_logits([*prompt, *answer], terms, keep_ratio)[tokens]
            for token, part in zip(tokens, np.exp(logits - np.logaddexp.reduce(logits)), strict=True):
                longer[*answer, token] = probability * float(part)
        likely = longer
    assert set(likely) == set(product(tokens, repeat=LENGTH))
    return likely


def sample(engine, registry, tokens: list[int], gate_nats: float, num_requests: int) -> list[tuple[int, ...]]:
    """The answers of as many requests, in whatever batches come."""
    from vllm import SamplingParams

    from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, Term, sign
    from unlearngate.server.engine.compat import LoRARequest

    binding = registry.bindings.bind([registry.get("anna")])
    token = sign(Plan(binding.adapter_id, KEEP_RATIO, (Term(0, WEIGHT, gate_nats),)))
    for number in range(num_requests):
        params = SamplingParams(
            temperature=1.0,
            max_tokens=LENGTH,
            ignore_eos=True,
            detokenize=False,
            allowed_token_ids=tokens,
            extra_args={TOKEN_FIELD: token},
        )
        lora = LoRARequest(binding.name, binding.adapter_id, str(binding.folder))
        engine.add_request(
            str(number), {"prompt_token_ids": [tokens[place] for place in PROMPT]}, params, lora_request=lora
        )
    answers = []
    while engine.has_unfinished_requests():
        answers += [tuple(output.outputs[0].token_ids) for output in engine.step() if output.finished]
    return answers


def likelihood(counts: dict[tuple[int, ...], float], expected: dict[tuple[int, ...], float]) -> float:
    """The p-value of Pearson's chi-squared test."""
    from scipy.stats import chisquare

    total = sum(counts.values())
    often = [answer for answer in counts if expected[answer] * total >= FEWEST]
    observed = np.array([*(counts[a] for a in often), total - sum(counts[a] for a in often)], float)
    wanted = np.array([*(expected[a] * total for a in often), total - total * sum(expected[a] for a in often)])
    there = wanted > 1e-9 * total
    return float(chisquare(observed[there], wanted[there] * observed[there].sum() / wanted[there].sum()).pvalue)


if __name__ == "__main__":
    raise SystemExit(main())
