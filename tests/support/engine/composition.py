"""composition.md written out again, row by row in numpy float64, and random cases to hold `compose` against it."""

import math
from typing import NamedTuple

import numpy as np
import torch

from unlearngate.kernels.compose import compose
from unlearngate.kernels.pairs import CUT, Composition, Pairs

# An entry may be off by K * eps(dtype) * (|t| + sum_f w_f * (1 + max |c_f|)): one rounding of the result, and fp32
# rounding of each c_f, which all entries of a row share through its logsumexp (hence the row's largest, and the 1).
K = 4
EPS32 = float(torch.finfo(torch.float32).eps)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
BITS = {torch.float32: torch.int32, torch.bfloat16: torch.int16, torch.float16: torch.int16}
MODES = ("sampling", "scoring")
TARGET_KINDS = ("plain", "masked", "one_left", "none_left", "tied", "all_equal")
RATIOS = (0.0, 1.0, 0.01, 0.1, 0.5)
MASKS = ("none", "most", "one_left", "few")  # what a client or a grammar leaves
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


class Case(NamedTuple):
    """Arguments of one call. own_RV is what scoring does not take: there target_RV is the target's own."""

    target_RV: torch.Tensor
    assistant_NV: torch.Tensor
    row_N: torch.Tensor
    weight_N: torch.Tensor
    gate_nats_N: torch.Tensor
    keep_ratio_R: torch.Tensor
    lowers_N: torch.Tensor | None = None
    tail_ratio_R: torch.Tensor | None = None
    own_RV: torch.Tensor | None = None

    def pairs(self, **changes):
        lists = [x.tolist() for x in (self.row_N, self.weight_N, self.gate_nats_N, self.keep_ratio_R)]
        rules = {
            name: None if value is None else value.tolist()
            for name, value in (("lowers_N", self.lowers_N), ("tail_ratio_R", self.tail_ratio_R))
        }
        return Pairs.build(*lists, **rules, vocab_size=self.target_RV.shape[1], device=DEVICE, **changes)

    def run(self, mode="sampling", by=compose):
        return composed(self.target_RV, self.assistant_NV, self.pairs(), mode, by, self.own(mode))

    def own(self, mode):
        return self.own_RV if mode == "sampling" else None

    def copy(self, **changes):
        return self._replace(**{"target_RV": self.target_RV.clone(), **changes})

    def expected(self, row, mode):
        """The formula for one row."""
        pairs = zip(self.row_N.tolist(), self.terms(), strict=True)
        own_RV = self.target_RV if self.own(mode) is None else self.own_RV
        return expected_row(
            self.target_RV[row].double().numpy(),
            own_RV[row].double().numpy(),
            [term for r, term in pairs if r == row],
            float(self.keep_ratio_R[row]),
            0.0 if self.tail_ratio_R is None else float(self.tail_ratio_R[row]),
            mode,
            float(torch.finfo(self.target_RV.dtype).eps),
        )

    def terms(self):
        """Of each pair: the assistant's logits, weight, gate, and whether it only lowers."""
        lowers = [False] * len(self.row_N) if self.lowers_N is None else self.lowers_N.tolist()
        assistants = self.assistant_NV.double().numpy()
        return list(zip(assistants, self.weight_N.tolist(), self.gate_nats_N.tolist(), lowers, strict=True))


def composed(target_RV, assistant_NV, pairs, mode="sampling", by=compose, own_RV=None):
    """Compose tensors of the CPU in place, on the GPU if there is one, with the strides they have."""
    if DEVICE == "cpu":
        return by(target_RV, assistant_NV, pairs, mode=mode, own_RV=own_RV)
    there_RV, assistant_there_NV = on_device(target_RV), on_device(assistant_NV)
    done = by(there_RV, assistant_there_NV, pairs, mode=mode, own_RV=None if own_RV is None else on_device(own_RV))
    target_RV.copy_(there_RV)
    return Composition(*(x.cpu() for x in done))


def on_device(x):
    return torch.empty_strided(x.shape, x.stride(), dtype=x.dtype, device=DEVICE).copy_(x)


