"""`compose_hidden` against the formula on float64 logits, with the assistants' logits stored and computed twice."""

import math
import os

import pytest
import torch

from support.engine.composition import DEVICE, EPS32, MODES, K, draw_case, on_device, same_bits
from unlearngate.kernels.compose import compose
from unlearngate.kernels.compose_hidden import compose_hidden, recomputing_pays
from unlearngate.kernels.pairs import Composition, Pairs
from unlearngate.kernels.reference import compose_reference

TRITON = DEVICE == "cuda" or os.environ.get("TRITON_INTERPRET") == "1"
WAYS = [False, True] if TRITON else [False]


def draw(seed, num_rows, vocab_size, hidden_size, dtype):
    """A case whose assistants' logits are a product, in float64, with what it is a product of."""
    case = draw_case(seed, num_rows, vocab_size, torch.float32, spread=3.0)
    generator = torch.Generator().manual_seed(seed)
    hidden_NH = torch.randn(len(case.row_N), hidden_size, generator=generator).to(dtype)
    head_VH = (torch.randn(vocab_size, hidden_size, generator=generator) * 2 / hidden_size**0.5).to(dtype)
    assistant_NV = hidden_NH.double() @ head_VH.double().T
    # Gates that no rounding decides.
    gates = torch.where(case.gate_nats_N > 0, 1e3, 0.0)
    return case._replace(assistant_NV=assistant_NV, gate_nats_N=gates), hidden_NH, head_VH


def error_of_product(case, hidden_NH, head_VH, stored):
    """How far a logit may be off: fp32 sums of H terms, and the rounding of what is stored. (N, 1)"""
    size_NV = hidden_NH.double().abs() @ head_VH.double().abs().T
    error_NV = (hidden_NH.shape[1] + 2) * EPS32 * size_NV
    if stored:
        error_NV += float(torch.finfo(hidden_NH.dtype).eps) * case.assistant_NV.abs()
    return error_NV.amax(dim=-1, keepdim=True)


@pytest.mark.parametrize("recompute", WAYS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    "num_rows, vocab_size, hidden_size, dtype",
    [
        (4, 1, 3, torch.float32),
        (5, 130, 64, torch.float16),
        (30, 300, 40, torch.float32),
        (3, 4100, 100, torch.bfloat16),
        (2, 8200, 32, torch.float32),
    ],
)
def test_it_composes_the_product(seed, num_rows, vocab_size, hidden_size, dtype, mode, recompute):
    case, hidden_NH, head_VH = draw(seed, num_rows, vocab_size, hidden_size, dtype)
    expected = case.target_RV.double()
    done = compose_reference(expected, case.assistant_NV, on_cpu(case), mode=mode)
    target_RV = on_device(case.target_RV)
    result = compose_hidden(
        target_RV, hidden_NH.to(DEVICE), head_VH.to(DEVICE), case.pairs(), mode=mode, recompute=recompute
    )
    assert torch.equal(result.open_N.cpu(), done.open_N)
    assert torch.equal(result.bad_N.cpu(), done.bad_N)
    got = target_RV.cpu().double()
    # The threshold is the target's alone: float32 may decide a tie with max + ln tau otherwise.
    kept = torch.isfinite(expected) == torch.isfinite(got)
    assert (~kept).sum(dim=1).le(1).all()
    error_N1 = error_of_product(case, hidden_NH, head_VH, stored=not recompute)
    c_N1 = case.assistant_NV.log_softmax(-1).abs().amax(-1, keepdim=True) + math.log(vocab_size)
    tolerance_R1 = K * EPS32 * case.target_RV.double().abs().nan_to_num(posinf=0).amax(-1, keepdim=True)
    per_pair_N1 = case.weight_N[:, None].double() * (2 * error_N1 + K * EPS32 * (1 + c_N1))
    tolerance_R1.index_add_(0, case.row_N, per_pair_N1)
    both = torch.isfinite(expected) & torch.isfinite(got)
    assert ((expected - got).abs() <= tolerance_R1)[both].all()


def on_cpu(case):
    lists = [x.tolist() for x in (case.row_N, case.weight_N, case.gate_nats_N, case.keep_ratio_R)]
    return Pairs.build(*lists, vocab_size=case.target_RV.shape[1])


