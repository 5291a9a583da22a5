"""One parity run: a real engine, random requests in mixed batches, every token checked against the reference.

Run as a program, one engine per process:  python parity.py --family llama --requests 200 --work DIR
Prints one JSON line with the figures; exits 1 if a token is wrong or if the run did not exercise what it claims to.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import random
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import torch

from support.engine.drafter import METHODS, drafts_where_a_set_acts, make_drafter, watch_drafter
from support.engine.parity_requests import (
    draw_prefixes,
    draw_request,
    draw_requests,
    requests_to_score,
    sampling_params,
    score_most,
)
from support.engine.parity_verdict import is_half, judge
from support.engine.speculation import METHOD, draft_counters, look_up_in_python, watch_rows

MAX_MODEL_LEN = 512
BLOCK_SIZE = 32
BLOCKS = {"mistral": 10, "phi3": 10}  # where all layers see a window, a request keeps fewer than the 17 of others
ALTERNATING = ("gemma2", "gemma3", "olmo3")  # every other layer does, from the first on
MAX_LOADED = 3  # of 6 combinations of sets: adapters are evicted and loaded again all the time
PROMPT_LOGITS = 2**14  # at a time: some 10 of a step's 48 rows


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--family", required=True, help="of tiny.family_config")
    parser.add_argument("--default-compilation", action="store_true", help="vLLM's default instead of eager")
    parser.add_argument("--tap", type=int, default=0, help="the layer that the assistants start before")
    parser.add_argument("--undial", action="store_true", help="also sets of kind undial, alone and with others")
    parser.add_argument("--layers", type=int, default=4, help="of the target")
    parser.add_argument("--branch-layers", type=int, default=2, help="of each assistant")
    parser.add_argument("--tensor-parallel", type=int, default=1)
    parser.add_argument("--v2", action="store_true", help="vLLM's V2 runner and the Triton kernels, interpreted")
    parser.add_argument("--speculate", type=int, default=0, help="draft tokens, looked up in the sequence; with --v2")
    parser.add_argument("--drafter", choices=METHODS, help="a model that drafts; with --speculate")
    parser.add_argument("--quantised", help="serve a quantised child; its twin is the reference")
    parser.add_argument("--rope", help="of tiny.ROPES")
    parser.add_argument("--vocab-size", type=int, default=512, help="rows of the head; vLLM pads them to 64")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--scored", type=int, help="requests for so many prompts' log-probabilities, and few tokens")
    parser.add_argument("--seed", type=int, default=int(os.environ.get("UNLEARNGATE_SEED", "0")))
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.seed = args.seed or random.SystemRandom().randrange(1, 2**31)
    args.requests = requests_to_score(args.scored) if args.scored else args.requests
    print(f"seed {args.seed} (set UNLEARNGATE_SEED to repeat)", flush=True)
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", "1")
    # Left alone, vLLM binds every engine to the same core, and two runs at a time starve each other.
    os.environ["VLLM_CPU_OMP_THREADS_BIND"] = "nobind"
    os.environ["OMP_NUM_THREADS"] = "1"
    torch.set_num_threads(1)  # also where torch was loaded before
    if args.tensor_parallel == 1:
        os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    if args.v2:
        interpret_triton()
    figures = run(args)
    print(json.dumps(figures), flush=True)
    return 1 if figures["problems"] or figures["unexercised"] else 0


def interpret_triton() -> None:
    """Let vLLM take its V2 runner on a CPU: Triton's interpreter runs its kernels, and ours."""
    assert "vllm" not in sys.modules, "vLLM looks for Triton when it is imported"
    os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    import triton.backends

    driver = SimpleNamespace(is_active=lambda: True)
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)