class Row(NamedTuple):
    """One row as composition.md has it, and how far from it is still right."""

    logits: np.ndarray
    tolerance: np.ndarray
    undecided: np.ndarray  # at a threshold to within fp32: kept or not, both are right
    otherwise: np.ndarray  # the logit, were the undecided decided the other way
    unchanged: bool

    @classmethod
    def plain(cls, logits, *, unchanged):
        zeros = np.zeros_like(logits)
        return cls(logits, zeros, zeros > 0, logits, unchanged)


def centred(a):
    """c = a - logsumexp(a) + ln V and KL(softmax(a) || uniform)."""
    log_p = a - a.max() - math.log(np.exp(a - a.max()).sum())
    p = np.exp(log_p)
    return log_p + math.log(len(a)), float((p * (log_p + math.log(len(a)))).sum())


def is_bad(shown, own, a):
    allowed = shown != -np.inf
    wrong = [np.isnan(shown), shown == np.inf, np.isnan(own), own == np.inf, allowed & (own == -np.inf)]
    return bool(np.any(wrong) or not np.isfinite(a).all())


def expected_row(shown, own, terms, tau, rho, mode, eps):
    """The formula for one row. `terms` are (assistant logits, weight, gate, whether it only lowers) of the sets."""
    if any(is_bad(shown, own, a) for a, *_ in terms):
        return Row.plain(np.full_like(shown, -np.inf), unchanged=False)
    allowed = shown != -np.inf
    change = np.zeros_like(own)
    change[allowed] = shown[allowed] - own[allowed]
    taken, size = np.zeros_like(own), np.abs(np.where(np.isfinite(own), own, 0.0))
    any_open = False
    for a, weight, gate, lowers in terms:
        c, evidence = centred(a)
        if weight > 0 and (gate == 0 or evidence >= gate):
            any_open = True
            half = math.log(len(c)) / 2
            taken += weight * (np.where(c > half, c - half, 0.0) if lowers else c)
            size += weight * (1 + np.abs(c).max())
    if not any_open:
        return Row.plain(shown, unchanged=True)
    kth = np.sort(own)[::-1][max(1, math.floor(tau * len(own))) - 1]
    ratio = own.max() + (math.log(tau) if tau > 0 else -math.inf)
    kept = own >= min(ratio, kth)
    undecided = np.zeros(len(own), bool)
    if math.isfinite(ratio) and ratio < kth:
        undecided = np.isfinite(own)
        undecided[undecided] = np.abs(own[undecided] - ratio) <= 4 * EPS32 * (abs(own.max()) + abs(math.log(tau)))
    u = own - taken
    if mode == "scoring":
        return Row(np.where(kept, u, shown), K * eps * size, undecided, np.where(kept, shown, u), unchanged=False)
    if rho > 0 and np.isfinite(u).any():
        # Whether an undecided token is kept may decide what the best is.
        low = max(u[kept & ~undecided], default=-math.inf) + math.log(rho)
        high = max(u[kept | undecided], default=-math.inf) + math.log(rho)
        slack = K * EPS32 * (size + size.max() + abs(math.log(rho)))
        sure, impossible = u >= high + slack, u < low - slack
        undecided = (undecided & ~impossible) | ((kept | undecided) & ~(sure | impossible))
        kept &= u >= u[kept].max() + math.log(rho)
    kept_size = size + np.abs(change) + np.where(allowed, np.abs(shown), 0.0)
    cut_size = abs(CUT) + np.abs(change)
    return Row(
        np.where(allowed, np.where(kept, u, CUT) + change, -np.inf),
        K * eps * np.where(kept & ~undecided, kept_size, np.maximum(kept_size, cut_size)),
        undecided & allowed,
        np.where(allowed, np.where(kept, CUT, u) + change, -np.inf),
        unchanged=False,
    )


