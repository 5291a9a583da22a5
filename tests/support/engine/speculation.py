"""Speculative decoding in Triton's interpreter: prompt lookup, and what shows that drafts were verified.

The interpreter runs vLLM's rejection sampler, and all else of a step, but not the two kernels that look drafts up: they
have integers for masks. So drafts are looked up here in Python. What they are decides how many are accepted, never the
answer: a draft may be anything.
"""

from __future__ import annotations

from dataclasses import dataclass

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
