"""The processor against vLLM's own batch classes: V1's InputBatch, V2's slots and LogitsContext."""

import random
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import EngineArgs, SamplingParams
from vllm.config import set_current_vllm_config
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.sample.logits_processor import LogitsProcessors
from vllm.v1.sample.logits_processor.interface import LogitsProcessor as V1LogitsProcessor
from vllm.v1.sample.logits_processor.interface import MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsProcessor as V2LogitsProcessor
from vllm.v1.worker.gpu.sample.logits_processor.loader import _load_v2_logitsprocs_by_fqcns
from vllm.v1.worker.gpu_input_batch import CachedRequestState, InputBatch

from support.engine.tiny import EOS, VOCAB_SIZE, make_target
from unlearngate.kernels.pairs import Pairs
from unlearngate.kernels.reference import compose_reference
from unlearngate.server.contract.branches import BranchOptions
from unlearngate.server.contract.options import engine_options
from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, Term, sign
from unlearngate.server.contract.refusals import PROCESSOR
from unlearngate.server.contract.tally import Tally
from unlearngate.server.worker import model as served
from unlearngate.server.worker import plugin
from unlearngate.server.worker.processor import ComposeLogitsProcessor
from unlearngate.target import identify_target

MAX_REQUESTS = 8
CPU = torch.device("cpu")
OPEN = (Term(0, 1.0, 0.0),)


class Assistants:
    """Stands where the loaded model stands: branch s of row r says `hidden[r, s]` through a fixed head."""

    def __init__(self, hidden_RSH: torch.Tensor, seed: int) -> None:
        self.hidden_RSH = hidden_RSH
        self.num_rows = len(hidden_RSH)
        self.composer = None
        self.own_RV = None
        self.head = torch.randn(hidden_RSH.shape[-1], VOCAB_SIZE, generator=torch.Generator().manual_seed(seed))

    def take_assistant_logits(self) -> served.AssistantLogits:
        hidden_NH = self.hidden_RSH[: self.num_rows].transpose(0, 1).flatten(0, 1)
        chosen = self.composer.places(self.num_rows) if self.composer else None
        logits_NV = self.assistant_logits(hidden_NH if chosen is None else hidden_NH[chosen])
        return served.AssistantLogits(self.num_rows, chosen, logits_NV, self.own_RV)

    def assistant_logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return hidden_NH @ self.head


