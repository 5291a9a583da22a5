"""One parity run: a real engine, random requests in mixed batches, every token checked against the reference.

Run as a program, one engine per process:  python parity.py --family llama --requests 200 --work DIR
Prints one JSON line with the figures; exits 1 if a token is wrong or if the run did not exercise what it claims to.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import time
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import torch

from support.engine.speculation import METHOD, draft_counters, look_up_in_python, watch_rows

MAX_MODEL_LEN = 512
BLOCK_SIZE = 32
# Gemma 3's layers keep blocks of two kinds; where all see a window, a request keeps fewer.
BLOCKS = {"gemma3": 30, "mistral": 10, "phi3": 10}
MAX_LOADED = 3  # of 6 combinations of sets: adapters are evicted and loaded again all the time
OF_DRAFTS = ("plain_drafts", "set_drafts", "plain_accepted", "set_accepted")  # of the tally's totals
# Of a request that is asked again.
FRESH = ("max_tokens", "steering", "abort_after", "tokens", "logprobs", "prompt_logprobs", "scored")
TOLERANCE = 2e-3
LOGPROB_TOLERANCE = 5e-3
PROMPT_TOLERANCES = 1e-3, 1e-3  # of thresholds and log-probabilities in prompts; the reference is in float64
MOST_UNDECIDED = 0.01  # of the positions in prompts
PROMPT_LOGITS = 2**14  # at a time: some 10 of a step's 48 rows
# 4-bit kernels of a CPU want fp16. With w8a8 an input that lies between two steps of 8 bits may fall either way.
# Such a row goes on to round otherwise in all later layers, so that a few differ by more.
MOST_ROUNDED_OTHERWISE = {"w8a8": 0.005}  # of the tokens
ROUNDED = dict.fromkeys(("w4a16", "awq", "gptq"), (1e-1, 2e-1)) | {"w8a8": (2e-1, 5e-1)}


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
    parser.add_argument("--quantised", help="serve a quantised child; its twin is the reference")
    parser.add_argument("--requests", type=int, default=200)
    parser.add_argument("--seed", type=int, default=int(os.environ.get("UNLEARNGATE_SEED", "0")))
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    args.seed = args.seed or random.SystemRandom().randrange(1, 2**31)
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
    return 1 if figures["problems"] else 0


def is_half(args: argparse.Namespace) -> bool:
    return args.quantised not in (None, "w8a8")


def tolerances(args: argparse.Namespace) -> tuple[float, float]:
    """Of logits and thresholds, and of logprobs."""
    return (TOLERANCE, LOGPROB_TOLERANCE) if args.quantised is None else ROUNDED[args.quantised]


def prompt_tolerances(args: argparse.Namespace) -> tuple[float, float]:
    """Of thresholds, and of log-probabilities in prompts."""
    return PROMPT_TOLERANCES if args.quantised is None else ROUNDED[args.quantised]


def interpret_triton() -> None:
    """Let vLLM take its V2 runner on a CPU: Triton's interpreter runs its kernels, and ours."""
    assert "vllm" not in sys.modules, "vLLM looks for Triton when it is imported"
    os.environ |= {"TRITON_INTERPRET": "1", "VLLM_USE_V2_MODEL_RUNNER": "1"}
    import triton.backends

    driver = SimpleNamespace(is_active=lambda: True)
    triton.backends.backends["cpu"] = SimpleNamespace(driver=driver, compiler=None)


def run(args: argparse.Namespace) -> dict:
    from support.engine.quantised import quantise
    from support.engine.reference import Reference
    from support.engine.tiny import VOCAB_SIZE, make_forget_set, make_target

    rng = random.Random(args.seed)
    target = make_target(args.work / "target", args.family, seed=args.seed, num_layers=args.layers)
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
    adapter_loads = watch_adapter_loads()
    if args.speculate:
        look_up_in_python()
        watched = watch_rows()
    tally = make_tally(args)
    engine, registry = start_engine(args, served, target)
    prompt_rows = watch_prompts()
    requests = draw_requests(rng, registry, args.requests)
    for request in requests:
        if args.v2:  # the interpreter runs all of its kernels but the grammars'
            request["steering"].pop("regex", None)
    if args.speculate:
        # Of a prompt of one token vLLM takes draft tokens for the rest.
        requests[2] |= {"prompt": [rng.randrange(2, VOCAB_SIZE)], "prompt_logprobs": 1, "abort_after": None}
        for request in requests:
            request["steering"].pop("logit_bias", None)  # vLLM has no bias then
            if rng.random() < 0.4:  # few tokens come again, and drafts are accepted
                request["steering"] |= {"allowed_token_ids": rng.sample(range(2, 512), 3), "min_tokens": 500}
                request["steering"].pop("bad_words", None)
    started = time.monotonic()
    drive(engine, requests, rng, tally)
    seconds = time.monotonic() - started
    check_seeds(engine, rng)
    if args.tensor_parallel == 1:
        if not args.v2:  # which runs all branches always
            requests += drive_few(engine, registry, rng, tally)
        check_branches_have_no_weights()
        most = PROMPT_LOGITS // (3 * VOCAB_SIZE)  # where both branches run
        assert most in prompt_rows and max(prompt_rows) <= PROMPT_LOGITS // VOCAB_SIZE, sorted(set(prompt_rows))
    counters = engine_counters(engine)
    if args.speculate:
        counters |= tally.totals()._asdict() | draft_counters(engine)
        counters |= {"steps": watched.steps, "with_drafts": watched.with_drafts}
    if args.tensor_parallel == 1:  # else the workers are other processes
        counters["adapter_loads"] = len(adapter_loads)
    mode = engine.vllm_config.compilation_config.mode.name
    assert engine.vllm_config.use_v2_model_runner == args.v2
    reference = Reference(twin, folders, rounds_inputs=args.quantised == "w8a8")
    exact = Reference(twin, folders, rounds_inputs=args.quantised == "w8a8", dtype=torch.float64)
    return judge(args, requests, reference, exact, counters, seconds, mode)


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
        num_gpu_blocks_override=BLOCKS.get(args.family, 17),
        enable_prefix_caching=True,
        enforce_eager=not args.default_compilation,
        tensor_parallel_size=args.tensor_parallel,
        disable_log_stats=False,
        speculative_config={**METHOD, "num_speculative_tokens": args.speculate} if args.speculate else None,
        **options,
    ).create_engine_config()
    compat.fork_on_a_cpu(num_threads=1)
    engine = LLMEngine.from_vllm_config(config)
    return engine, registry


