"""composition.md written out again, row by row in numpy float64, and random cases to hold `compose` against it."""

import math
from typing import NamedTuple

import numpy as np
import torch

from unlearngate.kernels.compose import compose
from unlearngate.kernels.pairs import Composition, Pairs

# An entry may be off by K * eps(dtype) * (|t| + sum_f w_f * (1 + max |c_f|)): one rounding of the result, and fp32
# rounding of each c_f, which all entries of a row share through its logsumexp (hence the row's largest, and the 1).
K = 4
EPS32 = float(torch.finfo(torch.float32).eps)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
MODES = ("sampling", "scoring")
TARGET_KINDS = ("plain", "masked", "one_left", "none_left", "tied", "all_equal")
RATIOS = (0.0, 1.0, 0.01, 0.1, 0.5)
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Case(NamedTuple):
    """Arguments of one call."""

    target_RV: torch.Tensor
    assistant_NV: torch.Tensor
    row_N: torch.Tensor
    weight_N: torch.Tensor
    gate_nats_N: torch.Tensor
    keep_ratio_R: torch.Tensor

    def pairs(self, **changes):
        lists = [x.tolist() for x in (self.row_N, self.weight_N, self.gate_nats_N, self.keep_ratio_R)]
        return Pairs.build(*lists, vocab_size=self.target_RV.shape[1], device=DEVICE, **changes)

    def run(self, mode="sampling", by=compose):
        return composed(self.target_RV, self.assistant_NV, self.pairs(), mode, by)

    def copy(self, **changes):
        return self._replace(**{"target_RV": self.target_RV.clone(), **changes})


def composed(target_RV, assistant_NV, pairs, mode="sampling", by=compose):
    """Compose tensors of the CPU in place, on the GPU if there is one, with the strides they have."""
    if DEVICE == "cpu":
        return by(target_RV, assistant_NV, pairs, mode=mode)
    there_RV, assistant_there_NV = on_device(target_RV), on_device(assistant_NV)
    done = by(there_RV, assistant_there_NV, pairs, mode=mode)
    target_RV.copy_(there_RV)
    return Composition(*(x.cpu() for x in done))


def on_device(x):
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE).copy_(x)


class Row(NamedTuple):
    """One row as composition.md has it, and how far from it is still right."""

    logits: np.ndarray
    tolerance: np.ndarray
    undecided: np.ndarray  # at the ratio threshold to within fp32: kept or not, both are right
    unchanged: bool


def centred(a):
    """c = a - logsumexp(a) + ln V and KL(softmax(a) || uniform)."""
    log_p = a - a.max() - math.log(np.exp(a - a.max()).sum())
    p = np.exp(log_p)
    return log_p + math.log(len(a)), float((p * (log_p + math.log(len(a)))).sum())


def is_bad(t, a):
    return bool(np.isnan(t).any() or (t == np.inf).any() or not np.isfinite(a).all())


def expected_row(t, terms, tau, mode, eps):
    """The formula for one row. `terms` are (assistant logits, weight, gate) of the sets in force."""
    if any(is_bad(t, a) for a, _, _ in terms):
        return Row(np.full_like(t, -np.inf), np.zeros_like(t), np.zeros(len(t), bool), unchanged=False)
    taken, size = np.zeros_like(t), np.abs(np.where(np.isfinite(t), t, 0.0))
    any_open = False
    for a, weight, gate in terms:
        c, evidence = centred(a)
        if weight > 0 and (gate == 0 or evidence >= gate):
            any_open = True
            taken += weight * c
            size += weight * (1 + np.abs(c).max())
    if not any_open:
        return Row(t, np.zeros_like(t), np.zeros(len(t), bool), unchanged=True)
    kth = np.sort(t)[::-1][max(1, math.floor(tau * len(t))) - 1]
    ratio = t.max() + (math.log(tau) if tau > 0 else -math.inf)
    kept = t >= min(ratio, kth)
    undecided = np.zeros(len(t), bool)
    if math.isfinite(ratio) and ratio < kth:
        undecided = np.isfinite(t)
        undecided[undecided] = np.abs(t[undecided] - ratio) <= 4 * EPS32 * (abs(t.max()) + abs(math.log(tau)))
    z = np.where(kept, t - taken, -np.inf if mode == "sampling" else t)
    return Row(z, K * eps * size, undecided, unchanged=False)