@pytest.fixture(scope="module")
def vllm_config(tmp_path_factory):
    """The real configuration of a real engine over a tiny target."""
    target = make_target(tmp_path_factory.mktemp("target"), seed=1)
    plugin.register()
    branches = BranchOptions(identify_target(target).architecture, 1, 2, num_branches=2, adapted_layers=4)
    options = engine_options(branches, max_rank=8, max_loaded=2, max_known=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        return EngineArgs(model=str(target), max_model_len=64, enforce_eager=True, **options).create_engine_config()


@pytest.fixture
def processor(vllm_config):
    return ComposeLogitsProcessor(vllm_config, CPU, False)


@pytest.fixture
def assistants(monkeypatch):
    stand_in = Assistants(torch.randn(MAX_REQUESTS, 2, 16), seed=3)
    monkeypatch.setattr(served, "_loaded", weakref.ref(stand_in))
    yield stand_in


def params(plan: Plan | None) -> SamplingParams:
    return SamplingParams(extra_args={TOKEN_FIELD: sign(plan)} if plan is not None else None)


def random_plan(rng: random.Random) -> Plan:
    terms = tuple(
        Term(branch, rng.uniform(0.1, 2), rng.choice([0.0, 1.0]), rng.random() < 0.5)
        for branch in range(rng.randint(0, 2))
    )
    adapter_id = rng.randint(1, 9) if terms else rng.choice([0, 3])  # an adapter alone is on the target itself
    ratios = [rng.choice([0.0, rng.random()]) if terms else 0.0 for _ in range(2)]
    return Plan(adapter_id, ratios[0], terms, tail_ratio=ratios[1])


def expected(logits: torch.Tensor, plans: list[Plan], assistants: Assistants) -> torch.Tensor:
    """Row by row, through the reference."""
    rows = []
    for row, plan in enumerate(plans):
        one = logits[row : row + 1].clone()
        if plan.terms:
            compose_reference(
                one,
                assistants.assistant_logits(assistants.hidden_RSH[row, [t.branch for t in plan.terms]]),
                Pairs.build(
                    [0] * len(plan.terms),
                    [t.weight for t in plan.terms],
                    [t.gate_nats for t in plan.terms],
                    [plan.keep_ratio],
                    lowers_N=[t.lowers for t in plan.terms],
                    tail_ratio_R=[plan.tail_ratio],
                    vocab_size=logits.shape[1],
                ),
            )
        rows.append(one)
    return torch.cat(rows)


def test_one_class_satisfies_both_interfaces():
    assert issubclass(ComposeLogitsProcessor, V1LogitsProcessor)
    assert issubclass(ComposeLogitsProcessor, V2LogitsProcessor)
    assert _load_v2_logitsprocs_by_fqcns([PROCESSOR]) == [ComposeLogitsProcessor]


def test_v1_state_follows_vllms_batch_through_adds_removals_moves_and_swaps(vllm_config, processor, seed):
    rng = random.Random(seed)
    with set_current_vllm_config(vllm_config):
        batch = InputBatch(
            max_num_reqs=MAX_REQUESTS,
            max_model_len=64,
            max_num_batched_tokens=64,
            device=CPU,
            vocab_size=VOCAB_SIZE,
            block_sizes=[32],
            max_num_blocks_per_req=[2],
            logitsprocs=LogitsProcessors([processor]),
        )
    plans: dict[str, Plan] = {}
    for step in range(300):
        for request_id in rng.sample(sorted(plans), k=rng.randint(0, len(plans))) if rng.random() < 0.4 else []:
            batch.remove_request(request_id)
            del plans[request_id]
        for n in range(rng.randint(0, MAX_REQUESTS - len(plans)) if rng.random() < 0.5 else 0):
            request_id = f"{step}-{n}"
            plans[request_id] = random_plan(rng)
            batch.add_request(_request(request_id, plans[request_id]))
        batch.condense()
        if len(plans) > 1 and rng.random() < 0.5:
            batch.swap_states(*rng.sample(range(len(plans)), 2))
        batch.refresh_metadata()
        followed = [processor._plans.get(index) for index in range(batch.num_reqs)]
        assert followed == [plans[request_id] for request_id in batch.req_ids], f"seed {seed}, step {step}"


def _request(request_id: str, plan: Plan) -> CachedRequestState:
    return CachedRequestState(
        req_id=request_id,
        prompt_token_ids=[2, 3],
        mm_features=[],
        sampling_params=params(plan),
        generator=None,
        block_ids=([0],),
        num_computed_tokens=0,
        output_token_ids=[],
    )


def test_v1_composes_each_row_by_its_own_plan(processor, assistants, seed):
    rng = random.Random(seed)
    plans = [random_plan(rng) for _ in range(MAX_REQUESTS)]
    added = [(i, params(plan), [2], []) for i, plan in enumerate(plans)]
    processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    for _ in range(2):  # the second step reuses the first one's index tensors
        logits = torch.randn(MAX_REQUESTS, VOCAB_SIZE)
        wanted = expected(logits, plans, assistants)
        torch.testing.assert_close(processor.apply(logits), wanted, msg=lambda m: f"seed {seed}: {m}")


def test_v1_asks_for_the_rows_that_it_composes_from_the_second_step_on(processor, assistants, seed):
    rng = random.Random(seed)
    for _ in range(5):
        plans = [random_plan(rng) for _ in range(rng.randint(1, MAX_REQUESTS))]
        assistants.num_rows = len(plans)
        added = [(i, params(plan), [2], []) for i, plan in enumerate(plans)]
        processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
        logits = torch.randn(len(plans), VOCAB_SIZE)
        wanted = expected(logits, plans, assistants)
        torch.testing.assert_close(processor.apply(logits), wanted, msg=lambda m: f"seed {seed}: {m}")
    asked = assistants.composer.places(len(plans)).tolist()
    assert asked == [t.branch * len(plans) + row for row, plan in enumerate(plans) for t in plan.terms]


STEERING = {
    "logit_bias": {5: -3.0},
    "allowed_token_ids": [3, 4],
    "bad_words": ["x"],
    "min_tokens": 2,
    "structured_outputs": StructuredOutputsParams(regex="[a-m]*"),
}


@pytest.mark.parametrize("field", STEERING)
def test_the_targets_own_logits_are_asked_for_while_a_composed_request_changes_them(vllm_config, assistants, field):
    forgets, plain = Plan(1, 0.0, (Term(0, 1.0, 0.0),)), Plan()
    v1 = ComposeLogitsProcessor(vllm_config, CPU, False)
    v2 = ComposeLogitsProcessor(vllm_config, SimpleNamespace(device=CPU))
    steered = {"temperature": 0.5, field: STEERING[field]}
    for plan, more, wanted in ((forgets, {}, False), (plain, steered, False), (forgets, steered, True)):
        asked = SamplingParams(extra_args={TOKEN_FIELD: sign(plan)}, **more)
        v1.update_state(
            SimpleNamespace(removed=[3], added=[(0, asked, [2], []), (1, params(plain), [2], [])], moved=[])
        )
        v2.add_request(4, asked)
        assert (v1.is_steered(), v2.is_steered()) == (wanted, wanted)
    v1.update_state(SimpleNamespace(removed=[], added=[], moved=[(0, 3, MoveDirectionality.UNIDIRECTIONAL)]))
    assert v1.is_steered()
    v1.update_state(SimpleNamespace(removed=[3], added=[], moved=[]))
    v2.add_request(4, params(plain))
    assert not v1.is_steered() and not v2.is_steered()


def test_what_is_kept_is_decided_on_the_targets_own_logits(processor, assistants):
    plan = Plan(1, 0.3, (Term(0, 1.0, 0.0, True), Term(1, 0.5, 0.0)), tail_ratio=0.01)
    asked = SamplingParams(extra_args={TOKEN_FIELD: sign(plan)}, logit_bias={5: 9.0})
    processor.update_state(SimpleNamespace(removed=[], added=[(0, asked, [2], [])], moved=[]))
    assistants.num_rows = 1
    own = torch.randn(1, VOCAB_SIZE)
    shown = own.clone()
    shown[0, 5] += 9.0
    shown[0, own[0].topk(40).indices] = -torch.inf
    wanted = expected(own, [plan], assistants) + (shown - own)
    assistants.own_RV = own
    torch.testing.assert_close(processor.apply(shown), wanted)
    assert assistants.is_steered()
    assistants.own_RV = None
    with pytest.raises(RuntimeError, match="kept no copy"):
        processor.apply(torch.randn(1, VOCAB_SIZE))


def test_each_request_needs_the_branches_of_its_own_sets(processor):
    plans = [Plan(n, 0.0, tuple(Term(branch, 0.0, 9.0) for branch in range(n))) for n in range(3)]
    undial = Plan(7, 0.0, ())
    for batch in ([0], [0, undial], [0, 1, 1], [1, 2, 0], []):
        added = [(i, params(plans[p] if isinstance(p, int) else p), [2], []) for i, p in enumerate(batch)]
        removed = list(range(MAX_REQUESTS))
        processor.update_state(SimpleNamespace(removed=removed, added=added, moved=[]))
        assert processor.branches(len(batch)) == [p if isinstance(p, int) else 0 for p in batch]
    added = [(0, params(None), [2], []), (1, params(plans[1]), [2], []), (2, params(plans[0]), [2], [])]
    processor.update_state(SimpleNamespace(removed=[], added=added, moved=[(1, 2, MoveDirectionality.SWAP)]))
    ended, plain, one, unknown = processor.branches(4)
    assert (plain, one) == (0, 1)
    assert ended >= 2 and unknown >= 2  # they will be ended, but what their adapters compute is cached


def test_assistants_of_another_batch_are_not_composed(processor, assistants):
    plan = Plan(1, 0.0, (Term(0, 1.0, 0.0),))
    for count in (2, 3):
        added = [(i, params(plan), [2], []) for i in range(count)]
        processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
        assistants.num_rows = count
        processor.apply(torch.randn(count, VOCAB_SIZE))
    assistants.num_rows = 2
    with pytest.raises(RuntimeError, match="another batch"):
        processor.apply(torch.randn(3, VOCAB_SIZE))
    assistants.num_rows = 3
    kept = assistants.take_assistant_logits()
    assistants.take_assistant_logits = lambda: kept._replace(chosen=kept.chosen.clone())
    with pytest.raises(RuntimeError, match="another batch"):
        processor.apply(torch.randn(3, VOCAB_SIZE))


def test_v2_composes_each_row_by_the_plan_of_its_slot(vllm_config, assistants, seed):
    rng = random.Random(seed)
    processor = ComposeLogitsProcessor(vllm_config, SimpleNamespace(device=CPU))
    by_slot: dict[int, Plan] = {}
    for _ in range(20):  # slots are recycled without notice: a new request must overwrite all of the old one's state
        slot = rng.randrange(MAX_REQUESTS)
        by_slot[slot] = random_plan(rng)
        assert processor.add_request(slot, params(by_slot[slot])) == bool(by_slot[slot].terms)
        processor.apply_staged_writes()
        slots = rng.sample(sorted(by_slot), k=rng.randint(1, len(by_slot)))
        assistants.num_rows = len(slots)
        logits = torch.randn(len(slots), VOCAB_SIZE)
        wanted = expected(logits, [by_slot[s] for s in slots], assistants)
        torch.testing.assert_close(processor.apply(logits, _context(slots)), wanted, msg=lambda m: f"seed {seed}: {m}")


def test_v2_composes_a_row_behind_each_draft_token(vllm_config, assistants, seed):
    rng = random.Random(seed)
    processor = ComposeLogitsProcessor(vllm_config, SimpleNamespace(device=CPU))
    by_slot = {slot: random_plan(rng) for slot in range(MAX_REQUESTS)}
    for slot, plan in by_slot.items():
        processor.add_request(slot, params(plan))
    for _ in range(10):
        slots = rng.sample(range(MAX_REQUESTS), 3)
        counts = [rng.randint(1, 2) for _ in slots]
        rows = [slot for slot, count in zip(slots, counts, strict=True) for _ in range(count)]
        assistants.num_rows = len(rows)
        processor.expect_rows(np.array(counts))
        logits = torch.randn(len(rows), VOCAB_SIZE)
        wanted = expected(logits, [by_slot[slot] for slot in rows], assistants)
        done = processor.apply(logits, replace(_context(rows), idx_mapping_np=np.array(slots)))
        torch.testing.assert_close(done, wanted, msg=lambda m: f"seed {seed}: {m}")


@pytest.fixture
def eagle(vllm_config, monkeypatch):
    """The configuration with a drafter; vLLM has its V2 runner only where Triton is."""
    monkeypatch.setenv("VLLM_USE_V2_MODEL_RUNNER", "1")
    monkeypatch.setattr(vllm_config, "speculative_config", SimpleNamespace(method="eagle3"), raising=True)
    return vllm_config


def test_a_drafters_token_is_rejected_behind_a_row_in_which_a_set_acts(eagle, assistants, seed):
    rng = random.Random(seed)
    processor = ComposeLogitsProcessor(eagle, SimpleNamespace(device=CPU))
    student = Plan(3, 0.0, (), adapts_target=True)
    plans = [Plan(1, 0.1, (Term(0, 1.0, 1.0), Term(1, 1.0, 0.5))), Plan(), student, replace(student, terms=OPEN)]
    assert [processor.add_request(slot, params(plan)) for slot, plan in enumerate(plans)] == [True, False, True, True]
    wanted, seen = {(0, True), (0, False), (1, False), (2, True), (3, True)}, set()
    while not wanted <= seen:
        slots = rng.sample(range(4), 3)
        counts = [rng.randint(1, 4) for _ in slots]
        rows = [slot for slot, count in zip(slots, counts, strict=True) for _ in range(count)]
        assistants.num_rows = len(rows)
        scales = torch.tensor([0.05, 1.0])[torch.randint(2, (len(rows), 2, 1))]
        assistants.hidden_RSH = torch.randn(len(rows), 2, 16) * scales
        processor.expect_rows(np.array(counts))
        processor.apply(torch.randn(len(rows), VOCAB_SIZE), replace(_context(rows), idx_mapping_np=np.array(slots)))
        drafts = torch.randint(2, VOCAB_SIZE, (len(rows),))
        allowed = processor.allow_drafts(drafts)
        acts = [
            plans[slot].adapts_target or any(open_branches(plans[slot], assistants, r)) for r, slot in enumerate(rows)
        ]
        for row, slot in enumerate(rows[1:], 1):
            if rows[row - 1] == slot:  # a request's first row is behind no draft
                assert allowed[row] == (-1 if acts[row - 1] else drafts[row]), f"seed {seed}"
                seen.add((slot, acts[row - 1]))
        processor.expect_rows(None)
        assert torch.equal(processor.allow_drafts(drafts), drafts)
    assert seen == wanted


def test_drafts_that_are_looked_up_are_accepted_wherever_a_row_has_them(vllm_config, assistants):
    processor = ComposeLogitsProcessor(vllm_config, SimpleNamespace(device=CPU))
    processor.add_request(0, params(Plan(1, 0.0, OPEN)))
    assistants.num_rows = 3
    processor.expect_rows(np.array([3]))
    processor.apply(torch.randn(3, VOCAB_SIZE), replace(_context([0, 0, 0]), idx_mapping_np=np.array([0])))
    drafts = torch.tensor([5, 6, 7])
    assert torch.equal(processor.allow_drafts(drafts), drafts)


def _context(slots: list[int], visible: int = 1) -> LogitsContext:
    """A row of each slot; `visible` tokens are in the sequences."""
    mapping = torch.tensor(slots)
    zeros = torch.zeros(len(slots), dtype=torch.int64)
    return LogitsContext(
        expanded_idx_mapping=mapping,
        idx_mapping=mapping,
        idx_mapping_np=np.array(slots),
        expanded_local_pos=zeros,
        input_ids=zeros,
        pos=zeros + visible - 1,
        seq_lens_upper_bound_np=np.full(len(slots), visible),
    )


def test_a_batch_without_sets_is_returned_untouched_and_asks_no_assistant(processor):
    processor.update_state(SimpleNamespace(removed=[], added=[(0, params(Plan()), [2], [])], moved=[]))
    logits = torch.randn(1, VOCAB_SIZE)
    before = logits.clone()
    assert torch.equal(processor.apply(logits), before)


@pytest.mark.parametrize("token", [None, "forged.0000", 7])
def test_a_row_without_a_valid_token_can_only_end(processor, token):
    bad = SamplingParams(extra_args={TOKEN_FIELD: token} if token is not None else None)
    processor.update_state(
        SimpleNamespace(removed=[], added=[(0, bad, [2], []), (1, params(Plan()), [2], [])], moved=[])
    )
    logits = torch.randn(2, VOCAB_SIZE)
    plain = logits[1].clone()
    processor.apply(logits)
    assert torch.isneginf(logits[0]).sum() == VOCAB_SIZE - 1
    assert int(logits[0].argmax()) == EOS
    assert torch.equal(logits[1], plain)


def test_a_row_that_was_never_announced_can_only_end(processor):
    logits = processor.apply(torch.randn(1, VOCAB_SIZE))
    assert int(logits[0].argmax()) == EOS
    assert torch.isneginf(logits[0]).sum() == VOCAB_SIZE - 1


def test_a_row_with_nan_is_counted_and_can_only_end(processor, assistants):
    plan = Plan(1, 0.0, (Term(0, 1.0, 0.0),))
    added = [(i, params(plan), [2], []) for i in range(2)]
    processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    assistants.num_rows = 2
    logits = torch.randn(2, VOCAB_SIZE)
    logits[0, 5] = torch.nan
    processor.apply(logits)
    assert int(processor._counts[0]) == 1
    assert int(logits[0].argmax()) == EOS
    assert not torch.isnan(logits).any()
    assert torch.isfinite(logits[1]).all()


@pytest.mark.parametrize("counts", [None, [2], [3, 1]])
def test_more_rows_than_requests_is_an_error_not_a_guess(vllm_config, counts):
    processor = ComposeLogitsProcessor(vllm_config, SimpleNamespace(device=CPU))
    processor.add_request(0, params(Plan()))
    processor.expect_rows(counts and np.array(counts))
    with pytest.raises(RuntimeError, match="3 logits rows for 1 requests"):
        processor.apply(torch.zeros(3, VOCAB_SIZE), _context([0]))


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"extra_args": None}, "no composition token"),
        ({"extra_args": {TOKEN_FIELD: "x.y"}}, "not signed"),
        ({"extra_args": None, "prompt_logprobs": 1}, "no composition token"),
    ],
)
def test_admission_refuses_what_would_show_the_plain_target(vllm_config, changes, sentence):
    fields = {"extra_args": {TOKEN_FIELD: sign(Plan())}, **changes}
    with pytest.raises(ValueError, match=sentence):
        ComposeLogitsProcessor.validate_params(SamplingParams(**fields))


