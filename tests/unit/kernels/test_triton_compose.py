"""What only the Triton kernels have: splits of a row, a guessed bracket, memory that is kept: `make test-kernels`."""

import math
import os

import numpy as np
import pytest
import torch

from support.engine.composition import (
    DEVICE,
    MODES,
    TARGET_KINDS,
    Case,
    check,
    composed,
    draw_case,
    draw_target_row,
    same_bits,
)
from unlearngate.kernels.compose import compose
from unlearngate.kernels.pairs import CUT, Pairs
from unlearngate.kernels.scratch import Scratch, max_candidates, sample_size

if DEVICE == "cpu" and os.environ.get("TRITON_INTERPRET") != "1":
    pytest.skip("needs TRITON_INTERPRET=1 or a GPU: `make test-kernels`", allow_module_level=True)

from unlearngate.kernels import triton_compose
from unlearngate.kernels.triton_compose import Launch, choose_launch, compose_triton

LAUNCHES = (Launch(2048, False), Launch(4096, True), Launch(4096, False), Launch(2048, True))
RUN = 16  # logits next to each other in a sample


def by(launch=None, scratch=None):
    def compose_so(target_RV, assistant_NV, pairs, *, mode, own_RV):
        return compose_triton(target_RV, assistant_NV, pairs, mode=mode, own_RV=own_RV, scratch=scratch, launch=launch)

    return compose_so


@pytest.mark.parametrize("launch", LAUNCHES, ids=lambda x: f"{x.block}-{'at_once' if x.write_at_once else 'apart'}")
@pytest.mark.parametrize("vocab_size", [1, 4097, 8192, 8193, 128_257])
def test_every_split_of_a_row_composes_the_formulas(seed, vocab_size, launch):
    num_rows = 2 if vocab_size > 100_000 else 6
    for dtype, mode in ((torch.float32, "sampling"), (torch.bfloat16, "scoring")):
        check(draw_case(seed, num_rows, vocab_size, dtype, spread=3.0), mode, by(launch))
        seed += num_rows


def one_row(t, tau, num_pairs=1, seed=0):
    """One row with open pairs."""
    generator = torch.Generator().manual_seed(seed)
    return Case(
        torch.from_numpy(t).float()[None],
        torch.randn(num_pairs, len(t), generator=generator),
        torch.zeros(num_pairs, dtype=torch.int64),
        torch.ones(num_pairs),
        torch.zeros(num_pairs),
        torch.tensor([tau], dtype=torch.float64),
    )


def threshold_of(case):
    """What the kernels found, and what a sort finds, bit for bit."""
    scratch = Scratch(1, case.target_RV.shape[1], DEVICE)
    t = np.sort(case.target_RV[0].numpy())[::-1]
    tau = float(case.keep_ratio_R[0])
    expected = min(t[0] + np.float32(math.log(tau)), t[max(1, math.floor(tau * len(t))) - 1])
    case.copy().run(by=by(scratch=scratch))
    return float(scratch.threshold[0]), float(expected)


@pytest.mark.parametrize("tau", [1e-6, 0.01, 0.2, 0.5, 0.999, 1.0])
@pytest.mark.parametrize("kind", [kind for kind in TARGET_KINDS if kind != "none_left"])
def test_the_threshold_is_that_of_a_sort(seed, kind, tau):
    vocab_size = 9000 + seed % 30_000
    t = draw_target_row(np.random.default_rng(seed), kind, vocab_size, 4.0)
    found, expected = threshold_of(one_row(t, tau))
    assert found == expected


