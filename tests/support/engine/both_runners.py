"""The same random requests through the samplers of both of vLLM's model runners; prints the largest difference.

Run as a program, because Triton's interpreter, which stands in for a GPU, has to be chosen before vLLM is imported:
    python both_runners.py --requests 24 --seed 1 --work DIR
Both are vLLM's own: V1's InputBatch and Sampler, V2's RequestState and Sampler with its Triton kernels.
"""

# ruff: noqa: E402
from __future__ import annotations

import argparse
import json
import os
import random
import weakref
from pathlib import Path
from types import SimpleNamespace

os.environ.update(TRITON_INTERPRET="1", VLLM_CPU_KVCACHE_SPACE="1")

import triton.backends

# VLLM uses Triton on a CPU only if a backend of that name is there; interpreted kernels never ask it anything.
triton.backends.backends["cpu"] = SimpleNamespace(driver=None)

import numpy as np
import torch
import vllm.v1.worker.gpu.buffer_utils as gpu_buffers
from vllm import EngineArgs, SamplingParams
from vllm.config import set_current_vllm_config
from vllm.v1.sample.logits_processor import build_logitsprocs
from vllm.v1.sample.sampler import Sampler as V1Sampler
from vllm.v1.worker.cpu.buffer_utils import UvaBuffer
from vllm.v1.worker.gpu.sample.sampler import Sampler as V2Sampler
from vllm.v1.worker.gpu.states import RequestState
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from support.engine.tiny import EOS, VOCAB_SIZE, make_target, make_tokenizer
from support.texts import save_texts
from unlearngate.server.contract.branches import BranchOptions
from unlearngate.server.contract.options import engine_options
from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, Term, VerbatimSet, sign
from unlearngate.server.contract.refusals import PROCESSOR
from unlearngate.server.worker import model as served
from unlearngate.server.worker import plugin

CPU = torch.device("cpu")
MAX_REQUESTS, MAX_LEN = 8, 64
gpu_buffers.UvaBuffer = UvaBuffer  # as vLLM does it on a CPU (v1/worker/cpu/shm.py): there is no pinned memory


