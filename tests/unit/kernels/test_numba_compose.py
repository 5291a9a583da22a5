"""What the CPU's composition does beside the formula, which test_compose.py holds: threads, compiled code."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from support.engine.composition import same_bits
from unlearngate.kernels.compose import compose
from unlearngate.kernels.numba_compose import _ALONE, compile_kernels, compose_cpu
from unlearngate.kernels.numba_kernels import _TILE, LANES, _block_maxima, _keep_threshold, compiled, compose_rows
from unlearngate.kernels.pairs import Pairs

VOCAB = 4096
ROWS = 2 * _ALONE // VOCAB + 3  # more than one thread's share, and not a multiple of it


@pytest.fixture
def threads():
    """Sets how many torch has."""
    before = torch.get_num_threads()
    yield torch.set_num_threads
    torch.set_num_threads(before)


def compose_many(seed):
    """Two sets in the even rows and none in the odd ones; the gates of some are closed."""
    rng = torch.Generator().manual_seed(seed)
    rows = sorted([*range(0, ROWS, 2)] * 2)
    target_RV = 4 * torch.randn(ROWS, VOCAB, generator=rng)
    assistant_NV = 2 * torch.randn(len(rows), VOCAB, generator=rng)
    gates = (3 * torch.rand(len(rows), generator=rng)).tolist()
    pairs = Pairs.build(rows, [1.0] * len(rows), gates, [0.01] * ROWS, vocab_size=VOCAB)
    return target_RV, compose_cpu(target_RV, assistant_NV, pairs)


def test_threads_change_nothing(seed, threads):
    found = []
    for count in (1, 2, 5):
        threads(count)
        found.append(compose_many(seed))
    alone_RV, alone = found[0]
    assert 0 < alone.open_N.sum() < len(alone.open_N), f"seed {seed}"
    for together_RV, together in found[1:]:
        assert same_bits(together_RV, alone_RV), f"seed {seed}"
        assert all(torch.equal(x, y) for x, y in zip(together, alone, strict=True)), f"seed {seed}"


@pytest.mark.parametrize("vocab_size", [1, LANES + 1, _TILE - 1, _TILE, 3 * _TILE + 5])
@pytest.mark.parametrize("kind", ["plain", "ties", "masked", "equal"])
def test_the_threshold_keeps_what_the_smaller_of_the_ratios_and_the_kth_largest_keeps(seed, kind, vocab_size):
    rng = np.random.default_rng(seed)
    row_V = rng.normal(0, 3, vocab_size).astype(np.float32)
    if kind == "ties":
        row_V = row_V.round()  # some to 0.0, some to -0.0
    elif kind == "masked":
        row_V[rng.random(vocab_size) < 0.9] = -np.inf
    elif kind == "equal":
        row_V[:] = row_V[0]
    largest_B = np.full(-(-vocab_size // _TILE) * LANES, -np.inf, np.float32)
    assert not _block_maxima(row_V, largest_B) and largest_B.max() == row_V.max()
    descending_V = np.sort(row_V)[::-1]
    for rank in {1, vocab_size, *rng.integers(1, vocab_size + 1, 3), *rng.integers(1, vocab_size // 20 + 2, 3)}:
        kth = descending_V[rank - 1]
        for ratio_threshold in (np.float32(np.inf), kth, np.float32(kth - 0.5)):
            found = _keep_threshold(row_V, largest_B, ratio_threshold, rank)
            kept_V = row_V >= min(ratio_threshold, kth)
            assert np.array_equal(row_V >= found, kept_V), f"seed {seed} rank {rank}"


def test_a_nan_is_found_wherever_it_is(seed):
    row_V = np.random.default_rng(seed).normal(0, 3, 2 * _TILE + 7).astype(np.float32)
    for place in (0, seed % len(row_V), len(row_V) - 1):
        with_nan_V = row_V.copy()
        with_nan_V[place] = np.nan
        assert _block_maxima(with_nan_V, np.full(3 * LANES, -np.inf, np.float32)), f"seed {seed}"


def test_without_a_folder_for_compiled_code_functions_are_compiled_all_the_same():
    from_no_file: dict = {}
    exec("def double(x):\n    return 2 * x", from_no_file)
    double = compiled()(from_no_file["double"])
    assert double(4) == 8 and double.signatures


def test_what_requests_run_is_compiled_beforehand(threads):
    compile_kernels()
    threads(2)
    with torch.inference_mode():
        for dtype in (torch.float32, torch.bfloat16):
            logits_RV = torch.randn(ROWS, VOCAB + 7).to(dtype)[:, :VOCAB]
            pairs = Pairs.build(range(ROWS), [1.0] * ROWS, [0.0] * ROWS, [0.5] * ROWS, vocab_size=VOCAB)
            compose_cpu(logits_RV, torch.randn(ROWS, VOCAB), pairs, mode="scoring")
    assert len(compose_rows.signatures) == 1


def test_no_pair_and_no_vocab_are_composed_to_nothing():
    for num_pairs, vocab_size in ((0, 5), (2, 0)):
        pairs = Pairs.build([0] * num_pairs, [1.0] * num_pairs, [0.0] * num_pairs, [0.5], vocab_size=vocab_size)
        done = compose(torch.zeros(1, vocab_size), torch.zeros(num_pairs, vocab_size), pairs)
        assert not done.open_N.any() and done.evidence_N.shape == (num_pairs,)


def test_numba_is_imported_by_what_runs_in_a_worker_only():
    """VLLM 0.32 looks through all modules when it starts a CPU worker, and stumbles over llvmlite's."""
    workers = "unlearngate.server.worker.processor, unlearngate.server.worker.model"
    program = f"import sys, unlearngate.cli, unlearngate.kernels.compose, {workers}; sys.exit('numba' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", program], capture_output=True).returncode == 0
