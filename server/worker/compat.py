"""Everything about vLLM, in the engine's processes, that differs between versions or is not its public API.

Tried: 0.32 (CPU build, V1 runner). The V2 interface exists from 0.32 on.
"""

from __future__ import annotations

import copy
import dataclasses
import json
import os
import sys
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import cache, partial
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from vllm.v1.sample.logits_processor.interface import BatchUpdate, MoveDirectionality
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor

if TYPE_CHECKING:
    from unlearngate.server.worker.batch import Parts
    from unlearngate.server.worker.prompts import PromptHead

_BUILT = "unlearngate_built"  # a field of vLLM's attention metadata: what they were built by and from
_PARTS = "unlearngate_parts"  # a field of vLLM's forward context
_COMPILING_THREADS = 4
_LOWER_PRIORITY = 10

__all__ = [
    "BatchUpdate",
    "LogitsContext",
    "MoveDirectionality",
    "V1LogitsProcessor",
    "V2LogitsProcessor",
    "adapts_a_row",
    "attend_part",
    "compile_definitions_behind_others",
    "compile_on_a_cpu",
    "count_ranks_at_once",
    "forget_experts",
    "group_cpu_lora",
    "leaves_text_free",
    "load_compiled_code",
    "may_cut_branches",
    "parts_of_step",
    "penalise_after_composing",
    "remember_attention_of_steps",
    "run_in_parts",
    "score_prompts_by",
    "show_drafters_the_target",
    "starts_of_requests",
    "steers",
    "tell_rows_of_requests",
    "undo_discarded_draws",
    "with_plain_experts",
]


def adapts_a_row(linear: Any) -> bool:
    """Whether a linear map's LoRA does anything in the batch that is about to run; no device is waited for.

    True also where nobody has said yet what is in the batch.
    """
    punica = getattr(linear, "punica_wrapper", None)
    if punica is None or punica.indices_len[0] is None:
        return True
    if (kernels := getattr(punica, "token_mapping_meta", None)) is not None:  # not on a CPU
        return not bool(kernels.no_lora_flag_cpu)
    return bool((punica.token_lora_indices >= 0).any())


def may_cut_branches(config: Any) -> bool:
    """Whether a branch may run over a part of a batch: on a CPU's V1 runner.

    Not on V2, where nobody knows a batch's rows before its logits. CUDA graphs, which repeat for all batches what was
    chosen when they were recorded, and the attention of a GPU are untried.
    """
    from vllm.platforms import current_platform

    return current_platform.is_cpu() and not config.use_v2_model_runner


@cache
def remember_attention_of_steps() -> None:
    """Let a CPU's attention metadata tell what they were built by and from, once for this process."""
    from vllm.v1.attention.backends.cpu_attn import CPUAttentionMetadataBuilder

    build = CPUAttentionMetadataBuilder.build

    def remembering(self: Any, common_prefix_len: int, common: Any, *args: Any, **kwargs: Any) -> Any:
        metadata = build(self, common_prefix_len, common, *args, **kwargs)
        setattr(metadata, _BUILT, (self, common))
        return metadata

    CPUAttentionMetadataBuilder.build = remembering


def starts_of_requests(layer: str) -> list[int] | None:
    """The first row of each request in the step that is about to run, and where the last one's end.

    None while the engine starts, when there are no requests.

    Args:
        layer: any attention layer's name.
    """
    from vllm.forward_context import get_forward_context

    metadata = get_forward_context().attn_metadata
    if not metadata:
        return None
    _, common = getattr(metadata[layer], _BUILT)
    starts: list[int] = common.query_start_loc_cpu.tolist()
    return starts