@pytest.fixture
def tally(tmp_path):
    return Tally.create(tmp_path, max_num_seqs=MAX_REQUESTS, max_model_len=64)


def open_branches(plan: Plan, assistants: Assistants, row: int) -> list[bool]:
    """By branch, through the reference."""
    is_open = [False] * 8
    if plan.terms:
        pairs = Pairs.build(
            [0] * len(plan.terms),
            [t.weight for t in plan.terms],
            [t.gate_nats for t in plan.terms],
            [plan.keep_ratio],
            vocab_size=VOCAB_SIZE,
        )
        hidden_NH = assistants.hidden_RSH[row, [t.branch for t in plan.terms]]
        result = compose_reference(torch.zeros(1, VOCAB_SIZE), assistants.assistant_logits(hidden_NH), pairs)
        for term, opened in zip(plan.terms, result.open_N.tolist(), strict=True):
            is_open[term.branch] = opened
    return is_open


def leased(plan: Plan, tally: Tally) -> Plan:
    return replace(plan, lease=tally.lease() if plan.terms else 0)


def test_v1_notes_open_gates_by_output_position_through_moves_and_rows_that_vllm_discards(
    vllm_config, assistants, tally, seed
):
    rng = random.Random(seed)
    processor = ComposeLogitsProcessor(vllm_config, CPU, False)
    plans = [leased(random_plan(rng), tally) for _ in range(MAX_REQUESTS)]
    outputs: list[list[int]] = [[] for _ in plans]
    order = list(range(MAX_REQUESTS))  # batch index -> request
    added = [(i, params(plan), [2], outputs[i]) for i, plan in enumerate(plans)]
    processor.update_state(SimpleNamespace(removed=[], added=added, moved=[]))
    expected_open = [[0] * 8 for _ in plans]
    for _ in range(12):
        a, b = rng.sample(range(MAX_REQUESTS), 2)
        order[a], order[b] = order[b], order[a]
        processor.update_state(SimpleNamespace(removed=[], added=[], moved=[(a, b, MoveDirectionality.SWAP)]))
        assistants.hidden_RSH = torch.randn(MAX_REQUESTS, 2, 16) * rng.choice([0.1, 1.0])
        processor.apply(torch.randn(MAX_REQUESTS, VOCAB_SIZE))
        for row, request in enumerate(order):
            if rng.random() < 0.8:  # else its prompt is not complete, or it was preempted
                outputs[request].append(-1)
                opened = open_branches(plans[request], assistants, row)
                expected_open[request] = [n + o for n, o in zip(expected_open[request], opened, strict=True)]
    for plan, output, counts in zip(plans, outputs, expected_open, strict=True):
        if plan.terms:
            assert tally.open_tokens(plan.lease, len(output)) == counts, f"seed {seed}"
    assert tally.totals().steps == 12
    assert tally.totals().compose_ns > 0


