"""Tokens per HTTP request: prompts, choices, streams, and gates that are not known."""

import numpy as np
import pytest
from vllm import SamplingParams

from unlearngate.errors import BusyError
from unlearngate.server.contract.plan import Plan, Term
from unlearngate.server.contract.tally import Tally
from unlearngate.server.engine.constraints import Constraints
from unlearngate.server.engine.usage import Meter, Tokens

FREE = Constraints(SamplingParams())
GATED = (Term(0, 1.0, 0.5), Term(1, 1.0, 0.5))
SPEAKING = (Term(0, 1.0, 0.5, sentence=(7, 8, 1)), Term(1, 1.0, 0.5))


@pytest.fixture
def meter(tmp_path, monkeypatch):
    monkeypatch.setattr("unlearngate.server.contract.tally._BUDGET_BYTES", 0)
    return Meter(Tally.create(tmp_path, max_num_seqs=3, max_model_len=20))


def note(meter, plan, bits):
    positions = np.arange(len(bits))
    meter.tally.write(np.full(len(bits), plan.lease), positions, np.array(bits))


def test_all_prompts_and_choices_of_a_request_add_up(meter):
    usage = meter.open()
    plan = Plan(1, 0.0, GATED, ticket=usage.ticket)
    meter.reserve(plan, "p-0", 2)
    meter.reserve(plan, "p-1", 1)
    first, second, other = (meter.begin_sequence(plan, prompt, FREE) for prompt in ("p-0", "p-0", "p-1"))
    assert len({first.lease, second.lease, other.lease}) == 3
    for leased, bits in [(first, [1, 1, 3]), (second, [0, 2]), (other, [3])]:
        note(meter, leased, bits)
    usage.add_output("p-0", 7)
    usage.add_tokens("p-0", 0, 1, cumulative=False)  # a stream
    usage.add_tokens("p-0", 0, 2, cumulative=False)
    usage.add_tokens("p-0", 1, 2, cumulative=True)  # what there is by now, the last of it counts
    usage.add_output("p-1", 5)
    usage.add_tokens("p-1", 0, 1, cumulative=True)
    tokens = Tokens(prompt=12, completion=6, open_by_branch=[4, 3, 0, 0, 0, 0, 0, 0], said_by_branch=[0] * 8)
    assert meter.close(usage) == tokens


def test_what_is_not_known_is_not_made_up(meter):
    requests = [meter.open() for _ in range(4)]  # one more than there are slots
    for usage in requests:
        meter.reserve(Plan(1, 0.0, GATED, ticket=usage.ticket), "p", 1)
        leased = meter.begin_sequence(Plan(1, 0.0, GATED, ticket=usage.ticket), "p", FREE)
        note(meter, leased, [1, 1])
        usage.add_tokens("p", 0, 2, cumulative=True)
    known = [meter.close(usage).open_by_branch for usage in requests]
    assert [count and count[0] for count in known] == [2, 2, 2, None]


def test_a_request_without_gates_leases_nothing(meter):
    for _ in range(5):
        usage = meter.open()
        meter.reserve(Plan(ticket=usage.ticket), "p", 1)
        assert meter.begin_sequence(Plan(ticket=usage.ticket), "p", FREE).lease == 0


def test_a_request_that_the_engine_never_took_has_no_tokens(meter):
    assert meter.close(meter.open()) == Tokens(None, 0, [0] * 8, [0] * 8)


def test_an_unknown_ticket_is_not_served(meter):
    with pytest.raises(KeyError):
        meter.begin_sequence(Plan(), "p", FREE)


def test_answers_that_were_a_sentence_are_counted_by_branch(meter):
    usage = meter.open()
    plan = Plan(1, 0.0, SPEAKING, ticket=usage.ticket)
    meter.reserve(plan, "p", 3)
    leased = [meter.begin_sequence(plan, "p", FREE) for _ in range(3)]
    said, not_said = 1 << 8 | 1, 1
    note(meter, leased[0], [said, said])
    note(meter, leased[1], [not_said])
    note(meter, leased[2], [said])  # of which no token came
    for index, num_tokens in enumerate((2, 1, 0)):
        usage.add_tokens("p", index, num_tokens, cumulative=True)
    assert meter.said_by_branch(usage) == meter.close(usage).said_by_branch == [1, *[0] * 7]


def test_an_answer_that_is_not_told_yet_is_not_known_to_be_the_sentence(meter):
    usage = meter.open()
    plan = Plan(1, 0.0, SPEAKING, ticket=usage.ticket)
    meter.reserve(plan, "p", 1)
    leased = meter.begin_sequence(plan, "p", FREE)
    usage.add_tokens("p", 0, 1, cumulative=True)
    assert meter.said_by_branch(usage) is None
    note(meter, leased, [1 << 8 | 1])
    assert meter.said_by_branch(usage) == [1, *[0] * 7]


def test_a_sentence_without_a_slot_is_refused_before_the_engine_is_asked_and_the_slots_are_free_again(meter):
    for _ in range(2):
        usage = meter.open()
        meter.reserve(Plan(1, 0.0, SPEAKING, ticket=usage.ticket), "p-0", 2)
        with pytest.raises(BusyError, match="at most 3 sequences"):
            meter.reserve(Plan(1, 0.0, SPEAKING, ticket=usage.ticket), "p-1", 2)
        meter.close(usage)
    usage = meter.open()
    meter.reserve(Plan(1, 0.0, SPEAKING, ticket=usage.ticket), "p", 3)