def draw_case(seed, num_rows, vocab_size, dtype, spread=1.0, max_pairs=3):
    """Random arguments: every kind of target row, 0 to `max_pairs` pairs a row of both rules, views of wider buffers.

    Half of them have the target's own logits apart, in rows that a client's bias and masks have changed since.
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
    tails = [RATIOS[rng.integers(len(RATIOS))] if rng.random() < 0.7 else rng.random() for _ in range(num_rows)]
    own_RV = None
    if rng.random() < 0.5:
        own_dtype = DTYPES[rng.integers(len(DTYPES))]
        own_RV = torch.full((num_rows, vocab_size + 7), math.nan, dtype=own_dtype)[:, 2 : 2 + vocab_size]
        for row in range(num_rows):
            kind = ("plain", "tied", "all_equal")[rng.integers(3)]
            own_RV[row] = torch.from_numpy(draw_target_row(rng, kind, vocab_size, spread)).to(own_dtype)
            target_RV[row] = torch.from_numpy(steered(rng, own_RV[row].double().numpy())).to(dtype)
    return Case(
        target_RV,
        assistant_NV,
        torch.from_numpy(rows.astype(np.int64)),
        torch.tensor(rng.choice([0.0, 0.75, 1.0, 3.3], len(rows)), dtype=torch.float32),
        torch.tensor(gates, dtype=torch.float32),
        torch.tensor(ratios, dtype=torch.float64),
        torch.from_numpy(rng.random(len(rows)) < 0.5),
        torch.tensor(tails, dtype=torch.float64),
        own_RV,
    )


def steered(rng, own):
    """A row as a client's logit_bias and masks leave it."""
    shown = own.copy()
    biased = rng.integers(len(own), size=3)
    shown[biased] += rng.uniform(-100, 100, 3)
    mask = MASKS[rng.integers(len(MASKS))]
    if mask == "most":
        shown[rng.random(len(own)) < 0.7] = -np.inf
    elif mask in ("one_left", "few"):
        left = rng.integers(len(own), size=1 if mask == "one_left" else 4)
        shown[~np.isin(np.arange(len(own)), left)] = -np.inf
    return shown


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
    for row in range(len(case.target_RV)):
        expected = case.expected(row, mode)
        if expected.unchanged:
            assert same_bits(after.target_RV[row], case.target_RV[row]), f"row {row} must keep its bits"
            continue
        compare(after.target_RV[row].double().numpy(), expected, f"row {row} of {case}")
    own_RV = case.target_RV if case.own(mode) is None else case.own_RV
    for n, (row, (a, weight, gate, _)) in enumerate(zip(case.row_N.tolist(), case.terms(), strict=True)):
        bad = is_bad(case.target_RV[row].double().numpy(), own_RV[row].double().numpy(), a)
        assert bool(result.bad_N[n]) == bad, f"pair {n}: bad"
        if bad:
            assert not result.open_N[n], f"pair {n} is bad and open"
            continue
        c, evidence = centred(a)
        assert abs(float(result.evidence_N[n]) - evidence) <= K * EPS32 * (1 + np.abs(c).max()), f"pair {n}: evidence"
        assert bool(result.open_N[n]) == (weight > 0 and (gate == 0 or evidence >= gate)), f"pair {n}: gate"
    return after.target_RV


def compare(got, expected, where):
    masked = np.isneginf(expected.logits)
    assert np.array_equal(np.isneginf(got), masked), f"{where}: other tokens are impossible"
    got, right, tolerance = got[~masked], expected.logits[~masked], expected.tolerance[~masked]
    undecided, otherwise = expected.undecided[~masked], expected.otherwise[~masked]
    wrong = ~(np.abs(got - right) <= tolerance) & ~(undecided & (np.abs(got - otherwise) <= tolerance))
    at = np.flatnonzero(wrong)[:5]
    assert not wrong.any(), f"{where}: {got[at]}, expected {right[at]} within {tolerance[at]}, {undecided[at]}"


def strided_copy(target_RV):
    """The same rows in the middle of a wider buffer of NaN."""
    num_rows, vocab_size = target_RV.shape
    wide = torch.full((num_rows, vocab_size + 13), math.nan, dtype=target_RV.dtype)
    wide[:, 5 : 5 + vocab_size] = target_RV
    return wide[:, 5 : 5 + vocab_size]


def same_bits(x, y):
    as_bits = BITS[x.dtype]
    return torch.equal(x.contiguous().view(as_bits), y.contiguous().view(as_bits))
