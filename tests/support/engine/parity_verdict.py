"""What a parity run's answers are held to, and what it must have exercised."""

from __future__ import annotations

import argparse

from support.engine.parity_requests import steering_of
from support.engine.quantised import ROUND_INPUTS

OF_DRAFTS = ("plain_drafts", "set_drafts", "plain_accepted", "set_accepted")  # of the tally's totals
TOLERANCE = 2e-3
LOGPROB_TOLERANCE = 5e-3
PROMPT_TOLERANCES = 1e-3, 1e-3  # of thresholds and log-probabilities in prompts; the reference is in float64
MOST_UNDECIDED = 0.01  # of the positions in prompts
# 4-bit kernels of a CPU want fp16. An input that lies between two steps of 8 bits may fall either way; those of floats
# are the larger ones. Such a row goes on to round otherwise in all later layers, so that a few differ by more.
MOST_ROUNDED_OTHERWISE = dict.fromkeys(ROUND_INPUTS, 0.01) | {"w8a8": 0.005}  # of the tokens
ROUNDED = dict.fromkeys(("w4a16", "awq", "gptq"), (1e-1, 2e-1)) | dict.fromkeys(ROUND_INPUTS, (2e-1, 5e-1))


def is_half(args: argparse.Namespace) -> bool:
    return args.quantised not in (None, *ROUND_INPUTS)


def tolerances(args: argparse.Namespace) -> tuple[float, float]:
    """Of logits and thresholds, and of logprobs."""
    return (TOLERANCE, LOGPROB_TOLERANCE) if args.quantised is None else ROUNDED[args.quantised]


def prompt_tolerances(args: argparse.Namespace) -> tuple[float, float]:
    """Of thresholds, and of log-probabilities in prompts."""
    return PROMPT_TOLERANCES if args.quantised is None else ROUNDED[args.quantised]


def floor(name: str, num_requests: int) -> int:
    """How often a run of this size must at least have done a thing to count as having exercised it."""
    per_200 = {
        "preemptions": 5,
        "aborted": 5,
        "adapter_loads": 20,
        "keep_rule_decided": 10,
        "own_decided": 10,
        "student_decided": 100,
        "penalties_decided": 5,
        "prompt_composed": 12,
        "prompt_not_kept": 12,
        "accepted": 200,
        "rejected": 200,
        "plain_drafts": 2,
        "plain_accepted": 2,
    }
    return per_200[name] * num_requests // 200 if name in per_200 else 1


def compare_drafts(counters: dict) -> list[str]:
    """What is wrong with the counts of draft tokens; vLLM leaves out those of requests that were aborted meanwhile."""
    plain_drafts, set_drafts, plain_accepted, set_accepted = (counters[name] for name in OF_DRAFTS)
    drafts, accepted = plain_drafts + set_drafts, plain_accepted + set_accepted
    of_vllm = counters["accepted"] + counters["rejected"]
    if not (of_vllm <= drafts <= 1.2 * of_vllm and counters["accepted"] <= accepted <= 1.2 * counters["accepted"]):
        return [f"{accepted} of {drafts} draft tokens were noted, vLLM has {counters['accepted']} of {of_vllm}"]
    return []


def said_instead(request: dict, verdict) -> list[int] | None:
    """The answer, if one of its sets says something instead; None also where nothing was answered yet."""
    from support.engine.tiny import EOS

    opened = zip(request["sentences"], verdict.open_at_first, strict=True) if request["tokens"] else ()
    said = next((sentence for sentence, is_open in opened if sentence and is_open), None)
    length = len(request["tokens"])
    return None if said is None else [*said, *[EOS] * length][:length]