def draw_prefixes(rng: random.Random) -> list[list[int]]:
    return [[rng.randrange(2, 512) for _ in range(n)] for n in (40, 90, 160, 230)]


def draw_requests(rng: random.Random, registry, num_requests: int) -> list[dict]:
    """Random requests; each tenth asks the one before again, with the same sets: its prompt is in the prefix cache.

    Of each eight one is steered with a set that acts at every token, and one says a set's sentence: what chance might
    leave out of a small run.
    """
    prefixes, requests = draw_prefixes(rng), []
    for index in range(num_requests):
        request = draw_request(rng, registry, prefixes)
        while (index % 8 == 4 and not (request["steering"] and acts_always(request))) or (
            index % 8 == 6 and not speaks_always(request)
        ):
            request = draw_request(rng, registry, prefixes)
        if index % 10 == 9:
            request = {**requests[-1], **{key: request[key] for key in FRESH}}
            # Of two such one is to read the cache, and one must not: a position from there has no logits.
            request["prompt_logprobs"] = rng.randint(0, 5) if index % 20 == 9 else None
        requests.append(request)
    return requests


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


def drive(engine, requests: list[dict], rng: random.Random, tally) -> None:
    """Feed the engine a few requests per step, so that batches are always mixed, and abort some midway."""
    from unlearngate.server.contract.plan import Plan, Term, sign
    from unlearngate.server.engine.compat import LoRARequest

    waiting = list(enumerate(requests))
    running = {}
    while waiting or engine.has_unfinished_requests():
        for _ in range(min(len(waiting), rng.randint(0, 3) if running else 1)):
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
    """Requests without any set, then with at most one each: no more branches run than the batch needs."""
    from unlearngate.server.worker.model import loaded_model

    model, prefixes, asked = loaded_model(), draw_prefixes(rng), []
    for most in (0, 1):
        drawn: list[dict] = []
        while len(drawn) < 6:
            request = draw_request(rng, registry, prefixes)
            if len(request["names"]) == most and (most or not request["student"]):
                drawn.append({**request, "abort_after": None})
        widths: list[int] = []
        hook = model.register_forward_hook(lambda _model, _inputs, hidden, widths=widths: widths.append(len(hidden.T)))
        drive(engine, drawn, rng, tally)
        hook.remove()
        ran = {width // model.hidden_size - 1 for width in widths}
        assert ran <= set(range(most + 1)) and most in ran, f"{ran} branches ran for batches with at most {most} sets"
        asked += drawn
    return asked


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
        "accepted": 200,
        "rejected": 200,
    }
    return per_200[name] * num_requests // 200 if name in per_200 else 1


def compare_drafts(counters: dict) -> list[str]:
    """What is wrong with the counts of draft tokens; vLLM leaves out those of requests that were aborted meanwhile."""
    plain_drafts, set_drafts, plain_accepted, set_accepted = (counters[name] for name in OF_DRAFTS)
    drafts, accepted = plain_drafts + set_drafts, plain_accepted + set_accepted
    of_vllm = counters["accepted"] + counters["rejected"]
    problems = []
    if not (of_vllm <= drafts <= 1.2 * of_vllm and counters["accepted"] <= accepted <= 1.2 * counters["accepted"]):
        problems.append(f"{accepted} of {drafts} draft tokens were noted, vLLM has {counters['accepted']} of {of_vllm}")
    if not (plain_drafts and set_drafts and set_accepted):
        problems.append(f"drafts without a set, with one, or accepted ones were not there: {counters}")
    if counters["with_drafts"] < counters["steps"] / 2:
        problems.append(f"of {counters['steps']} steps only {counters['with_drafts']} had more rows than requests")
    return problems


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
        **({"student_decided": totals["student_decided"]} if args.undial else {}),
        **{name: counters[name] for name in ("accepted", "rejected") if args.speculate},
        **({"said": totals["said"], "noted_gates": totals["noted"]} if args.tensor_parallel == 1 else {}),
        "open_gates": totals["open"],
        "closed_gates": totals["closed"],
        "logprobs_compared": totals["logprobs"],
        "prompts": sum(request["scored"] is not None for request in requests),
        "prompt_positions": prompts.positions,
        "prompt_composed": prompts.composed,
        "prompt_not_kept": prompts.not_kept,
    }
    problems += [
        f"the run had only {count} {name}, fewer than {floor(name, args.requests)}"
        for name, count in exercised.items()
        if count < floor(name, args.requests)
    ]
    if args.speculate:
        problems += compare_drafts(counters)
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
        **{name: counters[name] for name in ("steps", "with_drafts", *OF_DRAFTS) if args.speculate},
        "engine_seconds": round(seconds, 1),
        "problems": problems[:20],
    }


if __name__ == "__main__":
    sys.exit(main())
