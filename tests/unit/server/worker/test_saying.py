"""Sentences in place of answers: decided at the first position, kept through whatever vLLM does to a batch."""

import json
import random
import weakref
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from vllm import EngineArgs, SamplingParams
from vllm.sampling_params import StructuredOutputsParams
from vllm.v1.sample.logits_processor.interface import MoveDirectionality
from vllm.v1.worker.gpu.sample.logits_processor.interface import LogitsContext

from support.engine.tiny import EOS, VOCAB_SIZE, make_target
from unlearngate.server.contract.branches import BranchOptions
from unlearngate.server.contract.options import engine_options
from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, Term, sign
from unlearngate.server.contract.tally import Tally
from unlearngate.server.worker import model as served
from unlearngate.server.worker import plugin
from unlearngate.server.worker.processor import ComposeLogitsProcessor
from unlearngate.target import identify_target

MAX_REQUESTS, WIDTH = 8, 64
CPU = torch.device("cpu")
NEVER = 1e9  # nats
FIRST, SECOND = (40, 41, 42, EOS), (50, EOS)


@pytest.fixture(scope="module")
def vllm_config(tmp_path_factory):
    target = make_target(tmp_path_factory.mktemp("target"), seed=1)
    plugin.register()
    branches = BranchOptions(identify_target(target).architecture, 1, 2, num_branches=2)
    options = engine_options(branches, max_rank=8, max_loaded=2, max_known=4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("VLLM_CPU_KVCACHE_SPACE", "1")
        return EngineArgs(model=str(target), max_model_len=WIDTH, enforce_eager=True, **options).create_engine_config()


@pytest.fixture
def tally(tmp_path, monkeypatch):
    monkeypatch.setattr("unlearngate.server.contract.tally._BUDGET_BYTES", 0)
    return Tally.create(tmp_path, max_num_seqs=MAX_REQUESTS, max_model_len=WIDTH)


class Assistants:
    """Stands where the loaded model stands: random logits for each row and branch, without evidence at scale 0."""

    num_rows = MAX_REQUESTS
    composer = None
    scale = 1.0
    own_RV: torch.Tensor | None = None

    def take_assistant_logits(self) -> served.AssistantLogits:
        chosen = self.composer.places(self.num_rows) if self.composer else None
        count = 2 * self.num_rows if chosen is None else len(chosen)
        return served.AssistantLogits(self.num_rows, chosen, self.scale * torch.randn(count, VOCAB_SIZE), self.own_RV)


@pytest.fixture(autouse=True)
def assistants(monkeypatch):
    stand_in = Assistants()
    monkeypatch.setattr(served, "_loaded", weakref.ref(stand_in))
    yield stand_in


@pytest.fixture
def processor(vllm_config, tally):
    return ComposeLogitsProcessor(vllm_config, CPU, False)


def plan_of(tally, *gates_and_sentences) -> Plan:
    terms = tuple(Term(branch, 1.0, gate, sentence=said) for branch, (gate, said) in enumerate(gates_and_sentences))
    return Plan(1, 0.0, terms, lease=tally.lease())


def params(plan: Plan, **more) -> SamplingParams:
    return SamplingParams(extra_args={TOKEN_FIELD: sign(plan)}, **more)


def update(processor, *, removed=(), added=(), moved=()):
    processor.update_state(SimpleNamespace(removed=list(removed), added=list(added), moved=list(moved)))


def said_by(row_V: torch.Tensor) -> int | None:
    """The token that a row allows, if it is one alone."""
    allowed = row_V.isfinite().nonzero()[:, 0].tolist()
    if len(allowed) != 1:
        return None
    assert row_V[allowed[0]] == 0.0
    return allowed[0]


def step(processor, assistants, outputs: list[list[int]], ctx=None) -> list[int | None]:
    """What each row's logits force; V1's lists grow as it samples."""
    assistants.num_rows = len(outputs)
    logits = torch.randn(len(outputs), VOCAB_SIZE)
    assistants.own_RV = logits.clone()
    logits = processor.apply(logits, ctx)
    forced = [said_by(row) for row in logits]
    for output, token in zip(outputs, forced, strict=True):
        output.append(-1 if token is None else token)
    return forced


def test_an_open_set_says_its_sentence_and_then_ends_for_ever(processor, assistants, tally):
    plans = [
        plan_of(tally, (0.0, FIRST)),
        plan_of(tally, (NEVER, FIRST)),
        plan_of(tally, (0.0, ()), (0.0, SECOND)),
        plan_of(tally, (0.0, FIRST), (0.0, SECOND)),
        plan_of(tally, (NEVER, FIRST), (0.0, SECOND)),
        plan_of(tally, (0.0, ())),
        Plan(),
    ]
    outputs: list[list[int]] = [[] for _ in plans]
    update(processor, added=[(i, params(plan), [2], outputs[i]) for i, plan in enumerate(plans)])
    for _ in range(6):
        step(processor, assistants, outputs)
    first, second, none = [*FIRST, EOS, EOS], [*SECOND, *[EOS] * 4], [-1] * 6
    assert outputs == [first, none, second, first, second, none, none]
    assert [tally.sentence_of(plan.lease) for plan in plans[:6]] == [1, 0, 2, 1, 2, 0]
    assert tally.open_tokens(plans[4].lease, 6)[:2] == [0, 6]


def test_a_set_that_opens_later_does_not_break_into_an_answer(processor, assistants, tally):
    plan = plan_of(tally, (2.0, FIRST))
    outputs: list[list[int]] = [[]]
    update(processor, added=[(0, params(plan), [2], outputs[0])])
    for assistants.scale in (0.0, 9.0, 9.0):
        step(processor, assistants, outputs)
    assert outputs == [[-1, -1, -1]]
    assert tally.open_tokens(plan.lease, 3)[0] == 2
    assert tally.sentence_of(plan.lease) == 0


def test_it_survives_moves_preemption_and_rows_that_vllm_discards(processor, assistants, tally, seed):
    """Every request of a random batch says what it would alone, whatever the batch does."""
    rng = random.Random(seed)
    waiting, running = [], []
    for _ in range(MAX_REQUESTS):
        said = (*(rng.randrange(2, VOCAB_SIZE) for _ in range(rng.randint(1, 20))), EOS)
        gate = rng.choice([0.0, 0.0, NEVER])
        plan = plan_of(tally, (NEVER, SECOND), (gate, said))
        waiting.append(SimpleNamespace(plan=plan, said=said if gate == 0 else (), output=[]))
    requests = list(waiting)
    for _ in range(120):
        if running and rng.random() < 0.3:  # preempted: the last one takes its index, as V1 does it
            index, last = rng.randrange(len(running)), len(running) - 1
            waiting.append(running[index])
            running[index] = running[last]
            running.pop()
            moved = [(last, index, MoveDirectionality.UNIDIRECTIONAL)] if index != last else []
            update(processor, removed=[index], moved=moved)
        if waiting and rng.random() < 0.6:  # V1 gives a resumed request a list of its own
            request = waiting.pop(rng.randrange(len(waiting)))
            request.output = list(request.output)
            update(processor, added=[(len(running), params(request.plan), [2], request.output)])
            running.append(request)
        if len(running) > 1 and rng.random() < 0.3:
            a, b = rng.sample(range(len(running)), 2)
            running[a], running[b] = running[b], running[a]
            update(processor, moved=[(a, b, MoveDirectionality.SWAP)])
        if not running:
            continue
        assistants.num_rows = len(running)
        logits = processor.apply(torch.randn(len(running), VOCAB_SIZE))
        for row, request in zip(logits, running, strict=True):
            if rng.random() < 0.7:  # else its prompt is not complete
                token = said_by(row)
                request.output.append(-1 if token is None else token)
    assert max(len(request.output) for request in requests) > 20
    for request in requests:
        length = len(request.output)
        expected = [*request.said, *[EOS] * length][:length] if request.said else [-1] * length
        assert request.output == expected, f"seed {seed}, {request}"


def test_the_last_row_at_the_first_position_decides(processor, assistants, tally):
    """V1 also samples after a part of a prompt, and discards it."""
    plan = plan_of(tally, (2.0, FIRST))
    for scales, expected in (((9.0, 0.0), None), ((0.0, 9.0), FIRST[0])):
        update(processor, removed=[0], added=[(0, params(plan), [2], [])])
        forced = [step(processor, assistants, [[]]) for assistants.scale in scales]
        assert forced[-1] == [expected]


def test_a_slots_next_sequence_decides_anew(processor, assistants, tally):
    spoken = plan_of(tally, (0.0, FIRST))
    update(processor, added=[(0, params(spoken), [2], output := [])])
    step(processor, assistants, [output])
    later = replace(spoken, lease=spoken.lease + 1, terms=(Term(0, 1.0, NEVER, sentence=FIRST),))
    update(processor, removed=[0], added=[(0, params(later), [2], output := [])])
    assert [step(processor, assistants, [output]) for _ in range(2)] == [[None], [None]]


def test_a_sequence_whose_decision_is_lost_can_only_end(processor, assistants, tally):
    plan = plan_of(tally, (NEVER, FIRST))
    update(processor, added=[(0, params(plan), [2], [7, 8])])
    assert step(processor, assistants, [[7, 8]]) == [EOS]


@pytest.mark.parametrize("lease", [0, MAX_REQUESTS << 8 | 1])
def test_a_sentence_without_a_place_is_never_left_out(processor, tally, lease):
    plan = Plan(1, 0.0, (Term(0, 1.0, 0.0, sentence=FIRST),), lease=lease)
    update(processor, added=[(0, params(plan), [2], [])])
    assert said_by(processor.apply(torch.randn(1, VOCAB_SIZE))[0]) == EOS


def test_a_grammar_is_not_broken(processor, assistants, tally):
    plan = plan_of(tally, (0.0, FIRST))
    structured = params(plan, structured_outputs=StructuredOutputsParams(choice=["a", "b"]))
    update(processor, added=[(0, structured, [2], output := [])])
    assert step(processor, assistants, [output]) == [None]
    assert tally.sentence_of(plan.lease) == 0


@pytest.mark.parametrize("at_least_one", [False, True])
def test_a_grammar_that_begins_where_a_tool_is_called_leaves_room_for_a_sentence(
    processor, assistants, tally, at_least_one
):
    # As vLLM has it for tools that the model may choose, or has to.
    tags = {"type": "triggered_tags", "triggers": ["<call>"], "tags": [], "at_least_one": at_least_one}
    grammar = StructuredOutputsParams(structural_tag=json.dumps({"type": "structural_tag", "format": tags}))
    plan = plan_of(tally, (0.0, FIRST))
    update(processor, added=[(0, params(plan, structured_outputs=grammar), [2], output := [])])
    assert step(processor, assistants, [output]) == [None if at_least_one else FIRST[0]]


def test_masks_and_bans_of_the_client_do_not_change_it(processor, assistants, tally):
    plan = plan_of(tally, (0.0, FIRST))
    update(processor, added=[(0, params(plan), [2], [])])
    assistants.num_rows = 1
    logits = torch.randn(1, VOCAB_SIZE)
    logits[0, FIRST[0]] = -torch.inf
    assert said_by(processor.apply(logits)[0]) == FIRST[0]


def test_v2_decides_at_the_first_position_after_the_whole_prompt(vllm_config, assistants, tally, monkeypatch):
    lengths, prefill = (SimpleNamespace(gpu=torch.full((MAX_REQUESTS,), 5)) for _ in range(2))
    processor = ComposeLogitsProcessor(
        vllm_config, SimpleNamespace(device=CPU, prompt_len=lengths, prefill_len=prefill)
    )
    plans = {3: plan_of(tally, (0.0, FIRST)), 6: plan_of(tally, (NEVER, FIRST), (0.0, SECOND)), 1: Plan()}
    for slot, plan in plans.items():
        processor.add_request(slot, params(plan))
    said: dict[int, list[int | None]] = {slot: [] for slot in plans}
    order = list(plans)

    def run(visible: int):
        order.reverse()
        forced = step(processor, assistants, [[] for _ in order], context(order, visible))
        for slot, token in zip(order, forced, strict=True):
            said[slot].append(token)

    for visible in (3, 5, 6):  # a part of the prompt, then two tokens
        run(visible)
    # Preempted and resumed in another slot: prompt and output are computed again, in two parts.
    processor.add_request(2, params(plans[3]))
    said[2], prefill.gpu = said.pop(3), torch.full((MAX_REQUESTS,), 7)
    order[order.index(3)] = 2
    for visible in (4, 7, 8, 9):
        run(visible)
    assert said[2] == [None, *FIRST[:2], None, *FIRST[2:], EOS]
    assert said[6] == [None, *SECOND, None, EOS, EOS, EOS]
    assert said[1] == [None] * 7
    assert [tally.sentence_of(plans[slot].lease) for slot in (3, 6)] == [1, 2]


def test_rows_behind_draft_tokens_say_what_the_first_row_decided(vllm_config, assistants, tally, seed):
    """Whether the decision is this step's or an earlier one's, and whatever rows at these positions were rejected."""
    rng = random.Random(seed)
    lengths = SimpleNamespace(gpu=torch.full((MAX_REQUESTS,), 5))
    processor = ComposeLogitsProcessor(
        vllm_config, SimpleNamespace(device=CPU, prompt_len=lengths, prefill_len=lengths)
    )
    plans = {3: plan_of(tally, (0.0, FIRST)), 6: plan_of(tally, (2.0, SECOND)), 1: plan_of(tally, (0.0, ()))}
    for slot, plan in plans.items():
        processor.add_request(slot, params(plan))

    def run(visible: int, num_rows: int) -> list[list[int | None]]:
        slots, steps = list(plans), torch.arange(num_rows).repeat(len(plans))
        rows = [slot for slot in slots for _ in range(num_rows)]
        processor.expect_rows(np.full(len(slots), num_rows))
        whole = context(rows, visible)
        whole = replace(whole, idx_mapping_np=np.array(slots), expanded_local_pos=steps, pos=whole.pos + steps)
        forced = step(processor, assistants, [[] for _ in rows], whole)
        processor.keep_rows(whole.idx_mapping_np, torch.full((len(slots),), rng.randint(1, num_rows)))
        return [forced[row : row + num_rows] for row in range(0, len(rows), num_rows)]

    whole = [*FIRST, EOS, EOS, EOS]
    assistants.scale = 0.0  # no evidence: slot 6 answers
    assert run(5, 3) == [whole[:3], [None] * 3, [None] * 3]  # as after a cache that came from elsewhere
    assistants.scale = 9.0  # evidence that comes too late
    for visible, num_rows in ((6, 3), (7, 2), (9, 3)):
        at = visible - 5
        assert run(visible, num_rows) == [whole[at : at + num_rows], [None] * num_rows, [None] * num_rows]
    assert [tally.sentence_of(plan.lease) for plan in plans.values()] == [1, 0, 0]


def context(slots: list[int], visible: int) -> LogitsContext:
    mapping = torch.tensor(slots)
    zeros = torch.zeros_like(mapping)
    return LogitsContext(
        expanded_idx_mapping=mapping,
        idx_mapping=mapping,
        idx_mapping_np=np.array(slots),
        expanded_local_pos=zeros,
        input_ids=zeros,
        pos=zeros + visible - 1,
        seq_lens_upper_bound_np=np.full(len(slots), visible),
    )