def run(args: argparse.Namespace) -> dict:
    from support.engine.quantised import ROUND_INPUTS, quantise
    from support.engine.reference import Reference
    from support.engine.tiny import make_forget_set, make_target

    rng = random.Random(args.seed)
    target = make_target(
        *(args.work / "target", args.family),
        seed=args.seed,
        num_layers=args.layers,
        vocab_size=args.vocab_size,
        rope=args.rope,
    )
    served = twin = target
    if args.quantised:
        served, twin = args.work / "child", args.work / "twin"
        quantise(target, served, twin, args.quantised)
    folders = {}
    for index, name in enumerate(["anna", "bert", "cleo"]):
        folders[name] = args.work / "sets" / name
        make_forget_set(
            folders[name],
            target,
            seed=args.seed + 1 + index,
            num_layers=args.branch_layers,
            tap_layer=args.tap,
            rank=[4, 8, 12][index],
            alpha=[8, 8, 7][index],
            scale=[0.1, 0.15, 0.2][index],
            rule=["contrast", "lower", "lower"][index],
        )
    if args.undial:
        for index, name in enumerate(["zeno", "abel"]):  # first and last by name
            folders[name] = args.work / "sets" / name
            make_forget_set(
                folders[name], target, seed=args.seed + 11 + index, rank=[8, 5][index], scale=0.05, kind="undial"
            )
    restore = remember_class(target)
    adapter_loads = watch_adapter_loads()
    args.speculative, known, share = {**METHOD}, range(2, 512), 0.4
    if args.drafter:
        drafter = make_drafter(args.work / "drafter", target, args.drafter, seed=args.seed)
        args.speculative, known, share, shown = drafter.options, drafter.tokens, 0.9, watch_drafter()
    if args.speculate:
        look_up_in_python()
        watched = watch_rows()
    tally = make_tally(args)
    engine, registry = start_engine(args, served, target)
    prompt_rows, batches = watch_prompts(), watch_batches()
    requests = draw_requests(rng, registry, args.requests)
    if args.scored:
        score_most(requests, rng)
    # Few requests may draw no prompt that is scored in several parts.
    requests[1] |= {
        "prompt": [rng.randrange(2, 512) for _ in range(150)],
        "prompt_logprobs": 1,
        "abort_after": None,
    }
    for request in requests:
        if args.v2:  # the interpreter runs all of its kernels but the grammars'
            request["steering"].pop("regex", None)
    if args.speculate:
        # Of a prompt of one token vLLM takes draft tokens for the rest.
        requests[2] |= {"prompt": [rng.randrange(2, 512)], "prompt_logprobs": 1, "abort_after": None}
        for request in requests:
            request["steering"].pop("logit_bias", None)  # vLLM has no bias then
            if rng.random() < share:  # few tokens come again, and drafts are accepted
                request["steering"] |= {"allowed_token_ids": rng.sample(known, 3), "min_tokens": 500}
                request["steering"].pop("bad_words", None)
    started = time.monotonic()
    drive(engine, requests, rng, tally)
    seconds = time.monotonic() - started
    check_seeds(engine, rng)
    if args.tensor_parallel == 1:
        if not args.v2:  # which runs all branches always
            requests += drive_few(engine, registry, rng, tally)
            check_nothing_is_served_without_its_branch(engine, registry, rng)
        check_branches_have_no_weights()
        most = PROMPT_LOGITS // (3 * args.vocab_size)  # where both branches run
        assert most in prompt_rows and max(prompt_rows) <= PROMPT_LOGITS // args.vocab_size, sorted(set(prompt_rows))
    counters = engine_counters(engine)
    if args.speculate:
        counters |= tally.totals()._asdict() | draft_counters(engine)
        counters |= {"steps": watched.steps, "with_drafts": watched.with_drafts}
    if args.tensor_parallel == 1:  # else the workers are other processes
        counters["adapter_loads"] = len(adapter_loads)
    if args.tensor_parallel == 1 and not args.v2:
        counters |= count_shares(batches)
    mode = engine.vllm_config.compilation_config.mode.name
    assert engine.vllm_config.use_v2_model_runner == args.v2
    restore()
    rounded = ROUND_INPUTS.get(args.quantised)
    reference = Reference(twin, folders, round_inputs=rounded)
    exact = Reference(twin, folders, round_inputs=rounded, dtype=torch.float64)
    figures = judge(args, requests, reference, exact, counters, seconds, mode)
    if args.drafter:
        shown.check_its_modules(args.layers)
        problems, positions, drafts = shown.problems(requests, drafter, reference)
        figures |= {"drafter_positions": positions, "drafter_drafts": drafts}
        figures["problems"] += [*problems, *drafts_where_a_set_acts(requests)]
        if not positions or (args.drafter == "eagle3" and not drafts):
            figures["unexercised"].append("the drafter was not compared")
    return figures


def remember_class(target: Path) -> Callable[[], None]:
    """A function that takes from Hugging Face's class what vLLM's Transformers backend has put into it by then."""
    from transformers import AutoConfig, AutoModel  # not before Triton is interpreted

    config = AutoConfig.from_pretrained(target)
    with torch.device("meta"):
        decoder = type(AutoModel.from_config(config))
    bases, own = decoder.__bases__, dict(vars(decoder))

    def restore() -> None:
        decoder.__bases__ = bases
        for name in vars(decoder).keys() - own.keys():
            delattr(decoder, name)
        for name in ("__init__", "__call__", "forward"):
            if name in own:
                setattr(decoder, name, own[name])

    return restore