@pytest.mark.parametrize("recompute", WAYS)
@pytest.mark.parametrize("where", ["hidden", "head"])
def test_a_product_that_is_not_finite_silences_its_row(seed, where, recompute):
    case, hidden_NH, head_VH = draw(seed, 3, 300, 16, torch.float32)
    if len(case.row_N) == 0:
        return
    (hidden_NH if where == "hidden" else head_VH)[0, 3] = float("nan")
    target_RV = on_device(case.target_RV)
    result = compose_hidden(target_RV, hidden_NH.to(DEVICE), head_VH.to(DEVICE), case.pairs(), recompute=recompute)
    bad = result.bad_N.cpu()
    assert bad[0] and (where == "hidden" or bad.all())
    assert torch.isneginf(target_RV[case.row_N[bad].to(DEVICE)]).all()


@pytest.mark.parametrize("recompute", WAYS)
def test_a_batch_without_pairs_is_untouched(recompute):
    target_RV = torch.randn(3, 5, device=DEVICE)
    before = target_RV.clone()
    nothing = Pairs.build([], [], [], [0.5] * 3, vocab_size=5, device=DEVICE)
    head_VH = torch.randn(5, 4, device=DEVICE)
    result = compose_hidden(target_RV, torch.zeros(0, 4, device=DEVICE), head_VH, nothing, recompute=recompute)
    assert isinstance(result, Composition) and same_bits(target_RV, before)


def test_the_stored_way_is_compose_of_the_product(seed):
    case, hidden_NH, head_VH = draw(seed, 5, 200, 24, torch.bfloat16)
    one, other = case.target_RV.to(DEVICE), case.target_RV.to(DEVICE)
    hidden_NH, head_VH = hidden_NH.to(DEVICE), head_VH.to(DEVICE)
    compose(one, hidden_NH @ head_VH.T, case.pairs())
    compose_hidden(other, hidden_NH, head_VH, case.pairs(), recompute=False)
    assert same_bits(one, other)


def test_recomputing_pays_for_many_pairs_of_a_small_model_only():
    assert recomputing_pays(num_pairs=1024, hidden_size=256)
    assert not recomputing_pays(num_pairs=1024, hidden_size=1024)
    assert not recomputing_pays(num_pairs=8, hidden_size=256)


PAIRS = Pairs.build([0, 1], [1.0] * 2, [0.0] * 2, [0.1] * 2, vocab_size=6, device=DEVICE)


@pytest.mark.parametrize(
    "changes, sentence",
    [
        ({"head_VH": torch.zeros(5, 4)}, "head_VH must be (6, H) of fp32, bf16 or fp16, got (5, 4)"),
        ({"head_VH": torch.zeros(6, 4, dtype=torch.float64)}, "head_VH must be (6, H)"),
        ({"hidden_NH": torch.zeros(3, 4)}, "hidden_NH must be (2, 4) of torch.float32"),
        ({"hidden_NH": torch.zeros(2, 5)}, "hidden_NH must be (2, 4)"),
        ({"hidden_NH": torch.zeros(2, 4).bfloat16()}, "hidden_NH must be (2, 4) of torch.float32"),
        ({"target_RV": torch.zeros(3, 6)}, "target_RV must be (2, 6)"),
        ({"head_VH": torch.zeros(4, 6).T}, "head_VH must have contiguous rows"),
        ({"mode": "greedy"}, "mode must be"),
    ],
)
def test_what_does_not_fit_is_named(changes, sentence):
    arguments = {
        "target_RV": torch.zeros(2, 6),
        "hidden_NH": torch.zeros(2, 4),
        "head_VH": torch.zeros(6, 4),
        **changes,
    }
    arguments = {k: v.to(DEVICE) if isinstance(v, torch.Tensor) else v for k, v in arguments.items()}
    with pytest.raises(ValueError) as caught:
        compose_hidden(pairs=PAIRS, **arguments)
    assert str(caught.value).startswith(sentence)


@pytest.mark.skipif(TRITON, reason="Triton is here")
def test_recomputing_without_triton_is_refused():
    with pytest.raises(ValueError, match="needs Triton"):
        compose_hidden(torch.zeros(2, 6), torch.zeros(2, 4), torch.zeros(6, 4), PAIRS, recompute=True)