def draw_case(seed, num_rows, vocab_size, dtype, spread=1.0, max_pairs=3):
    """Random arguments: every kind of target row, 0 to `max_pairs` pairs a row, views of wider buffers.

    Gates are 0, half the evidence, or well above it: never so near that rounding decides.
    """
    rng = np.random.default_rng(seed)
    wide_target = torch.full((num_rows, vocab_size + 13), math.nan, dtype=dtype)
    target_RV = wide_target[:, 5 : 5 + vocab_size]
    for row in range(num_rows):
        kind = TARGET_KINDS[(row + seed) % len(TARGET_KINDS)]
        target_RV[row] = torch.from_numpy(draw_target_row(rng, kind, vocab_size, spread)).to(dtype)
    rows = rng.permutation(np.repeat(np.arange(num_rows), rng.integers(0, max_pairs + 1, num_rows)))
    assistant_dtype = DTYPES[rng.integers(len(DTYPES))]
    wide_assistant = torch.full((len(rows), vocab_size + 3), math.nan, dtype=assistant_dtype)
    assistant_NV = wide_assistant[:, :vocab_size]
    assistant_NV.copy_(torch.from_numpy(rng.normal(0, spread, (len(rows), vocab_size))))
    gates = []
    for a in assistant_NV.double().numpy():
        _, evidence = centred(a)
        gates.append((0.0, 0.5 * evidence if evidence > 1e-3 else 0.0, 1.5 * evidence + 0.01)[rng.integers(3)])
    ratios = [RATIOS[rng.integers(len(RATIOS))] if rng.random() < 0.7 else rng.random() for _ in range(num_rows)]
    return Case(
        target_RV,
        assistant_NV,
        torch.from_numpy(rows.astype(np.int64)),
        torch.tensor(rng.choice([0.0, 0.75, 1.0, 3.3], len(rows)), dtype=torch.float32),
        torch.tensor(gates, dtype=torch.float32),
        torch.tensor(ratios, dtype=torch.float64),
    )


def draw_target_row(rng, kind, vocab_size, spread):
    t = rng.normal(0, spread, vocab_size)
    if kind == "masked":
        t[rng.random(vocab_size) < 0.7] = -np.inf
    elif kind == "one_left":
        t[np.arange(vocab_size) != rng.integers(vocab_size)] = -np.inf
    elif kind == "none_left":
        t[:] = -np.inf
    elif kind == "tied":
        t = np.round(t)
    elif kind == "all_equal":
        t[:] = t[0]
    return t


def check(case, mode="sampling", by=compose):
    """Run a copy of `case` and compare every row, flag and evidence with the formula. Returns the composed copy."""
    after = case.copy(target_RV=strided_copy(case.target_RV))
    result = after.run(mode, by)
    assistants = case.assistant_NV.double().numpy()
    pairs = list(zip(case.row_N.tolist(), assistants, case.weight_N.tolist(), case.gate_nats_N.tolist(), strict=True))
    for row, t in enumerate(case.target_RV.double().numpy()):
        terms = [(a, w, g) for r, a, w, g in pairs if r == row]
        tau = float(case.keep_ratio_R[row])
        expected = expected_row(t, terms, tau, mode, float(torch.finfo(case.target_RV.dtype).eps))
        if expected.unchanged:
            assert same_bits(after.target_RV[row], case.target_RV[row]), f"row {row} must keep its bits"
            continue
        compare(after.target_RV[row].double().numpy(), expected, t, f"row {row}, tau {tau}, {len(terms)} pairs")
    for n, (row, a, weight, gate) in enumerate(pairs):
        bad = is_bad(case.target_RV[row].double().numpy(), a)
        assert bool(result.bad_N[n]) == bad, f"pair {n}: bad"
        if bad:
            assert not result.open_N[n], f"pair {n} is bad and open"
            continue
        c, evidence = centred(a)
        assert abs(float(result.evidence_N[n]) - evidence) <= K * EPS32 * (1 + np.abs(c).max()), f"pair {n}: evidence"
        assert bool(result.open_N[n]) == (weight > 0 and (gate == 0 or evidence >= gate)), f"pair {n}: gate"
    return after.target_RV


def compare(got, expected, t, where):
    dropped = np.isneginf(got)
    wrong = (dropped != np.isneginf(expected.logits)) & ~expected.undecided
    assert not wrong.any(), f"{where}: kept is wrong at {np.flatnonzero(wrong)[:5]}"
    both = ~dropped & ~np.isneginf(expected.logits)
    error = np.abs(got[both] - expected.logits[both])
    # Undecided in scoring mode: the target's logit is right too.
    fallback = expected.undecided[both] & (got[both] == t[both])
    wrong = ~(error <= expected.tolerance[both]) & ~fallback
    assert not wrong.any(), f"{where}: off by {error[wrong].max()}, {(error / expected.tolerance[both])[wrong].max()} x"


def strided_copy(target_RV):
    """The same rows in the middle of a wider buffer of NaN."""
    num_rows, vocab_size = target_RV.shape
    wide = torch.full((num_rows, vocab_size + 13), math.nan, dtype=target_RV.dtype)
    wide[:, 5 : 5 + vocab_size] = target_RV
    return wide[:, 5 : 5 + vocab_size]


def same_bits(x, y):
    as_bits = BITS[x.dtype]
    return torch.equal(x.contiguous().view(as_bits), y.contiguous().view(as_bits))