class Assistants:
    """Stands where the loaded model stands: gives both runners the same assistants' rows."""

    def __init__(self, hidden_RSH: torch.Tensor, own_RV: torch.Tensor) -> None:
        self.hidden_RSH = hidden_RSH
        self.head = torch.randn(hidden_RSH.shape[-1], VOCAB_SIZE)
        self.own_RV = own_RV

    def take_assistant_logits(self) -> served.AssistantLogits:
        logits_NV = self.hidden_RSH.transpose(0, 1).flatten(0, 1) @ self.head
        return served.AssistantLogits(MAX_REQUESTS, None, logits_NV, self.own_RV)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, required=True)
    parser.add_argument("--seed", type=int, required=True)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    rng = random.Random(args.seed)
    torch.manual_seed(args.seed)
    config = engine_config(args.work)
    text = "".join(rng.choices("0123456789abcde", k=300))
    texts = save_texts(args.work / "sets" / "digits", text, letters=24)
    withheld = VerbatimSet(texts.digest, str(texts.folder))
    differences, penalised, taken = [], 0, 0
    for _ in range(args.requests // MAX_REQUESTS):
        requests = [draw_request(rng, text, withheld) for _ in range(MAX_REQUESTS)]
        penalised += sum(r["params"].repetition_penalty != 1 for r in requests)
        logits = torch.randn(MAX_REQUESTS, VOCAB_SIZE) * 3
        stand_in = Assistants(torch.randn(MAX_REQUESTS, 2, 16), logits)
        served._loaded = weakref.ref(stand_in)
        v1, v2 = run_v1(config, requests, logits.clone()), run_v2(config, requests, logits.clone())
        differences.append((v1.exp() - v2.exp()).abs().max().item())
        assert torch.equal(torch.isneginf(v1), torch.isneginf(v2)), "the runners keep different tokens"
        assert (v1.argmax(-1) != logits.argmax(-1)).any(), "nothing was changed at all"
        next_tokens = [make_tokenizer()(r["next"].lower() + r["next"].upper()).input_ids for r in requests]
        here = [row for row, r in enumerate(requests) if r["next"]]
        assert all(torch.isneginf(v1[row, next_tokens[row]]).all() for row in here), "a run was completed"
        taken += len(here)
    figures = {"penalised": penalised, "withheld": taken, "difference": max(differences)}
    print(json.dumps({"requests": args.requests, **figures}))


def engine_config(work: Path):
    target = make_target(work / "target", seed=1)
    plugin.register()
    branches = BranchOptions("LlamaForCausalLM", 1, 2, num_branches=2)
    options = engine_options(branches, max_rank=8, max_loaded=2, max_known=4)
    return EngineArgs(model=str(target), max_model_len=MAX_LEN, enforce_eager=True, **options).create_engine_config()


def draw_request(rng: random.Random, text: str, withheld: VerbatimSet) -> dict:
    """A prompt, what was generated so far, a plan, and everything a client may use to steer.

    Some withhold a text, and have come up to the letter `next` that would complete a run.
    """
    prompt, output = ([rng.randrange(2, 40) for _ in range(rng.randint(1, 8))] for _ in range(2))
    withholds, next_letter = rng.random() < 0.5, ""
    if withholds and rng.random() < 0.7:
        start, given = rng.randrange(len(text) - 24), rng.randint(0, 22)
        said = make_tokenizer()(text[start : start + 23].upper()).input_ids
        prompt, output, next_letter = prompt + said[:given], said[given:], text[start + 23]
    terms = tuple(
        Term(branch, rng.uniform(0.1, 2), rng.choice([0.0, 1.0]), rng.random() < 0.5)
        for branch in range(rng.randint(0, 2))
    )
    steering = {
        "logit_bias": {rng.randrange(2, 40): rng.uniform(-20, 20) for _ in range(4)},
        "allowed_token_ids": rng.sample(range(2, VOCAB_SIZE), 200),
        "frequency_penalty": rng.uniform(-2, 2),
        "presence_penalty": rng.uniform(-2, 2),
        "repetition_penalty": rng.uniform(0.5, 2),
        "min_tokens": rng.randint(1, 30),
    }
    steering = {name: value for name, value in steering.items() if rng.random() < 0.6}
    keep_ratio, tail_ratio = (rng.choice([0.0, 0.02, 0.3]) if terms else 0.0 for _ in range(2))
    verbatim = (withheld,) if withholds else ()
    token = sign(Plan(1 if terms else 0, keep_ratio, terms, tail_ratio=tail_ratio, verbatim=verbatim))
    params = SamplingParams(temperature=1.0, max_tokens=40, extra_args={TOKEN_FIELD: token}, **steering)
    params.update_from_generation_config({}, EOS)
    return {"prompt": prompt, "output": output, "params": params, "next": next_letter}


def run_v1(config, requests: list[dict], logits: torch.Tensor) -> torch.Tensor:
    """(R, V) log-probabilities that the V1 runner samples from."""
    with set_current_vllm_config(config):
        batch = InputBatch(
            max_num_reqs=MAX_REQUESTS,
            max_model_len=MAX_LEN,
            max_num_batched_tokens=MAX_LEN,
            device=CPU,
            vocab_size=VOCAB_SIZE,
            block_sizes=[32],
            max_num_blocks_per_req=[2],
            logitsprocs=build_logitsprocs(config, CPU, False, False, [PROCESSOR]),
        )
    for index, request in enumerate(requests):
        state = CachedRequestState(
            req_id=str(index),
            prompt_token_ids=request["prompt"],
            mm_features=[],
            sampling_params=request["params"],
            generator=None,
            block_ids=([0],),
            num_computed_tokens=0,
            output_token_ids=request["output"],
        )
        batch.add_request(state)
    batch.refresh_metadata()
    return V1Sampler().apply_logits_processors(logits, batch.sampling_metadata, False).log_softmax(-1)


def run_v2(config, requests: list[dict], logits: torch.Tensor) -> torch.Tensor:
    """(R, V) log-probabilities that the V2 runner samples from."""
    from vllm.v1.worker.gpu.sample.logits_processor import build_custom_logits_processors

    states = RequestState(MAX_REQUESTS, MAX_LEN, MAX_LEN, 0, VOCAB_SIZE, CPU)
    custom = build_custom_logits_processors(config, states, False, [PROCESSOR])
    sampler = V2Sampler(config, MAX_REQUESTS, VOCAB_SIZE, CPU, states, custom_logits_processors=custom)
    for index, request in enumerate(requests):
        tokens = request["prompt"] + request["output"]
        states.add_request(str(index), len(request["prompt"]), tokens, len(tokens), 40)
    states.apply_staged_writes()
    slots = [states.req_id_to_index[str(index)] for index in range(len(requests))]
    for slot, request in zip(slots, requests, strict=True):
        sampler.add_request(slot, request["params"])
    sampler.apply_staged_writes()
    mapping = torch.tensor(slots)
    position = torch.tensor([len(r["prompt"]) + len(r["output"]) - 1 for r in requests])
    zeros = torch.zeros_like(mapping)
    last = torch.tensor([(r["prompt"] + r["output"])[-1] for r in requests])
    lengths = position.numpy() + 1
    composed = sampler.apply_sampling_params(logits, mapping, mapping, np.array(slots), position, last, zeros, lengths)
    return composed.log_softmax(-1)


if __name__ == "__main__":
    main()
