"""A prompt's logits against the reference, one position after the other, and how many are made at a time."""

import random
import weakref
from types import SimpleNamespace

import pytest
import torch
from vllm import SamplingParams

from unlearngate.kernels.pairs import Pairs
from unlearngate.kernels.reference import compose_reference
from unlearngate.server.contract.plan import TOKEN_FIELD, Plan, Term, sign
from unlearngate.server.worker import model as served
from unlearngate.server.worker import prompts

HIDDEN, VOCAB = 16, 400
HEAD = prompts.PROMPT_HEAD


class Model:
    """Stands where the loaded model stands: a head over each copy of the hidden states."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.float32) -> None:
        self.hidden_size = HIDDEN
        self.config = SimpleNamespace(vocab_size=VOCAB, eos_token_id=[3, 4])
        self.weight = torch.randn(HIDDEN, VOCAB, generator=torch.Generator().manual_seed(seed)).to(dtype)
        self.target = SimpleNamespace(compute_logits=lambda hidden: hidden @ self.weight)


@pytest.fixture(params=[torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
def model(request, monkeypatch, seed):
    stand_in = Model(seed, request.param)
    monkeypatch.setattr(served, "_loaded", weakref.ref(stand_in))
    yield stand_in


def asking(plan: Plan) -> SamplingParams:
    return SamplingParams(prompt_logprobs=0, extra_args={TOKEN_FIELD: sign(plan)})


def random_plan(rng: random.Random) -> Plan:
    terms = tuple(
        Term(
            branch, rng.uniform(0, 2), rng.choice([0.0, 2.0]), rng.random() < 0.5, (5, 3) if rng.random() < 0.3 else ()
        )
        for branch in range(rng.randint(0, 2))
    )
    ratios = (rng.choice([0.0, 0.1]) if terms else 0.0 for _ in range(2))
    return Plan(7, next(ratios), terms, tail_ratio=next(ratios))


def test_every_position_is_composed_as_the_reference_does_it_in_scoring_mode(model, seed):
    """With a sentence too: what would be said instead is no part of a score."""
    rng, dtype = random.Random(seed), model.weight.dtype
    for _ in range(20):
        plan, num_rows, num_branches = random_plan(rng), rng.randint(1, 9), rng.randint(2, 3)
        hidden = torch.randn(num_rows, (1 + num_branches) * HIDDEN).to(dtype)
        got = HEAD.logits(hidden, asking(plan))
        assert got.shape == (num_rows, VOCAB) and got.dtype == torch.float32
        copies = hidden.view(num_rows, -1, HIDDEN)
        for row in range(num_rows):
            expected = (copies[row, :1] @ model.weight).double()
            pairs = Pairs.build(
                [0] * len(plan.terms),
                [term.weight for term in plan.terms],
                [term.gate_nats for term in plan.terms],
                [plan.keep_ratio],
                lowers_N=[term.lowers for term in plan.terms],
                tail_ratio_R=[plan.tail_ratio],
                vocab_size=VOCAB,
            )
            branches = [term.branch + 1 for term in plan.terms]
            compose_reference(expected, (copies[row, branches] @ model.weight).double(), pairs, mode="scoring")
            tolerance = 1e-4 if dtype == torch.float32 else 0.2  # matmuls of other shapes round otherwise
            assert torch.isfinite(got[row]).all()
            wrong = (got[row] - expected[0]).abs() > tolerance
            assert wrong.sum() <= len(plan.terms) * (0 if dtype == torch.float32 else 8), f"seed {seed}, {plan}"


def test_a_branch_that_did_not_run_is_an_error_and_not_the_plain_target(model):
    plan = Plan(7, 0.0, (Term(1, 1.0, 0.0),))
    with pytest.raises(RuntimeError, match="need 2 branches, and 1 ran"):
        HEAD.logits(torch.zeros(3, 2 * HIDDEN, dtype=model.weight.dtype), asking(plan))


def test_a_row_that_is_not_finite_has_no_log_probability(model):
    hidden = torch.randn(2, 2 * HIDDEN).to(model.weight.dtype)
    hidden[1, HIDDEN] = torch.nan
    log_p = HEAD.logits(hidden, asking(Plan(7, 0.0, (Term(0, 1.0, 0.0),)))).log_softmax(-1)
    assert torch.isfinite(log_p[0]).all() and torch.isnan(log_p[1]).all()


@pytest.mark.parametrize("vocab_size", [512, 151_936, 262_144])
def test_so_many_rows_are_taken_that_their_logits_fit(model, vocab_size):
    model.config.vocab_size = vocab_size
    for copies in (1, 3, 9):
        rows = HEAD.most_rows(copies * HIDDEN)
        assert rows * copies * vocab_size <= prompts.MOST_LOGITS < (rows + 1) * copies * vocab_size
