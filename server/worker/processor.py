"""The logits processor: composes every sampled row with the forget sets of its request.

One class for vLLM's two interfaces. The V1 runner reports batch changes to `update_state` and calls `apply(logits)`,
where row i is batch index i; the V2 runner keys requests by slot and calls `apply(logits, ctx)`, where ctx maps rows to
slots. Both end in `_compose`.

Under speculative decoding, on V2 alone, a request has a row for each draft token and one more. Each is composed as if
the drafts before it were in the answer, and vLLM keeps the tokens that it would have sampled from these rows.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from unlearngate.kernels.compose import compose, runs_triton
from unlearngate.kernels.pairs import Pairs
from unlearngate.kernels.scratch import Scratch
from unlearngate.server.contract.branches import MAX_BRANCHES
from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, verify
from unlearngate.server.contract.speculation import has_drafter
from unlearngate.server.contract.tally import COUNTS, Tally
from unlearngate.server.worker.batch import Batch, move
from unlearngate.server.worker.compat import (
    BatchUpdate,
    LogitsContext,
    MoveDirectionality,
    V1LogitsProcessor,
    V2LogitsProcessor,
    leaves_text_free,
    penalise_after_composing,
    steers,
    tell_rows_of_requests,
)
from unlearngate.server.worker.prompts import first_eos, refuse_unscorable
from unlearngate.server.worker.recorder import Composed, Recorder
from unlearngate.server.worker.rows import (
    acting_rows,
    kept_rows,
    output_positions,
    slots_of_rows,
    tokens_of_rows,
    without_drafts_behind,
)
from unlearngate.server.worker.saying import Saying
from unlearngate.server.worker.sequences import ListedTokens, Tokens
from unlearngate.server.worker.verbatim import Followed, Verbatim

if TYPE_CHECKING:
    from vllm import SamplingParams

logger = logging.getLogger(__name__)


class ComposeLogitsProcessor(V1LogitsProcessor, V2LogitsProcessor):
    """Subtracts the assistants' logits, row by row, as each request's signed plan says.

    A request without a valid token is refused at admission. If one reaches a worker all the same, its rows are forced
    to end-of-sequence, never the plain target.
    """

    @classmethod
    def validate_params(cls, sampling_params: SamplingParams) -> None:
        """Refuse a request that is not signed by our HTTP layer, or asks for logprobs that could not be composed.

        Raises: ValueError, which vLLM answers with HTTP 400.
        """
        verify((sampling_params.extra_args or {}).get(TOKEN_FIELD))
        refuse_unscorable(sampling_params)

    def __init__(self, vllm_config: Any, *runner: Any) -> None:
        from unlearngate.server.contract.refusals import refuse_unsupported

        refuse_unsupported(vllm_config)
        self._has_drafter = has_drafter(vllm_config.speculative_config)
        self._acting_R: Tensor | None = None  # rows of the step that a set has changed, if there is a drafter
        # V1 passes (device, is_pin_memory), V2 one object with the request states.
        self._device = torch.device(runner[0] if len(runner) == 2 else runner[0].device)
        if len(runner) == 1:
            penalise_after_composing()
            tell_rows_of_requests()
        self._eos = first_eos(vllm_config.model_config.hf_config)
        self._plans: dict[int, Plan | None] = {}  # by batch index (V1) or slot (V2); None = refused
        self._steered: dict[int, bool] = {}  # as the plans: whether the request changes the logits before us
        self._scored: dict[int, bool] = {}  # as the plans: whether the prompt's log-probabilities are asked for
        self._listed: dict[int, ListedTokens] = {}  # V1's own lists
        self._followed: dict[int, Followed | None] = {}  # as the plans: of those that withhold texts
        self._req_states = runner[0] if len(runner) == 1 else None
        self._rows_of_requests: np.ndarray | None = None  # while draft tokens are verified
        self._composed: Composed | None = None  # and what is recorded once it is known which rows are kept
        self._recorder = Recorder.attach(self._device)
        tally = Tally.attach()
        self._saying = Saying(tally.num_slots if tally else 0, self._eos, self._device)
        model = vllm_config.model_config
        self._verbatim = Verbatim(Path(model.tokenizer), model.get_vocab_size(), self._eos)
        self._complained: set[str] = set()
        self._vocab_size = 0
        self._cached: Batch | None = None
        self._scratch: Scratch | None = None
        if not runs_triton(self._device):
            from unlearngate.kernels.numba_compose import compile_kernels

            compile_kernels()
        self._counts = torch.zeros(COUNTS, dtype=torch.int64, device=self._device)

    # vLLM's V1 interface

    def is_argmax_invariant(self) -> bool:
        """False: forgetting changes the greedy choice."""
        return False

    def update_state(self, batch_update: BatchUpdate | None) -> None:
        """Follow the batch: removed, added, moved, in this order."""
        if batch_update is None:
            return
        self._cached = None
        by_index = (self._plans, self._steered, self._scored, self._listed, self._followed)
        for index in batch_update.removed:
            for of_index in by_index:
                of_index.pop(index, None)
        for index, params, prompt, output in batch_update.added:
            self._admit(index, params)
            self._listed[index] = ListedTokens(prompt, output)
        for source, destination, direction in batch_update.moved:
            swap = direction is MoveDirectionality.SWAP
            for of_index in by_index:
                move(of_index, source, destination, swap=swap)

    # vLLM's V2 interface

    def add_request(self, req_idx: int, sampling_params: SamplingParams) -> bool:
        """Take over a slot; True if its rows are to be composed."""
        self._cached = None
        plan = self._admit(req_idx, sampling_params)
        acts = plan is None or bool(plan.terms or plan.verbatim)
        return acts or (self._has_drafter and plan is not None and plan.adapts_target)

    def expect_rows(self, rows_of_requests: np.ndarray | None) -> None:
        """Draft tokens are going to be verified, and these are the rows of each request; None: that is over."""
        self._rows_of_requests, self._composed, self._acting_R = rows_of_requests, None, None

    def allow_drafts(self, draft_R: Tensor) -> Tensor:
        """(R,) the draft tokens of a step whose rows are composed; -1 for one that is to be rejected.

        A drafter knows what the target knows. A client could make an answer say a guess, and learn from the time that
        this takes whether the drafter has the same one. So where a set acts, no draft of a model is accepted.
        """
        return draft_R if self._acting_R is None else without_drafts_behind(self._acting_R, draft_R)

    def keep_rows(self, slots: np.ndarray, num_sampled: Tensor) -> None:
        """Of the rows that were expected as many of each request, from the first on, gave a token that is kept.

        What a rejected row had open is never recorded: its position is sampled again.
        """
        counts = self._rows_of_requests
        if self._recorder is None or counts is None:
            return
        plans = [self._plans.get(slot) or Plan() for slot in slots.tolist()]
        forgets = np.repeat([bool(plan.adapter_id or plan.verbatim) for plan in plans], counts)
        kept_R, drafts = kept_rows(counts, num_sampled, forgets)
        self._counts[1:] += drafts
        step = self._composed
        step = step and step._replace(position_R=step.position_R.masked_fill(~kept_R, -1))
        self._recorder.record(step, self._counts)

    # both

    def apply(self, logits: Tensor, ctx: LogitsContext | None = None) -> Tensor:
        """(R, V) target logits -> composed logits, in place."""
        num_rows = logits.shape[0]
        slots = tuple(range(num_rows)) if ctx is None else slots_of_rows(ctx, num_rows, self._rows_of_requests)
        batch = self._batch(slots, logits.shape[1])
        open_N: Tensor | None = None
        if batch.branch_N.numel():
            started = self._recorder.now() if self._recorder else None
            open_N = self._compose(logits, batch, knows_rows=ctx is None)
            if self._recorder or batch.sentences:
                self._follow(logits, batch, open_N, self._positions(slots, ctx), started)
        if self._has_drafter:
            self._acting_R = acting_rows(batch, open_N)
        if any(self._followed.get(slot) for slot in slots):
            self._withhold(logits, slots, ctx)
        # A row of an unknown request is as untrusted as one with a bad token.
        for row, slot in enumerate(slots):
            if self._plans.get(slot) is None:
                logits[row] = -torch.inf
                logits[row, self._eos] = 0.0
        return logits

    def is_steered(self) -> bool:
        """Whether a row that is composed may arrive changed: a client's bias, allowed tokens, a grammar.

        V2 tells nobody that a request has ended, so there a slot counts as it was last used.
        """
        composed = (index for index, plan in self._plans.items() if plan is not None and plan.terms)
        return any(self._steered[index] for index in composed)

    # `model.Composer`, which V1 can tell before a step runs and V2 cannot

    def branches(self, num_requests: int) -> list[int]:
        """How many branches, from the first on, each request of the batch needs; all if its need is not known.

        A plan has a term for every branch of its adapter, so an adapter always runs the same branches. A request whose
        plan cannot be carried out is ended, but its adapter's blocks of the prefix cache are not.
        """
        plans = (self._plans.get(index) for index in range(num_requests))
        return [
            MAX_BRANCHES if plan is None else max((term.branch + 1 for term in plan.terms), default=0) for plan in plans
        ]

    def scored(self, num_requests: int) -> list[bool]:
        """Whether each request of the batch asked for its prompt's log-probabilities; an unknown one may have."""
        return [self._scored.get(index, True) for index in range(num_requests)]

    def places(self, num_rows: int) -> Tensor:
        """(N,) int64: the assistants' rows that will be composed, as places among all S * R, branch by branch."""
        return self._batch(tuple(range(num_rows)), self._vocab_size).place_N

    def _batch(self, slots: tuple[int, ...], vocab_size: int) -> Batch:
        """Which sets are in force in which rows, as tensors: built once per batch composition."""
        if self._cached is None or self._cached.slots != slots:
            plans = [self._plans.get(slot) or Plan() for slot in slots]
            batch = Batch.build(slots, plans, vocab_size, self._device)
            self._cached = batch._replace(sentences=self._saying.sentences(plans))
        return self._cached

    def _admit(self, index: int, params: SamplingParams) -> Plan | None:
        """Take over a request's plan; None if it cannot be carried out."""
        plan: Plan | None = None
        self._followed[index] = None
        try:
            signed = verify((params.extra_args or {}).get(TOKEN_FIELD))
            self._followed[index] = self._verbatim.begin(signed)
            # A grammar would reject the sentence.
            plan = self._saying.check(signed) if leaves_text_free(params) else signed.speechless()
        except ValueError as error:
            self._complain(str(error))
        self._plans[index], self._steered[index] = plan, steers(params)
        self._scored[index] = params.prompt_logprobs is not None
        return plan

    def _complain(self, reason: str) -> None:
        """Log why requests are ended, once a reason: vLLM's V2 runner warms a GPU up with hundreds that none signed."""
        if reason not in self._complained:
            self._complained.add(reason)
            logger.error("a request reached the worker whose plan cannot be carried out (%s): it is ended", reason)

    def _withhold(self, logits: Tensor, slots: Sequence[int], ctx: LogitsContext | None) -> None:
        """Keep rows from completing a run of the texts that their requests withhold, in place."""
        tokens_R: Sequence[Tokens | None] = [self._listed.get(slot) for slot in slots]
        if ctx is not None:
            tokens_R = tokens_of_rows(self._req_states, ctx, slots)
        rows: list[tuple[int, Followed, Tokens]] = []
        for row, (slot, tokens) in enumerate(zip(slots, tokens_R, strict=True)):
            if (followed := self._followed.get(slot)) and tokens is not None:
                rows.append((row, followed, tokens))
        self._verbatim.forbid(logits, rows)

    def _positions(self, slots: Sequence[int], ctx: LogitsContext | None) -> Tensor:
        """(R,) int64: the output position that each row samples, or below 0 while its prompt is not complete.

        V1 also samples a token after a part of a prompt, and discards it: the row is then recorded again.
        """
        if ctx is not None:
            return output_positions(self._req_states, ctx)
        listed = (self._listed.get(slot) for slot in slots)
        positions = torch.tensor([len(tokens.output) if tokens else 0 for tokens in listed], dtype=torch.int64)
        return positions.to(self._device, non_blocking=True)

    def _compose(self, logits: Tensor, batch: Batch, *, knows_rows: bool) -> Tensor:
        """Compose in place; returns (N,) bool, which pairs were open.

        Args:
            logits: as in `apply`.
            batch: what is in force.
            knows_rows: whether a step's rows are known before its logits, as they are on V1.
        """
        from unlearngate.server.worker.model import loaded_model

        model = loaded_model()
        num_rows, chosen, assistant_NV, own_RV = model.take_assistant_logits()
        if num_rows != logits.shape[0] or (chosen is not None and chosen is not batch.place_N):
            raise RuntimeError("the assistants' logits are of another batch than the one that is being composed")
        if chosen is None:
            assistant_NV = assistant_NV[batch.place_N]
        model.is_steered = self.is_steered
        if knows_rows:
            self._vocab_size = logits.shape[1]
            model.composer = self
        if own_RV is None and self.is_steered():
            raise RuntimeError("a request changed its logits, and compute_logits kept no copy of the target's own")
        result = compose(logits, assistant_NV, batch.pairs, own_RV=own_RV, scratch=self._scratch_for(batch.pairs))
        self._end_bad_rows(logits, batch.pairs.row_N, result.bad_N)
        return result.open_N

    def _follow(self, logits: Tensor, batch: Batch, open_N: Tensor, position_R: Tensor, started: Any) -> None:
        """Let sequences say their sentences, in place, and record the step that was composed since `started`."""
        marks_R = torch.zeros(len(batch.slots), dtype=torch.int64, device=logits.device)
        if batch.sentences:
            marks_R += self._saying.say(logits, batch.sentences, position_R, open_N) << 8
        if self._recorder:
            marks_R.index_add_(0, batch.pairs.row_N, open_N.long() << batch.branch_N)
            step = Composed(started, self._recorder.now(), batch.leases, position_R, marks_R)
            if self._rows_of_requests is None:
                self._recorder.record(step, self._counts)
            else:
                self._composed = step

    def _scratch_for(self, pairs: Pairs) -> Scratch | None:
        """The kernels' memory, grown when a batch has more pairs than any before."""
        num_pairs = pairs.row_N.shape[0]
        if runs_triton(self._device) and (self._scratch is None or self._scratch.num_pairs < num_pairs):
            self._scratch = Scratch(2 * num_pairs, pairs.vocab_size, self._device)
        return self._scratch

    def _end_bad_rows(self, logits: Tensor, row_N: Tensor, bad_N: Tensor) -> None:
        """Let rows that hold NaN sample nothing but end-of-sequence, and count them; on a GPU without a host sync."""
        if logits.device.type == "cpu" and not bad_N.numpy().any():
            return
        bad_R = torch.zeros(logits.shape[0], dtype=torch.int64, device=logits.device).index_add_(0, row_N, bad_N.long())
        logits[:, self._eos].masked_fill_(bad_R > 0, 0.0)
        self._counts[0] += (bad_R > 0).sum()
        if logits.device.type == "cpu":
            logger.error("logits are not finite (%d rows so far): their requests are ended", int(self._counts[0]))