def judge(
    args: argparse.Namespace, requests: list[dict], reference, exact, counters: dict, seconds: float, mode: str
) -> dict:
    from support.engine.reference import Term
    from support.engine.scored import Scored, check_prompt

    totals = {
        "tokens": 0,
        "ties": 0,
        "open": 0,
        "closed": 0,
        "logprobs": 0,
        "keep_rule_decided": 0,
        "own_decided": 0,
        "student_decided": 0,
        "penalties_decided": 0,
        "said": 0,
        "noted": 0,
    }
    problems, wrong, logprob_error, aborted, prompts = [], [], 0.0, 0, Scored()
    for index, request in enumerate(requests):
        drawn = (request[key] for key in ("names", "weights", "gates", "lowers"))
        terms = [Term(*term) for term in zip(*drawn, strict=True)]
        verdict = reference.check(
            request["prompt"],
            request["tokens"],
            terms,
            request["keep_ratio"],
            tolerances(args)[0],
            None if any(request["sentences"]) else request["logprobs"],
            request["student"],
            request["tail_ratio"],
            steering_of(request["steering"]),
        )
        if (said := said_instead(request, verdict)) is not None:
            totals["said"] += 1
            is_right = request["tokens"] == said and max(map(abs, request["logprobs"])) < 1e-5
            verdict.ties, verdict.wrong = 0, [] if is_right else [f"instead of {said}, got {request['tokens']}"]
        totals["tokens"] += verdict.tokens
        totals["ties"] += verdict.ties
        totals["open"] += verdict.open_gates
        totals["closed"] += verdict.closed_gates
        totals["logprobs"] += verdict.logprobs_compared
        totals["keep_rule_decided"] += verdict.keep_rule_decided
        totals["own_decided"] += verdict.own_decided
        totals["student_decided"] += verdict.student_decided
        totals["penalties_decided"] += verdict.penalties_decided
        logprob_error = max(logprob_error, verdict.logprob_error)
        aborted += bool(request.get("aborted"))
        if not request.get("aborted") and len(request["tokens"]) != request["max_tokens"]:
            problems.append(f"request {index}: {len(request['tokens'])} tokens of {request['max_tokens']}")
        wrong += [f"request {index}: {w}" for w in verdict.wrong]
        if request["lease"]:
            totals["noted"] += sum(request["noted"] or [])
            if request["noted"] is None or abs(sum(request["noted"]) - verdict.open_gates) > verdict.unclear_gates:
                problems.append(f"request {index}: {request['noted']} gates were noted, {verdict.open_gates} were open")
        if request["prompt_logprobs"] is not None and request["tokens"]:
            asked = request["prompt"], request["scored"] or [], request["prompt_logprobs"], terms, request["keep_ratio"]
            scored = check_prompt(exact, *asked, prompt_tolerances(args), request["student"])
            scored.wrong = [f"request {index}: {w}" for w in scored.wrong]
            prompts += scored
        elif request["scored"] is not None:
            problems.append(f"request {index}: it got log-probabilities of its prompt, which it did not ask for")
    if len(prompts.wrong) > prompts.positions * MOST_ROUNDED_OTHERWISE.get(args.quantised, 0):
        problems += prompts.wrong
    if args.quantised is None and prompts.undecided > prompts.positions * MOST_UNDECIDED:
        problems.append(f"{prompts.undecided} of {prompts.positions} prompt positions could not be decided")
    if len(wrong) > totals["tokens"] * MOST_ROUNDED_OTHERWISE.get(args.quantised, 0):
        problems += wrong
    exercised = {
        "preemptions": int(counters.get("vllm:num_preemptions", 0)),
        "prefix_cache_hits": int(counters.get("vllm:prefix_cache_hits", 0)),
        "aborted": aborted,
        **({"adapter_loads": counters["adapter_loads"]} if "adapter_loads" in counters else {}),
        "keep_rule_decided": totals["keep_rule_decided"],
        "own_decided": totals["own_decided"],
        "penalties_decided": totals["penalties_decided"],
        "steered": sum(bool(request["steering"] and request["names"]) for request in requests),
        **{name: count for name, count in counters.items() if name.endswith("_forget")},
        **({"student_decided": totals["student_decided"]} if args.undial else {}),
        **{name: counters[name] for name in ("accepted", "rejected", *OF_DRAFTS) if args.speculate},
        **({"said": totals["said"], "noted_gates": totals["noted"]} if args.tensor_parallel == 1 else {}),
        "open_gates": totals["open"],
        "closed_gates": totals["closed"],
        "logprobs_compared": totals["logprobs"],
        "prompts": sum(request["scored"] is not None for request in requests),
        "prompt_positions": prompts.positions,
        "prompt_composed": prompts.composed,
        # Where inputs are rounded to 8 bits, a third of the positions cannot be decided, and those at thresholds least.
        **({"prompt_not_kept": prompts.not_kept} if args.quantised not in ROUND_INPUTS else {}),
    }
    floors = {name: floor(name, args.requests) for name in exercised}
    if args.drafter:  # a random one may guess nothing right; that some are accepted, sampled.py sees to
        floors = {name: least for name, least in floors.items() if not name.endswith("accepted")}
    if args.scored:  # answers are too short for all else
        kept = ("prefix_cache_hits", "prompt_positions", "prompt_composed", "prompt_not_kept")
        floors = {name: floors[name] for name in kept if name in floors} | {"prompts": args.scored}
    unexercised = [
        f"the run had only {exercised[name]} {name}, fewer than {least}"
        for name, least in floors.items()
        if exercised[name] < least
    ]
    if args.speculate:
        problems += compare_drafts(counters)
        if counters["with_drafts"] < counters["steps"] / 2:
            steps = f"of {counters['steps']} steps only {counters['with_drafts']} had more rows than requests"
            unexercised.append(steps)
    most = tolerances(args)[1]
    if logprob_error > most:
        problems.append(f"a logprob is off by {logprob_error:.2g}, more than {most}")
    return {
        "family": args.family,
        # vLLM 0.32 itself compiles nothing on a CPU while LoRA is on (platforms/cpu.py).
        "mode": f"default ({mode})" if args.default_compilation else "eager",
        "tap_layer": args.tap,
        "quantised": args.quantised,
        "tensor_parallel": args.tensor_parallel,
        "seed": args.seed,
        "requests": len(requests),
        "tokens": totals["tokens"],
        "ties": totals["ties"],
        "wrong": len(wrong),
        "max_logprob_error": round(logprob_error, 6),
        **exercised,
        "prompt_numbers": prompts.numbers,
        "prompt_undecided": prompts.undecided,
        "prompt_wrong": len(prompts.wrong),
        "max_prompt_error": round(prompts.error, 6),
        **{name: counters[name] for name in ("steps", "with_drafts") if args.speculate},
        "engine_seconds": round(seconds, 1),
        "problems": problems[:20],
        "unexercised": unexercised,
    }
