"""Speculative decoding in Triton's interpreter: what it cannot run, and what shows that drafts were verified.

The interpreter runs vLLM's rejection sampler, its drafters, and all else of a step, but not the kernels that look
drafts up, nor the one by which a drafter draws: they have integers for masks. So this is done here in Python. What
drafts are decides how many are accepted, never the answer: a draft may be anything.
"""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace

import torch

METHOD = {"method": "ngram", "prompt_lookup_min": 1, "prompt_lookup_max": 3}


def look_up_in_python() -> None:
    """Let vLLM's proposer find in Python what its kernels would: behind the longest, then last match of the end."""
    from vllm.v1.worker.gpu.spec_decode.ngram.speculator import NgramGPUSpeculator

    def propose(self, input_batch, *_args, dummy_run=False, **_kwargs):
        states, num_sampled = self.req_states, _args[4]
        for index, slot in enumerate(input_batch.idx_mapping.tolist() if not dummy_run else []):
            length = int(states.total_len.gpu[slot])
            tokens = states.all_token_ids.gpu[slot, :length].tolist()
            found = follow(tokens, self.min_n, self.max_n)[: self.num_speculative_steps] if num_sampled[index] else []
            last = int(states.last_sampled_tokens[slot])
            padded = [*found, *[last] * (self.num_speculative_steps - len(found))]
            self.drafts[index] = torch.tensor(padded)
        return self.drafts[: input_batch.num_reqs]

    NgramGPUSpeculator.propose = propose


def draw_in_python() -> None:
    """Let a drafter with `draft_sample_method` "probabilistic" draw in Python, and keep its logits as its kernel would.

    The rejection sampler reads these as they are before the temperature. It runs but for a logarithm of CUDA's library.
    """
    from vllm.triton_utils import tl
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler_utils, speculator

    def draw(logits, slot_R, temperature, *_args, logits_cache, logits_cache_col, **_kwargs):
        there = slot_R >= 0  # a step that only warms up has no requests
        logits_cache[slot_R[there], int(logits_cache_col)] = logits[there]
        degrees = temperature[slot_R.clamp(0)][:, None]
        drawn = torch.multinomial((logits.float() / degrees.where(degrees > 0, 1.0)).softmax(-1), 1)
        return torch.where(degrees > 0, drawn, logits.argmax(-1, keepdim=True))[:, 0]

    speculator.gumbel_sample = draw
    rejection_sampler_utils.tldevice = SimpleNamespace(log1p=lambda x: tl.log(1.0 + x))


def follow(tokens: list[int], least: int, most: int) -> list[int]:
    """What came behind the longest run that the tokens also end with, of equally long ones the last."""
    for length in range(min(most, len(tokens) - 1), least - 1, -1):
        for at in range(len(tokens) - length - 1, -1, -1):
            if tokens[at : at + length] == tokens[-length:]:
                return tokens[at + length :]
    return []


@dataclass
class Watched:
    """Steps that were composed, and those among them in which a request had several rows."""

    steps: int = 0
    with_drafts: int = 0


def watch_rows() -> Watched:
    """Counts that grow as this process's processors compose."""
    from unlearngate.server.worker.processor import ComposeLogitsProcessor

    watched, apply = Watched(), ComposeLogitsProcessor.apply

    def counting(self, logits, ctx=None):
        watched.steps += 1
        watched.with_drafts += ctx is not None and logits.shape[0] > len(ctx.idx_mapping_np)
        return apply(self, logits, ctx)

    ComposeLogitsProcessor.apply = counting
    return watched


def draft_counters(engine) -> dict[str, int]:
    """Draft tokens that vLLM verified, and those that it accepted, from its own metrics."""
    wanted = ("vllm:spec_decode_num_draft_tokens", "vllm:spec_decode_num_accepted_tokens")
    found = {metric.name: int(metric.value) for metric in engine.get_metrics() if metric.name in wanted}
    drafted, accepted = (found[name] for name in wanted)
    return {"accepted": accepted, "rejected": drafted - accepted}