def make_tally(args: argparse.Namespace):
    """What the engine notes open gates and sentences in; None with several workers, of which none waits for us."""
    from unlearngate.server.contract.tally import Tally

    if args.tensor_parallel == 1:
        return Tally.create(args.work / "notes", max_num_seqs=args.requests + 50, max_model_len=MAX_MODEL_LEN)
    return None


def start_engine(args: argparse.Namespace, target: Path, parent: Path):
    from vllm import EngineArgs
    from vllm.v1.engine.llm_engine import LLMEngine

    from unlearngate.server.contract.options import engine_options
    from unlearngate.server.engine import compat
    from unlearngate.server.sets.registry import Registry
    from unlearngate.server.worker import cpu_lora, prompts
    from unlearngate.target import identify_quantised, identify_target

    cpu_lora.ALONE = 2**13  # so that small batches go one way and large ones the other, as with larger models
    prompts.MOST_LOGITS = PROMPT_LOGITS
    identity = identify_quantised(target, parent).target if args.quantised else identify_target(target)
    registry = Registry(identity, args.work / "bindings")
    registry.discover(args.work / "sets", undial=args.undial)
    options = engine_options(
        registry.branches(2),
        max_rank=registry.max_rank(),
        max_loaded=MAX_LOADED,
        max_known=MAX_LOADED + 1,
    )
    config = EngineArgs(
        model=str(target),
        dtype="float16" if is_half(args) else "float32",
        max_model_len=MAX_MODEL_LEN,
        max_num_seqs=12,
        max_num_batched_tokens=48,
        block_size=BLOCK_SIZE,
        num_gpu_blocks_override=kv_blocks(args),
        enable_prefix_caching=True,
        enforce_eager=not args.default_compilation,
        tensor_parallel_size=args.tensor_parallel,
        disable_log_stats=False,
        speculative_config={**args.speculative, "num_speculative_tokens": args.speculate} if args.speculate else None,
        **options,
    ).create_engine_config()
    compat.fork_on_a_cpu(num_threads=1)
    engine = LLMEngine.from_vllm_config(config)
    return engine, registry