def sampled_positions(vocab_size):
    at = np.arange(sample_size(vocab_size))
    return (at // RUN) * (vocab_size // (sample_size(vocab_size) // RUN)) + at % RUN


@pytest.mark.parametrize("vocab_size", [8193, 128_256, 131_072, 131_073, 262_144])
def test_a_sample_lies_inside_its_row_and_looks_at_nothing_twice(vocab_size):
    positions = sampled_positions(vocab_size)
    assert positions.max() < vocab_size
    assert len(np.unique(positions)) == sample_size(vocab_size)


@pytest.mark.parametrize("offset", [-9.0, 9.0, -math.inf])
@pytest.mark.parametrize("tau", [0.02, 0.5, 0.9])
def test_a_sample_that_misleads_costs_time_and_nothing_else(seed, tau, offset):
    t = np.random.default_rng(seed).normal(0, 1, 20_011)
    t[sampled_positions(len(t))] += offset
    found, expected = threshold_of(one_row(t, tau))
    assert found == expected


@pytest.mark.parametrize("distinct", [1, 2, 3])
def test_more_ties_than_there_is_room_for_cost_time_and_nothing_else(seed, distinct):
    t = np.random.default_rng(seed).integers(0, distinct, 2 * max_candidates(40_000)).astype(np.float64)
    for tau in (0.3, 0.5, 0.7):
        found, expected = threshold_of(one_row(t, tau))
        assert found == expected


def test_memory_can_be_used_again_for_batches_of_any_size(seed):
    scratch = Scratch(9, 9001, DEVICE)
    for round_ in range(4):
        case = draw_case(seed + round_, 1 + round_, 9001, torch.float32, max_pairs=2)
        fresh, again = case.copy(), case.copy()
        expected, result = fresh.run(), again.run(by=by(scratch=scratch))
        assert same_bits(fresh.target_RV, again.target_RV)
        assert all(torch.equal(x, y) for x, y in zip(expected, result, strict=True))
        assert not scratch.counters.any(), "the counters must be zero between calls"


def test_memory_for_fewer_pairs_is_refused():
    case = one_row(np.zeros(9), 0.5, num_pairs=3)
    with pytest.raises(ValueError, match="at most 2 pairs, got 3"):
        case.run(by=by(scratch=Scratch(2, 9, DEVICE)))


def test_memory_for_another_vocab_is_refused():
    with pytest.raises(ValueError, match="vocab of 8, got 9"):
        one_row(np.zeros(9), 0.5).run(by=by(scratch=Scratch(2, 8, DEVICE)))


def test_a_batch_without_pairs_launches_nothing(monkeypatch):
    for kernel in ("guess_kernel", "read_kernel", "best_kernel", "write_kernel"):
        monkeypatch.setattr(triton_compose, kernel, None)
    target_RV = torch.randn(3, 9)
    assert composed(target_RV, torch.zeros(0, 9), Pairs.build([], [], [], [0.0] * 3, vocab_size=9, device=DEVICE))


def test_without_a_keep_ratio_no_kth_largest_is_looked_for(monkeypatch):
    monkeypatch.setattr(triton_compose, "guess_kernel", None)
    t = np.random.default_rng(0).normal(0, 3, 9000)
    case = one_row(t, 0.0)._replace(lowers_N=torch.tensor([True]), tail_ratio_R=torch.tensor([0.1]))
    for launch in LAUNCHES[:2]:
        scratch = Scratch(1, 9000, DEVICE)
        check(case, by=by(launch, scratch))
        assert math.isinf(float(scratch.threshold[0]))


@pytest.mark.parametrize("mode", MODES)
def test_a_row_with_all_gates_closed_is_not_to_be_written(seed, mode):
    case = draw_case(seed, 6, 700, torch.float32)
    case = case._replace(gate_nats_N=torch.full_like(case.gate_nats_N, 99.0))
    scratch = Scratch(len(case.row_N), 700, DEVICE)
    case.run(mode, by(scratch=scratch))
    assert not scratch.action[: len(case.row_N.unique())].any()


def test_rows_may_lie_further_apart_than_32_bits_count():
    """R * V > 2^31: on a CPU the pages between the rows are never touched."""
    vocab_size, far = 9000, 2**30 + 64
    case = draw_case(3, 3, vocab_size, torch.bfloat16, max_pairs=1)
    case = case._replace(
        assistant_NV=torch.randn(3, vocab_size).bfloat16(),
        row_N=torch.arange(3),
        weight_N=torch.ones(3),
        gate_nats_N=torch.zeros(3),
        lowers_N=torch.tensor([True, False, True]),
        own_RV=None,
    )
    near = case.copy()
    near.run()
    wide = torch.empty(2 * far + vocab_size, dtype=torch.bfloat16, device=DEVICE)
    target_RV = wide.as_strided((3, vocab_size), (far, 1)).copy_(case.target_RV)
    compose(target_RV, case.assistant_NV.to(DEVICE), case.pairs())
    assert same_bits(target_RV.cpu(), near.target_RV)
    assistant_NV = wide.as_strided((3, vocab_size), (far, 1)).copy_(case.assistant_NV)
    again = case.target_RV.to(DEVICE)
    compose(again, assistant_NV, case.pairs())
    assert same_bits(again.cpu(), near.target_RV)


@pytest.mark.parametrize("vocab_size", [41, 50_257, 128_256])
def test_a_uniform_assistant_takes_nothing_at_all(seed, vocab_size):
    """Also where V times the rounded 1 / V is not 1."""
    t = torch.randn(1, vocab_size, generator=torch.Generator().manual_seed(seed))
    case = one_row(t[0].numpy(), 0.0)._replace(assistant_NV=torch.full((1, vocab_size), 0.7))
    before = case.target_RV.clone()
    assert case.run().evidence_N.tolist() == [0.0]
    assert same_bits(case.target_RV, before)


@pytest.mark.parametrize("launch", LAUNCHES[:2], ids=str)
@pytest.mark.parametrize("vocab_size", [30_000, 65_536, 128_256])
def test_a_gate_as_high_as_the_evidence_is_open_in_every_thread(seed, vocab_size, launch):
    rng = np.random.default_rng(seed)
    for draw in range(1 if DEVICE == "cpu" else 3):
        case = one_row(rng.normal(0, 3, vocab_size), 0.01, seed=seed + draw)
        evidence = case.copy().run(by=by(launch)).evidence_N
        case = case._replace(gate_nats_N=evidence)
        at_gate = case.copy()
        assert at_gate.run(by=by(launch)).open_N.all()
        assert (at_gate.target_RV == CUT).any()
        above = case._replace(gate_nats_N=torch.nextafter(evidence, torch.tensor(math.inf))).copy()
        assert not above.run(by=by(launch)).open_N.any()
        assert same_bits(above.target_RV, case.target_RV)


@pytest.mark.parametrize("weight", [0.0, 1.0])
def test_an_assistant_whose_range_overflows_is_bad_however_its_row_is_split(weight):
    t = np.random.default_rng(0).normal(0, 1, 8192)
    case = one_row(t, 0.5)._replace(weight_N=torch.tensor([weight]))
    case.assistant_NV[0, :4096], case.assistant_NV[0, 4096:] = 3e38, -3e38
    for launch in LAUNCHES:
        after = case.copy()
        assert after.run(by=by(launch)).bad_N.all()
        assert torch.isneginf(after.target_RV).all()


def test_small_batches_are_written_by_a_launch_of_their_own():
    l2_bytes = 50 * 2**20
    assert not choose_launch(8, 128_256, 4, l2_bytes).write_at_once
    assert choose_launch(256, 128_256, 4, l2_bytes).write_at_once


@pytest.mark.skipif(DEVICE == "cpu", reason="needs a GPU")
def test_a_cuda_graph_composes_whatever_batch_is_put_in_its_place(seed):
    num_rows, vocab_size, capacity = 5, 128_256, 12
    scratch = Scratch(capacity, vocab_size, DEVICE)
    held = Pairs.build([], [], [], [0.0] * num_rows, vocab_size=vocab_size, device=DEVICE, capacity=capacity)
    target_RV = torch.empty(num_rows, vocab_size, device=DEVICE)
    assistant_NV = torch.zeros(capacity, vocab_size, dtype=torch.bfloat16, device=DEVICE)
    target_RV.normal_()
    compose(target_RV, assistant_NV, held, scratch=scratch)  # compiles
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        result = compose(target_RV, assistant_NV, held, scratch=scratch)
    for round_ in range(5):
        case = draw_case(seed + round_, num_rows, vocab_size, torch.float32, max_pairs=2)
        case = case._replace(assistant_NV=case.assistant_NV.bfloat16(), own_RV=None)
        num_pairs = len(case.row_N)
        eager = case.copy()
        expected = eager.run()
        held.copy_(case.pairs(capacity=capacity))
        target_RV.copy_(case.target_RV)
        assistant_NV[:num_pairs].copy_(case.assistant_NV)
        graph.replay()
        torch.cuda.synchronize()
        assert torch.equal(result.open_N[:num_pairs].cpu(), expected.open_N)
        assert torch.equal(result.bad_N[:num_pairs].cpu(), expected.bad_N)
        assert same_bits(target_RV.cpu(), eager.target_RV)
