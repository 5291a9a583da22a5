"""A real engine whose answers must not come out: it says each again beside others from which it is withheld.

Run as a program, one engine per process:  python withheld.py --requests 12 --work DIR [--v2 [--speculate 3]]
Prints one JSON line with the figures; exits 1 if a run came out, or if the run did not exercise what it claims to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import string
from pathlib import Path

import torch

from support.engine.parity import engine_counters, interpret_triton
from support.engine.speculation import METHOD, draft_counters, look_up_in_python

LETTERS = 24


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--v2", action="store_true", help="vLLM's V2 runner, interpreted")
    parser.add_argument("--speculate", type=int, default=0, help="draft tokens, looked up in the sequence; with --v2")
    parser.add_argument("--requests", type=int, default=12)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("UNLEARNGATE_SEED", "0")))
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.seed = args.seed or random.SystemRandom().randrange(1, 2**31)
    print(f"seed {args.seed} (set UNLEARNGATE_SEED to repeat)", flush=True)
    os.environ |= {"VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_CPU_OMP_THREADS_BIND": "nobind", "OMP_NUM_THREADS": "1"}
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    torch.set_num_threads(1)
    if args.v2:
        interpret_triton()
    figures = run(args)
    print(json.dumps(figures), flush=True)
    return 1 if figures["problems"] else 0


def run(args: argparse.Namespace) -> dict:
    from support.engine.tiny import make_target, make_tokenizer
    from support.texts import longest_run, save_texts
    from unlearngate.server.contract.plan import Plan, VerbatimSet

    rng = random.Random(args.seed)
    if args.speculate:
        look_up_in_python()
    engine = start_engine(make_target(args.work / "target", seed=args.seed), args.speculate)
    assert engine.vllm_config.use_v2_model_runner == args.v2
    tokenizer = make_tokenizer()
    allowed = tokenizer(string.ascii_letters + " ").input_ids
    prompts = [[rng.randrange(2, 258) for _ in range(rng.choice([1, 20, 90]))] for _ in range(args.requests)]
    answers = drive(engine, rng, allowed, [(prompt, Plan()) for prompt in prompts])
    texts = [tokenizer.decode(answer) for answer in answers]
    made = save_texts(args.work / "sets" / "said", *texts, letters=LETTERS)
    withholding = Plan(verbatim=(VerbatimSet(made.digest, str(made.folder)),))
    asked = [(prompt, plan) for prompt in prompts for plan in (Plan(), withholding)]
    # Half of what is withheld is begun by the client.
    asked = [(p + answers[i // 2][:10] if i % 4 == 3 else p, plan) for i, (p, plan) in enumerate(asked)]
    again = drive(engine, rng, allowed, asked)
    problems, longest = [], {False: 0, True: 0}
    for index, ((prompt, plan), answer) in enumerate(zip(asked, again, strict=True)):
        given = tokenizer.decode(prompt[-10:]) if index % 4 == 3 else ""
        found = max(longest_run(text, given + tokenizer.decode(answer)) for text in texts)
        longest[bool(plan.verbatim)] = max(longest[bool(plan.verbatim)], found)
        if plan.verbatim and found >= LETTERS:
            problems.append(f"request {index}: {found} letters came out")
        if not plan.verbatim and found < LETTERS:
            problems.append(f"request {index}: it did not say its text again, which nothing withheld")
    if longest[True] < LETTERS - 1:
        problems.append(f"no run came up to {LETTERS - 1} letters")
    counters = engine_counters(engine)
    if args.speculate:
        counters |= draft_counters(engine)
        problems += [f"no draft token was {what}" for what in ("accepted", "rejected") if not counters[what]]
    if not counters["vllm:num_preemptions"]:
        problems.append("no preemption")
    return {"requests": len(asked), "longest": longest, **counters, "problems": problems}


def start_engine(target: Path, num_drafts: int):
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from unlearngate.server.contract.branches import BranchOptions
    from unlearngate.server.contract.options import engine_options

    options = engine_options(BranchOptions("LlamaForCausalLM", 0, 1, 0), max_rank=8, max_loaded=1, max_known=1)
    config = EngineArgs(
        model=str(target),
        dtype="float32",
        max_model_len=256,
        max_num_seqs=8,
        max_num_batched_tokens=48,
        block_size=32,
        num_gpu_blocks_override=14,
        enforce_eager=True,
        disable_log_stats=False,
        speculative_config={**METHOD, "num_speculative_tokens": num_drafts} if num_drafts else None,
        **options,
    ).create_engine_config()
    return LLMEngine.from_vllm_config(config)


def drive(engine, rng: random.Random, allowed: list[int], asked: list) -> list[list[int]]:
    """The greedy answers in letters, a few more requests being added at each step."""
    from vllm import SamplingParams

    from unlearngate.server.contract.plan import TOKEN_FIELD, sign

    waiting, answers = list(enumerate(asked)), [[] for _ in asked]
    while waiting or engine.has_unfinished_requests():
        for _ in range(min(len(waiting), rng.randint(1, 3))):
            index, (prompt, plan) = waiting.pop(0)
            params = SamplingParams(
                temperature=0.0,
                max_tokens=60,
                ignore_eos=True,
                detokenize=False,
                allowed_token_ids=allowed,
                extra_args={TOKEN_FIELD: sign(plan)},
            )
            engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
        for output in engine.step():
            answers[int(output.request_id)] = list(output.outputs[0].token_ids)
    return answers


if __name__ == "__main__":
    raise SystemExit(main())