def kv_blocks(args: argparse.Namespace) -> int:
    """So few that requests are preempted.

    Of layers of two kinds vLLM makes groups of one kind, as large as the rarer kind: each has blocks of its own.
    """
    if args.family not in ALTERNATING:
        return BLOCKS.get(args.family, 17)
    sees_all = [layer % 2 for layer in range(args.layers)]
    layers = sees_all + 2 * sees_all[args.tap : args.tap + args.branch_layers]
    kinds = sum(layers), len(layers) - sum(layers)
    return 15 * sum(-(-number // min(kinds)) for number in kinds)


def drive(engine, requests: list[dict], rng: random.Random, tally, *, at_once: bool = False) -> None:
    """Feed the engine a few requests per step, so that batches are always mixed, and abort some midway."""
    from unlearngate.server.contract.plan import Plan, Term, sign
    from unlearngate.server.engine.compat import LoRARequest

    waiting = list(enumerate(requests))
    running = {}
    while waiting or engine.has_unfinished_requests():
        for _ in range(len(waiting) if at_once else min(len(waiting), rng.randint(0, 3) if running else 1)):
            index, request = waiting.pop(0)
            binding = request["binding"]
            if tally is None or "regex" in request["steering"]:  # nothing is said in a grammar
                request["sentences"] = [()] * len(request["names"])
            drawn = (request[key] for key in ("weights", "gates", "lowers", "sentences"))
            terms = tuple(Term(branch, *term) for branch, term in enumerate(zip(*drawn, strict=True)))
            request["lease"] = tally.lease() if tally and terms else 0
            plan = Plan(
                binding.adapter_id if binding else 0,
                request["keep_ratio"],
                terms,
                lease=request["lease"],
                tail_ratio=request["tail_ratio"],
                adapts_target=request["student"] is not None,
            )
            engine.add_request(
                str(index),
                {"prompt_token_ids": request["prompt"]},
                sampling_params(request, sign(plan)),
                lora_request=LoRARequest(binding.name, binding.adapter_id, str(binding.folder)) if binding else None,
            )
            running[str(index)] = request
        for request_id in [i for i, request in running.items() if request["abort_after"] == 0]:
            if rng.random() < 0.5:  # some before they were ever scheduled, some in the middle of their prompt
                engine.abort_request([request_id])
                running.pop(request_id)["aborted"] = True
        for output in engine.step():
            request = requests[int(output.request_id)]
            completion = output.outputs[0]
            request["together"] = max(request["together"], len(completion.token_ids) - len(request["tokens"]))
            request["tokens"] = list(completion.token_ids)
            request["logprobs"] = [p[t].logprob for t, p in zip(completion.token_ids, completion.logprobs, strict=True)]
            if output.prompt_logprobs is not None:
                request["scored"] = [p and {t: one.logprob for t, one in p.items()} for p in output.prompt_logprobs]
            if output.finished:
                running.pop(output.request_id, None)
            elif request["abort_after"] and len(request["tokens"]) >= request["abort_after"]:
                engine.abort_request([output.request_id])
                request["aborted"] = True
                running.pop(output.request_id, None)
    for request in requests:
        request["noted"] = tally.open_tokens(request["lease"], len(request["tokens"])) if request["lease"] else None


def drive_few(engine, registry, rng: random.Random, tally) -> list[dict]:
    """Batches in which no, one, two or all requests have a set: a branch runs over their rows, and over no others."""
    prefixes, asked = draw_prefixes(rng), []
    for needed in ([0, 0, 0, 0], [0, 0, 1, 0], [1, 0, 0, 1], [1, 1, 1, 1], [0, 2, 1, 0]):
        drawn: list[dict] = []
        while len(drawn) < len(needed):
            request = draw_request(rng, registry, prefixes)
            if len(request["names"]) == needed[len(drawn)] and (any(needed) or not request["student"]):
                # Together they fit the KV cache, and none is computed twice; a step holds parts of their prompts.
                prompt = [rng.randrange(2, 512) for _ in range(rng.randint(20, 48))]
                drawn.append({**request, "prompt": prompt, "max_tokens": rng.randint(8, 16), "abort_after": None})
        with watch_branch_rows() as ran:
            drive(engine, drawn, rng, tally, at_once=True)
        rows = [len(request["prompt"]) + len(request["tokens"]) - 1 for request in drawn]
        for branch, name in enumerate(("assistant_a", "assistant_b")):
            wanted = sum(count for count, number in zip(rows, needed, strict=True) if number > branch)
            assert ran.get(name, 0) == wanted, f"{name} ran over {ran} rows, of requests with {needed} sets: {wanted}"
        asked += drawn
    return asked


@contextmanager
def watch_branch_rows() -> Iterator[dict[str, int]]:
    """Over how many rows the first attention layer of each branch runs."""
    from unlearngate.server.worker import lockstep

    rows, attend = {}, lockstep.attend_part

    def watched(layer, query, key, value):
        branch, _, name = layer.partition(".layers.")
        if name.startswith("0."):
            branch = branch.partition(".")[0]  # before the name of a Transformers backend's model
            rows[branch] = rows.get(branch, 0) + len(key)
        return attend(layer, query, key, value)

    lockstep.attend_part = watched
    try:
        yield rows
    finally:
        lockstep.attend_part = attend


def watch_batches() -> list[list[int]]:
    """A list that grows by how many branches each request needs, whenever this process's worker lays out a batch."""
    from unlearngate.server.worker.batch import Parts

    batches, build = [], Parts.build

    def watched(branches, *args, **options):
        batches.append(list(branches))
        return build(branches, *args, **options)

    Parts.build = watched
    return batches


def count_shares(batches: list[list[int]]) -> dict[str, int]:
    """In how many batches of three requests or more one has a set, some, or all; in how many they have 1 and 2."""
    large = [(branches, sum(map(bool, branches))) for branches in batches if len(branches) >= 3]
    return {
        "one_forget": sum(forget == 1 for _, forget in large),
        "some_forget": sum(1 < forget < len(branches) for branches, forget in large),
        "all_forget": sum(forget == len(branches) for branches, forget in large),
        "unevenly_forget": sum({1, 2} <= set(branches) for branches, _ in large),
    }


def check_nothing_is_served_without_its_branch(engine, registry, rng: random.Random) -> None:
    """A request whose branch did not run is ended, and its prompt has no logprobs, whoever is to blame; others have.

    It leaves blocks without the branch's KV in the prefix cache, so it is the last of a run.
    """
    from vllm import SamplingParams

    from support.engine.tiny import EOS
    from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, Term, sign
    from unlearngate.server.engine.compat import LoRARequest
    from unlearngate.server.worker.processor import ComposeLogitsProcessor

    binding = registry.bindings.bind([registry.get("anna")])
    lora, answers = LoRARequest(binding.name, binding.adapter_id, str(binding.folder)), {}
    for number in range(3):
        prompt = {"prompt_token_ids": [rng.randrange(2, 512) for _ in range(16)]}  # a step holds all three
        extra = {TOKEN_FIELD: sign(Plan(binding.adapter_id, 0.0, (Term(0, 1.0, 0.0, lowers=number == 1),)))}
        params = SamplingParams(temperature=0.0, max_tokens=4, ignore_eos=True, prompt_logprobs=1, extra_args=extra)
        engine.add_request(str(number), prompt, params, lora_request=lora)
    branches = ComposeLogitsProcessor.branches
    ComposeLogitsProcessor.branches = lambda self, number: [0, 0, *branches(self, number)[2:]]
    try:
        while engine.has_unfinished_requests():
            answers |= {int(output.request_id): output for output in engine.step()}
    finally:
        ComposeLogitsProcessor.branches = branches
    for number, output in answers.items():
        is_served, tokens = number == 2, list(output.outputs[0].token_ids)
        logprobs = [one.logprob for place in output.prompt_logprobs[1:] for one in place.values()]
        assert (tokens != [EOS] * 4) == is_served, f"{tokens} of request {number}"
        assert all(math.isfinite(x) if is_served else math.isnan(x) for x in logprobs), f"{logprobs} of {number}"


def check_seeds(engine, rng: random.Random) -> None:
    """A seed's answer is the same whether its prompt is computed in parts or found in the cache, and begins anew."""
    from vllm import SamplingParams

    from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, sign

    extra = {TOKEN_FIELD: sign(Plan())}
    prompt = {"prompt_token_ids": [rng.randrange(2, 512) for _ in range(150)]}  # three steps of 48 tokens, and a part
    answers = []
    for number, seed in enumerate((7, 7, 8)):
        params = SamplingParams(temperature=1.0, seed=seed, max_tokens=24, ignore_eos=True, extra_args=extra)
        engine.add_request(f"seeded-{number}", prompt, params)
        while engine.has_unfinished_requests():
            outputs = engine.step()
        answers.append(list(outputs[0].outputs[0].token_ids))
    assert answers[0] == answers[1] != answers[2]


def check_branches_have_no_weights() -> None:
    """Every parameter of a branch is the target's very object, also after loading, and nothing is packed for it."""
    from unlearngate.server.worker.model import loaded_model

    model = loaded_model()
    targets = {id(one) for one in (*model.target.parameters(), *model.target.modules())}
    for name in model.options.branch_names():
        branch = model.get_submodule(name)
        own = [path for path, parameter in branch.named_parameters() if id(parameter) not in targets]
        packed = {path: module for path, module in branch.layers.named_modules() if hasattr(module, "cpu_linear")}
        own += [path for path, module in packed.items() if id(module) not in targets]  # experts are the target's whole
        known = model.target.model.vllm_config.compilation_config.static_all_moe_layers
        own += [layer for layer in known if layer.startswith(f"{name}.")]
        assert not own, f"{name} has weights of its own: {own}"


def watch_adapter_loads() -> list[int]:
    """A list that grows by an adapter's id whenever this process's worker reads one from disk.

    Every tensor of it must have a module to land on: vLLM itself leaves out those that have none.
    """
    from vllm.lora.worker_manager import WorkerLoRAManager

    loads, load = [], WorkerLoRAManager._load_adapter

    def watched(self, request):
        loads.append(request.lora_int_id)
        lora = load(self, request)
        modules = self._adapter_manager.modules
        packed = {
            linear: whole for whole, parts in self._adapter_manager.packed_modules_mapping.items() for linear in parts
        }
        for name in lora.loras:
            parent, _, linear = name.rpartition(".")
            assert f"{parent}.{packed.get(linear, linear)}" in modules, f"{name} lands on none of {sorted(modules)}"
        return lora

    WorkerLoRAManager._load_adapter = watched
    return loads


def watch_prompts() -> list[int]:
    """A list that grows by the number of a prompt's positions whenever this process's worker makes their logits."""
    from unlearngate.server.worker.prompts import PromptHead

    sizes, logits = [], PromptHead.logits

    def watched(self, hidden_TW, params):
        sizes.append(len(hidden_TW))
        return logits(self, hidden_TW, params)

    PromptHead.logits = watched
    return sizes


def engine_counters(engine) -> dict[str, float]:
    """What the engine says it did, from vLLM's own metrics."""
    wanted = {"vllm:num_preemptions", "vllm:prefix_cache_hits"}
    return {m.name: m.value for m in engine.get_metrics() if m.name in wanted}


if __name__ == "__main__":
    sys.exit(main())
