"""An engine in its own process: decodes what it is told to, and reports how long each step took.

Reads JSON lines: {"sets": [[names in force in row 0], ...], "prompt_tokens": n, "new_tokens": m}, with {"lowers": true}
for sets that raise nothing, and, for prompts that share their first s tokens, {"shared_tokens": s, "beginning": number
of the shared beginning}. Answers each with {"first_token_s", "step_s": [m - 1 durations], "cached_tokens": found in the
prefix cache, "memory_mib"}; the first line it prints is {"ready": seconds}.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, Term, sign


class Engine:
    """VLLM as it is, or with our model and logits processor."""

    def __init__(self, args: argparse.Namespace) -> None:
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        from unlearngate.server.contract.options import engine_options
        from unlearngate.server.sets.registry import Registry
        from unlearngate.target import identify_target

        self._registry: Any = None
        options: dict[str, Any] = {}
        if args.sets:
            self._registry = Registry(identify_target(args.target), args.work)
            self._registry.discover(args.sets, undial=False)
            options = engine_options(
                self._registry.branches(args.branches),
                max_rank=self._registry.max_rank(),
                max_loaded=args.max_loaded,
                max_known=args.max_loaded,
            )
        config = EngineArgs(
            model=str(args.target),
            dtype=args.dtype,
            max_model_len=4096,
            max_num_seqs=args.max_rows,
            max_num_batched_tokens=4096,
            enable_prefix_caching=args.prefix_caching,
            skip_tokenizer_init=True,
            enforce_eager=args.eager,
            **options,
        ).create_engine_config()
        self._engine = LLMEngine.from_vllm_config(config)
        self._vocab_size = config.model_config.get_vocab_size()
        self._count = 0

    def run(
        self,
        sets: list[list[str]],
        prompt_tokens: int,
        new_tokens: int,
        shared_tokens: int = 0,
        beginning: int = 0,
        lowers: bool = False,
    ) -> dict[str, Any]:
        """Decode one batch, every row to the same length."""
        shared = self._draw(random.Random(beginning), shared_tokens)
        for names in sets:
            self._add(names, shared + self._draw(random, prompt_tokens - shared_tokens), new_tokens, lowers)
        began, first_s, step_s = time.perf_counter(), 0.0, []
        seen: set[str] = set()
        cached: dict[str, int] = {}
        while self._engine.has_unfinished_requests():
            before = time.perf_counter()
            outputs = self._engine.step()
            took = time.perf_counter() - before
            cached |= {output.request_id: output.num_cached_tokens or 0 for output in outputs}
            if len(seen) < len(sets):  # prompts are still being read
                seen |= {output.request_id for output in outputs if output.outputs[0].token_ids}
                first_s = time.perf_counter() - began
            else:
                step_s.append(took)
        memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
        found = sum(cached.values())
        return {"first_token_s": first_s, "step_s": step_s, "cached_tokens": found, "memory_mib": memory}

    def _draw(self, rng: Any, count: int) -> list[int]:
        return [rng.randrange(2, self._vocab_size) for _ in range(count)]

    def _add(self, names: list[str], prompt: list[int], new_tokens: int, lowers: bool) -> None:
        from vllm import SamplingParams

        from unlearngate.server.engine.compat import LoRARequest

        self._count += 1
        binding = self._registry.bindings.bind([self._registry.get(n) for n in sorted(names)]) if names else None
        plan = Plan(
            binding.adapter_id if binding else 0,
            0.02 if names and not lowers else 0.0,
            tuple(Term(branch, 1.0, 0.0, lowers) for branch in range(len(names))),
            tail_ratio=0.02 if names and lowers else 0.0,
        )
        extra = {"extra_args": {TOKEN_FIELD: sign(plan)}} if self._registry else {}
        self._engine.add_request(
            str(self._count),
            {"prompt_token_ids": prompt},
            SamplingParams(temperature=0.0, max_tokens=new_tokens, ignore_eos=True, detokenize=False, **extra),
            lora_request=LoRARequest(binding.name, binding.adapter_id, str(binding.folder)) if binding else None,
        )


def serve(start: Callable[[], Any]) -> None:
    """Start an object with a `run`, print how long that took, and answer requests until the input ends."""
    answers = os.dup(1)
    os.dup2(2, 1)  # what libraries print must not mix with the answers
    began = time.perf_counter()
    runner = start()
    with os.fdopen(answers, "w") as out:
        print(json.dumps({"ready": time.perf_counter() - began}), file=out, flush=True)
        for line in sys.stdin:
            print(json.dumps(runner.run(**json.loads(line))), file=out, flush=True)


def main() -> None:
    """Read, decode, answer; ends with its input."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--target", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--sets", type=Path)
    parser.add_argument("--branches", type=int, default=1)
    parser.add_argument("--max-loaded", type=int, default=1)
    parser.add_argument("--max-rows", type=int, default=16)
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--eager", action="store_true")
    parser.add_argument("--prefix-caching", action="store_true")
    args = parser.parse_args()
    os.environ |= {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "VLLM_CPU_OMP_THREADS_BIND": "nobind"}
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    serve(lambda: Engine(args))


if __name__ == "__main__":
    main()