@contextmanager
def run_in_parts(parts: Parts, layers: Sequence[Sequence[str]]) -> Iterator[None]:
    """Let the step that is about to run know its parts, and each branch's attention see its own requests alone.

    In a part's last layer all keys and values are written, and its attention has the queries alone that are asked for.

    Args:
        parts: of the step.
        layers: for each part, the target's first, the names of its attention layers.
    """
    from vllm.forward_context import get_forward_context, override_forward_context

    context = get_forward_context()
    metadata, slots = context.attn_metadata, context.slot_mapping
    if metadata:
        metadata, slots, rows = {**metadata}, {**slots}, (None, *parts.row_M.split(parts.sizes[1:]))
        for part, (names, row_N, requests) in enumerate(zip(layers, rows, (None, *parts.requests), strict=False)):
            cut: dict[int, Any] = {}  # layers with the same blocks have the same metadata
            last = metadata[names[-1]]
            for name in names if requests is not None else ():
                whole = metadata[name]
                if id(whole) not in cut:
                    cut[id(whole)] = _attention_of(whole, requests, row_N)
                metadata[name] = cut[id(whole)]
                slots[name] = cut[id(whole)].slot_mapping
            if parts.asked_sizes[part] < parts.sizes[part]:
                metadata[names[-1]] = _attention_of(last, requests, row_N, parts.asked_R)
    fields = {"attn_metadata": metadata, "slot_mapping": slots}
    known = {**context.additional_kwargs, _PARTS: parts}
    with override_forward_context(dataclasses.replace(context, **fields, additional_kwargs=known)):
        yield


def _attention_of(
    whole: Any, requests: torch.Tensor | None, row_N: torch.Tensor | None, asked_R: torch.Tensor | None = None
) -> Any:
    """A CPU's attention metadata of some of the requests, which have the rows `row_N` of the step.

    What is not named here is not known of these requests, and a builder that asks for it fails.

    Args:
        whole: of all requests.
        requests: their places in the batch; None: all.
        row_N: int64, whose keys and values are written; None: all.
        asked_R: how many queries each request of the batch has, its last ones; None: all.
    """
    from vllm.v1.attention.backend import CommonAttentionMetadata

    builder, common = getattr(whole, _BUILT)
    chosen, rows = (slice(None) if index is None else index for index in (requests, row_N))
    lengths = (common.naive_query_lens() if asked_R is None else asked_R)[chosen]
    starts = common.query_start_loc_cpu.new_zeros(len(lengths) + 1)
    torch.cumsum(lengths, 0, out=starts[1:])
    seq_lens = common.seq_lens[chosen]
    part = CommonAttentionMetadata(
        query_start_loc=starts,
        query_start_loc_cpu=starts,
        seq_lens=seq_lens,
        num_reqs=len(lengths),
        num_actual_tokens=int(starts[-1]),
        max_query_len=int(lengths.max()),
        max_seq_len=int(seq_lens.max()),
        block_table_tensor=common.block_table_tensor[chosen],
        slot_mapping=common.slot_mapping[rows],
        causal=common.causal,
    )
    return builder.build(0, part)


def parts_of_step() -> Parts | None:
    """The parts of the step that runs; None where each branch runs over all rows."""
    from vllm.forward_context import get_forward_context, is_forward_context_available

    return get_forward_context().additional_kwargs.get(_PARTS) if is_forward_context_available() else None


def attend_part(layer: str, *qkv: torch.Tensor) -> torch.Tensor:
    """Run an attention layer, by its name, over its part of a step's rows."""
    from vllm.forward_context import get_forward_context

    attended: torch.Tensor = get_forward_context().no_compile_layers[layer](*qkv)
    return attended


def compile_on_a_cpu(config: Any) -> None:
    """Compile on a CPU as vLLM does without LoRA: with LoRA it compiles nothing there, its operations being in the way.

    Ours are one operation to the compiler (`cpu_lora`). `--enforce-eager` stays as it is.
    """
    from vllm.config import CompilationMode
    from vllm.platforms import current_platform

    compilation = config.compilation_config
    eager = config.model_config.enforce_eager or compilation.backend != "inductor"
    if current_platform.is_cpu() and not eager and compilation.mode == CompilationMode.NONE:
        compilation.mode = CompilationMode.DYNAMO_TRACE_ONCE
        compilation.custom_ops[:] = ["none" if name == "all" else name for name in compilation.custom_ops]


@cache
def load_compiled_code() -> None:
    """Let a start on a CPU load what an earlier one compiled, once for this process.

    vLLM 0.32 saves it, and asks what it loads for `finalize_loading`, which its backend has and torch's inductor has
    not: https://github.com/vllm-project/vllm/issues/45447. For the latter nothing is left to do.
    """
    load = torch.compiler.load_compiled_function

    def load_whole(*args: Any, **kwargs: Any) -> Any:
        loaded: Any = load(*args, **kwargs)
        compiled = loaded._artifacts.compiled_fn
        if not hasattr(compiled, "finalize_loading"):
            compiled.finalize_loading = lambda config: None
        return loaded

    torch.compiler.load_compiled_function = load_whole