def test_v2_notes_open_gates_by_output_position(vllm_config, assistants, tally, seed):
    rng = random.Random(seed)
    prompt_len, prefill_len = (SimpleNamespace(gpu=torch.full((MAX_REQUESTS,), length)) for length in (5, 7))
    states = SimpleNamespace(device=CPU, prompt_len=prompt_len, prefill_len=prefill_len)
    processor = ComposeLogitsProcessor(vllm_config, states)  # resumed: two tokens were there before
    plan = leased(Plan(1, 0.0, (Term(0, 1.0, 0.0), Term(1, 1.0, 1e9))), tally)
    slot = rng.randrange(MAX_REQUESTS)
    processor.add_request(slot, params(plan))
    assistants.num_rows = 1
    for visible in (4, 6, 7, 8, 9):  # two parts of the prompt, then three tokens
        processor.apply(torch.randn(1, VOCAB_SIZE), _context([slot], visible))
    cells = np.array(tally._cells[plan.lease >> 8, :6])
    assert cells.tolist() == [0, 0, *[(plan.lease & 255) << 8 | 1] * 3, 0]


def test_v2_notes_nothing_of_a_rejected_draft_and_counts_it(vllm_config, assistants, tally, seed):
    rng = random.Random(seed)
    lengths = SimpleNamespace(gpu=torch.full((MAX_REQUESTS,), 5))
    processor = ComposeLogitsProcessor(
        vllm_config, SimpleNamespace(device=CPU, prompt_len=lengths, prefill_len=lengths)
    )
    plan = leased(Plan(1, 0.0, (Term(0, 1.0, 1.0), Term(1, 1.0, 0.5))), tally)
    processor.add_request(2, params(plan))
    processor.add_request(4, params(Plan()))
    num_tokens, counts, drafts, plain_drafts = 0, [0] * 8, [0, 0], [0, 0]
    for _ in range(12):
        num_rows, plain_rows = (rng.randint(1, 4), rng.randint(1, 3)) if num_tokens else (1, 1)
        assistants.num_rows = num_rows + plain_rows
        scales = torch.tensor([0.05, 1.0])[torch.randint(2, (assistants.num_rows, 2, 1))]
        assistants.hidden_RSH = torch.randn(assistants.num_rows, 2, 16) * scales
        behind = torch.cat([torch.arange(num_rows), torch.arange(plain_rows)])
        context = _context([2] * num_rows + [4] * plain_rows, 5 + num_tokens)
        context = replace(context, idx_mapping_np=np.array([2, 4]), expanded_local_pos=behind, pos=context.pos + behind)
        kept, plain_kept = rng.randint(1, num_rows), rng.randint(1, plain_rows)
        processor.expect_rows(np.array([num_rows, plain_rows]))
        processor.apply(torch.randn(assistants.num_rows, VOCAB_SIZE), context)
        processor.keep_rows(context.idx_mapping_np, torch.tensor([kept, plain_kept]))
        processor.expect_rows(None)
        for row in range(kept):
            counts = [n + o for n, o in zip(counts, open_branches(plan, assistants, row), strict=True)]
        num_tokens += kept
        drafts = [drafts[0] + num_rows - 1, drafts[1] + kept - 1]
        plain_drafts = [plain_drafts[0] + plain_rows - 1, plain_drafts[1] + plain_kept - 1]
        assert tally.open_tokens(plan.lease, num_tokens) == counts, f"seed {seed}"
        assert not tally._cells[plan.lease >> 8, num_tokens:].any()
    assert 0 < counts[0] < num_tokens
    totals = tally.totals()
    assert [totals.set_drafts, totals.set_accepted] == drafts
    assert [totals.plain_drafts, totals.plain_accepted] == plain_drafts
    assert totals.steps == 12


def test_bad_rows_are_told(vllm_config, assistants, tally):
    processor = ComposeLogitsProcessor(vllm_config, CPU, False)
    plan = leased(Plan(1, 0.0, (Term(0, 1.0, 0.0),)), tally)
    processor.update_state(SimpleNamespace(removed=[], added=[(0, params(plan), [2], [])], moved=[]))
    assistants.num_rows = 1
    processor.apply(torch.full((1, VOCAB_SIZE), torch.nan))
    assert tally.totals().bad_rows == 1
    assert tally.open_tokens(plan.lease, 1) == [0] * 8