@cache
def count_ranks_at_once() -> None:
    """Let the V1 sampler count on a CPU how many tokens are as likely as one, without compiling, once for this process.

    vLLM 0.32 compiles this one sum when log-probabilities are first asked for, with --enforce-eager too. Canaries ask
    for some, so that every start would take the seconds.
    """
    from vllm.platforms import current_platform
    from vllm.v1.sample import sampler

    if current_platform.is_cpu():
        sampler.batched_count_greater_than = lambda x_RV, values_R1: (
            (x_RV >= values_R1).sum(-1, dtype=torch.int32).long()  # several times as fast as a sum in int64
        )


@cache
def compile_definitions_behind_others() -> None:
    """Let what answers must match compile at a lower priority than tokens are made, and several at a time.

    vLLM compiles in as many threads as half the cores: on two cores one slow definition keeps all others waiting.
    """
    from vllm.v1.structured_output import StructuredOutputManager

    init = StructuredOutputManager.__init__

    def patient(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        if hasattr(self, "executor"):
            self.executor.shutdown(wait=False)
            number = max(_COMPILING_THREADS, self.executor._max_workers)
            self.executor = ThreadPoolExecutor(number, initializer=_step_back)

    StructuredOutputManager.__init__ = patient


def _step_back() -> None:
    if sys.platform == "linux":  # elsewhere threads have no priority of their own
        thread = threading.get_native_id()
        lower = max(_LOWER_PRIORITY, os.getpriority(os.PRIO_PROCESS, thread))  # raising it would be refused
        os.setpriority(os.PRIO_PROCESS, thread, lower)


def with_plain_experts(config: Any) -> Any:
    """A configuration for building modules by which vLLM takes its best experts, and not those that could have LoRA.

    Those run on a GPU only, in Triton. What else has LoRA gets it after loading, whichever configuration built it.
    """
    plain = copy.copy(config)
    if config.lora_config is not None:
        # Compiled code is kept by all that decides it, and LoRA still does.
        plain.additional_config = {**config.additional_config, "lora": config.lora_config.compute_hash()}
        plain.lora_config = None
    return plain


def forget_experts(config: Any, prefix: str) -> None:
    """Let vLLM forget experts that were built below a name and that nothing runs, with the memory they hold."""
    known = config.compilation_config
    for name in [name for name in known.static_all_moe_layers if name.startswith(prefix)]:
        known.static_all_moe_layers.remove(name)
        del known.static_forward_context[name]


def group_cpu_lora() -> None:
    """Let engines of this process apply LoRA on a CPU by `cpu_lora.GroupedLora`."""
    from vllm.platforms.cpu import CpuPlatform

    CpuPlatform.get_punica_wrapper = classmethod(lambda cls: "unlearngate.server.worker.cpu_lora.GroupedLora")


@cache
def undo_discarded_draws() -> None:
    """Let a request with a seed draw once for each token of its answer on a CPU, too, once for this process.

    The V1 runner of vLLM 0.32 samples also behind a part of a prompt, and then winds the request's generator back by an
    offset that only a GPU's has; on a CPU that ends the engine.
    """
    from vllm.platforms import current_platform
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    if not current_platform.is_cpu():
        return
    sample, keep_books = GPUModelRunner._sample, GPUModelRunner._bookkeeping_sync

    def wound_back(self: Any, *args: Any, **kwargs: Any) -> Any:
        generators = self.input_batch.generators
        if not generators:  # as in most batches
            return sample(self, *args, **kwargs)
        states = {row: generators[row].get_state() for row in _discarded(self) & generators.keys()}
        sampled = sample(self, *args, **kwargs)
        for row, state in states.items():
            generators[row].set_state(state)
        return sampled

    def without_them(self: Any, *args: Any, **kwargs: Any) -> Any:
        batch, generators = self.input_batch, self.input_batch.generators
        if not generators:
            return keep_books(self, *args, **kwargs)
        discarded = _discarded(self)
        batch.generators = {row: one for row, one in generators.items() if row not in discarded}
        try:
            return keep_books(self, *args, **kwargs)
        finally:
            batch.generators = generators

    GPUModelRunner._sample, GPUModelRunner._bookkeeping_sync = wound_back, without_them


def _discarded(runner: Any) -> set[int]:
    """The rows of a batch whose prompt goes on behind this step."""
    return set(runner.discard_request_mask.np[: runner.input_batch.num_reqs].nonzero()[0].tolist())


def steers(params: Any) -> bool:
    """Whether a request has vLLM change its logits before custom processors see them.

    V1: grammars in the model runner, allowed tokens and bad words in the sampler, `min_tokens` and `logit_bias` in
    built-in processors. V2: grammars in the model runner, all others in the sampler's first processors; penalties come
    after ours (below).
    """
    fields = ("structured_outputs", "allowed_token_ids", "bad_words", "min_tokens", "logit_bias")
    return any(getattr(params, field) for field in fields)


def leaves_text_free(params: Any) -> bool:
    """Whether a request's answer may be any text: it has no grammar, or one that begins only where a tool is called.

    vLLM's is of that kind where the model may choose among tools of which one is strict.
    """
    if params.structured_outputs is None:
        return True
    grammar = json.loads(params.structured_outputs.structural_tag or "{}").get("format") or {}
    return grammar.get("type") == "triggered_tags" and not grammar.get("at_least_one")


@cache
def penalise_after_composing() -> None:
    """Let the V2 runner's sampler apply penalties after the composition, once for this process, as the V1 runner does.

    Penalties scale logits, so the order shows in the answer; V2 has them before any custom processor.
    """
    from vllm.v1.worker.gpu.sample.sampler import Sampler

    init = Sampler.__init__

    def reordered(self: Any, *args: Any, **kwargs: Any) -> None:
        init(self, *args, **kwargs)
        self.logits_processors.remove(self.penalties_state)
        self.logits_processors.append(self.penalties_state)

    Sampler.__init__ = reordered


@cache
def score_prompts_by(head: PromptHead, *, v2: bool) -> None:
    """Let vLLM take a prompt's log-probabilities from the head's logits, so many at a time as it says.

    Once for this process. What vLLM does with the logits stays its own.
    """
    (_score_on_v2 if v2 else _score_on_v1)(head)


def _score_on_v1(head: PromptHead) -> None:
    """The V1 runner takes one request after the other, and all of a step's rows at once: here, some at a time."""
    from vllm.v1.worker.gpu_model_runner import GPUModelRunner

    compute = GPUModelRunner._get_prompt_logprobs_dict

    def composed(self: Any, hidden_states: torch.Tensor, num_scheduled_tokens: dict[str, int]) -> dict[str, Any]:
        found: dict[str, Any] = {}
        asked, model = self.num_prompt_logprobs, self.model
        most = head.most_rows(hidden_states.shape[-1])
        try:
            for req_id in [req_id for req_id in asked if req_id in num_scheduled_tokens]:
                request = self.requests[req_id]
                params, begin = request.sampling_params, request.num_computed_tokens
                end = begin + num_scheduled_tokens[req_id]
                self.num_prompt_logprobs = {req_id: asked[req_id]}
                self.model = SimpleNamespace(compute_logits=partial(head.logits, params=params))
                try:
                    for start in range(begin, end, most):
                        request.num_computed_tokens = start
                        part = {req_id: min(most, end - start)}
                        found |= compute(self, hidden_states[start - begin :], part)
                finally:
                    request.num_computed_tokens = begin
                if not self.num_prompt_logprobs:  # the prompt is complete
                    del asked[req_id]
        finally:
            self.num_prompt_logprobs, self.model = asked, model
        return found

    GPUModelRunner._get_prompt_logprobs_dict = composed


def _score_on_v2(head: PromptHead) -> None:
    """The V2 runner takes all rows of a step in chunks, also those of requests that asked for nothing."""
    from vllm.v1.outputs import LogprobsTensors
    from vllm.v1.worker.gpu.sample import prompt_logprob

    worker = prompt_logprob.PromptLogprobsWorker
    add_request, compute = worker.add_request, worker.compute_prompt_logprobs

    def noted(self: Any, req_id: str, req_idx: int, sampling_params: Any) -> None:
        add_request(self, req_id, req_idx, sampling_params)
        self.token_id_scores.pop(req_id, None)  # refused at admission: they would be the plain target's
        vars(self).setdefault("params_by_slot", {})[req_idx] = sampling_params

    def composed(self: Any, logits_fn: Any, hidden_states: torch.Tensor, input_batch: Any, *rest: Any) -> Any:
        seen = 0
        slots, starts = input_batch.idx_mapping_np.tolist(), input_batch.query_start_loc_np.tolist()

        def logits_of_next(hidden_RW: torch.Tensor) -> torch.Tensor:
            nonlocal seen
            first, seen = seen, seen + len(hidden_RW)
            logits_RV = hidden_RW.new_zeros((len(hidden_RW), head.vocab_size), dtype=torch.float32)
            for index, slot in enumerate(slots):
                begin, end = max(starts[index], first) - first, min(starts[index + 1], seen) - first
                if begin < end and self.uses_prompt_logprobs[slot]:
                    logits_RV[begin:end] = head.logits(hidden_RW[begin:end], self.params_by_slot[slot])
            return logits_RV

        prompt_logprob.CHUNK_SIZE = head.most_rows(hidden_states.shape[-1])
        found = compute(self, logits_of_next, hidden_states, input_batch, *rest)
        # Where speculation puts draft tokens behind a prompt's last, vLLM counts their rows as the prompt's.
        scored = {req_id: int(rest[-1][slot]) - 1 for req_id, slot in zip(input_batch.req_ids, slots, strict=True)}
        return {req_id: LogprobsTensors(*(x[: scored[req_id]] for x in found[req_id][:3])) for req_id in found}

    worker.add_request, worker.compute_prompt_logprobs = noted, composed


@cache
def show_drafters_the_target() -> None:
    """Let the V2 runner give a drafter that reads final hidden states the target's alone, once for this process.

    The model's have the branches' behind them. Those of single layers (EAGLE-3) the model cuts itself.
    """
    from vllm.v1.worker.gpu import model_runner

    def of_target(model: Any, hidden_states: torch.Tensor) -> torch.Tensor:
        return hidden_states[:, : model.hidden_size]

    model_runner.get_drafter_hidden_states = of_target


@cache
def tell_rows_of_requests() -> None:
    """Let the V2 runner's rejection sampler tell whose rows are whose, once for this process.

    With draft tokens a request has several rows. `LogitsContext` has their number on the device alone, and nothing here
    waits for the device. A processor with `expect_rows` gets it, and is told by `keep_rows` which rows gave a token.
    By `allow_drafts` it rejects some: where a draft is -1 vLLM samples from the row as if there were none.

    The sampler verifies the rows of a step in parts of 1 GiB; here it takes all at once, as they were computed.
    """
    from vllm.v1.worker.gpu.spec_decode import rejection_sampler

    verify, choose = rejection_sampler.RejectionSampler.__call__, rejection_sampler.rejection_sample
    told: list[Any] = []

    def choosing(logits: Any, draft_logits: Any, draft_R: torch.Tensor, *args: Any, **kwargs: Any) -> Any:
        for processor in told:
            draft_R = processor.allow_drafts(draft_R)
        return choose(logits, draft_logits, draft_R, *args, **kwargs)

    def telling(self: Any, logits: Any, input_batch: Any, *args: Any, **kwargs: Any) -> Any:
        told[:] = [one for one in self.sampler.logits_processors if hasattr(one, "expect_rows")]
        for processor in told:
            processor.expect_rows(np.diff(input_batch.cu_num_logits_np))
        try:
            output = verify(self, logits, input_batch, *args, **kwargs)
            for processor in told:
                processor.keep_rows(input_batch.idx_mapping_np, output.num_sampled)
            return output
        finally:
            for processor in told:
                processor.expect_rows(None)

    rejection_sampler.RejectionSampler.__call__, rejection_sampler.rejection_sample = telling, choosing
    rejection_sampler.get_max_chunk_logits = lambda vocab_size: sys.maxsize
