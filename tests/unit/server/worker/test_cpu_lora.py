"""LoRA on a CPU against float64, row by row, through vLLM's own bookkeeping of the batch."""

import itertools
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace

import pytest
import torch
from vllm.forward_context import ForwardContext, override_forward_context
from vllm.lora.layers import LoRAMapping
from vllm.lora.punica_wrapper.punica_selector import get_punica_wrapper

from unlearngate.kernels.numba_lora import add_lora_rows
from unlearngate.server.worker import cpu_lora
from unlearngate.server.worker.batch import Parts
from unlearngate.server.worker.compat import group_cpu_lora, run_in_parts
from unlearngate.server.worker.cpu_lora import GroupedLora, add_joined, joined_numbers

RANK, IN, OUTS = 4, 6, (5, 3)
SLOTS = [21, 9, 34, 2, 77, 50, 8]  # the adapters' ids
BATCHES = {
    "many": lambda rng: [(0, *SLOTS)[i] for i in torch.randint(0, 8, (16,), generator=rng)] + [0, *SLOTS],
    "few": lambda rng: [(0, *SLOTS)[i] for i in torch.randint(0, 4, (16,), generator=rng)] + [0, *SLOTS[:3]],
    "many, one with most rows": lambda rng: [*SLOTS, *[34] * 16],
    "one adapter": lambda rng: [9] * 7,
    "neighbours": lambda rng: [0, 0, 34, 34, 34, 21, 21, 0],
    "none": lambda rng: [0] * 5,
    "one row": lambda rng: [50],
    "a prompt among others": lambda rng: [9, 0, *[34] * 30, 77],
}


def make_wrapper():
    group_cpu_lora()
    wrapper = get_punica_wrapper(max_num_batched_tokens=256, max_batches=256, device="cpu")
    assert type(wrapper) is GroupedLora
    return wrapper


def draw_adapters(rng, dtype):
    a = tuple(torch.randn(len(SLOTS), 1, RANK, IN, generator=rng).to(dtype) for _ in OUTS)
    return a, tuple(torch.randn(len(SLOTS), 1, out, RANK, generator=rng).to(dtype) for out in OUTS)


def check(y, before, x, a, b, ids, scale):
    """Against float64; a row without an adapter keeps its bits."""
    for row, adapter_id in enumerate(ids):
        if adapter_id == 0:
            assert torch.equal(y[row], before[row])
            continue
        slot = SLOTS.index(adapter_id)
        pairs = [(a_[slot, 0].double(), b_[slot, 0].double()) for a_, b_ in zip(a, b, strict=True)]
        update = torch.cat([b_ @ (a_ @ x[row].double()) for a_, b_ in pairs])
        size = torch.cat([b_.abs() @ (a_.abs() @ x[row].double().abs()) for a_, b_ in pairs])
        error = (y[row].double() - before[row].double() - scale * update).abs()
        # One rounding of what is added, one of the sum, and one of what is between A and B.
        assert (error <= 4 * torch.finfo(y.dtype).eps * (before[row].double().abs() + size)).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("is_prefill", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
def test_each_row_has_its_own_adapter_and_a_plain_row_keeps_its_bits(batch, is_prefill, dtype, seed):
    rng, wrapper = torch.Generator().manual_seed(seed), make_wrapper()
    for ids in ([0, *SLOTS], BATCHES[batch](rng)):  # nothing of the batch before stays
        wrapper.update_metadata(LoRAMapping(tuple(ids), tuple(ids), is_prefill), SLOTS, len(SLOTS) + 1, 100)
    x = torch.randn(len(ids), IN, generator=rng).to(dtype)
    y = torch.randn(len(ids), sum(OUTS), generator=rng).to(dtype)
    a, b = draw_adapters(rng, dtype)
    before = y.clone()
    wrapper.add_lora_linear(y, x, a, b, 0.5, OUTS)
    check(y, before, x, a, b, ids, 0.5)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("alone", [0, 2**22])
@pytest.mark.parametrize("is_cut", [False, True])
@pytest.mark.parametrize("batch", BATCHES)
def test_joined_slices_are_added_to_their_parts_of_the_rows_and_follow_what_is_loaded(
    batch, is_cut, alone, dtype, seed, monkeypatch
):
    monkeypatch.setattr(cpu_lora, "ALONE", alone)
    rng, wrapper = torch.Generator().manual_seed(seed), make_wrapper()
    ids = BATCHES[batch](rng)
    wrapper.update_metadata(LoRAMapping(tuple(ids), tuple(ids), False), SLOTS, len(SLOTS) + 1, 100)
    linears = []
    for _ in range(2):
        a, b = draw_adapters(rng, dtype)
        linears.append(SimpleNamespace(lora_a_stacked=a, lora_b_stacked=b))
        wrapper.join(linears[-1])
        for after, drawn in zip((*linears[-1].lora_a_stacked, *linears[-1].lora_b_stacked), (*a, *b), strict=True):
            assert after.shape == drawn.shape and torch.equal(after, drawn)  # nothing that was loaded is lost
    # The target's part has no LoRA. Of the branches' each row is in as many as it needs: 2, or 0 to 2 where it is cut.
    needed = torch.randint(0, 3, (len(ids),), generator=rng).tolist() if is_cut else [2] * len(ids)
    parts = Parts.build([*needed, 1], [*range(len(ids) + 1), len(ids)], len(ids))  # one needs a branch, and has no row
    rows = [range(len(ids)), *([i for i, n in enumerate(needed) if n > branch] for branch in range(2))]
    numbers = joined_numbers([None, *linears])
    for _ in range(2):
        drawn = [draw_adapters(rng, dtype) for _ in linears]
        for linear, adapters in zip(linears, drawn, strict=True):
            views = (*linear.lora_a_stacked, *linear.lora_b_stacked)
            for view, tensor in zip(views, (*adapters[0], *adapters[1]), strict=True):
                view.copy_(tensor)  # as vLLM loads an adapter: into what is there
        x = torch.randn(sum(map(len, rows)), IN, generator=rng).to(dtype)
        y = torch.randn(len(x), sum(OUTS), generator=rng).to(dtype)
        before, ends = y.clone(), [0, *itertools.accumulate(map(len, rows))]
        with step_in_parts(parts) if is_cut else nullcontext():
            add_joined(y, x, numbers)
        assert torch.equal(y[: ends[1]], before[: ends[1]])
        for branch, (a, b) in enumerate(drawn):
            own = slice(ends[branch + 1], ends[branch + 2])
            check(y[own], before[own], x[own], a, b, [ids[row] for row in rows[branch + 1]], 1.0)


@contextmanager
def step_in_parts(parts):
    context = ForwardContext(no_compile_layers={}, attn_metadata={}, slot_mapping={})
    with override_forward_context(context), run_in_parts(parts, []):
        yield


def test_what_is_known_of_a_batch_is_not_taken_for_the_next(seed):
    """The same parts, other adapters: as when a request ends and another takes its place."""
    rng, wrapper = torch.Generator().manual_seed(seed), make_wrapper()
    a, b = draw_adapters(rng, torch.float32)
    linear = SimpleNamespace(lora_a_stacked=a, lora_b_stacked=b)
    wrapper.join(linear)
    for parts in (Parts.build([0, 1], [0, 1, 3], 3), Parts.build([1, 0], [0, 1, 3], 3)):
        for ids in ([0, 9, 9], [34, 0, 0], [77, 50, 50]):
            wrapper.update_metadata(LoRAMapping(tuple(ids), tuple(ids), False), SLOTS, len(SLOTS) + 1, 100)
            x = torch.randn(3 + len(parts.row_M), IN, generator=rng)
            y = torch.zeros(len(x), sum(OUTS))
            with step_in_parts(parts):
                add_joined(y, x, joined_numbers([None, linear]))
            own = [ids[row] for row in parts.row_M]
            check(y, torch.zeros_like(y), x, a, b, [0, 0, 0, *own], 1.0)


def test_of_rows_that_are_asked_for_each_has_its_own_adapter_too(seed):
    """Behind a branch's last attention: of prompts of 3, 2 and 4 rows the last is scored, and all have adapters."""
    rng, wrapper = torch.Generator().manual_seed(seed), make_wrapper()
    a, b = draw_adapters(rng, torch.float32)
    linear = SimpleNamespace(lora_a_stacked=a, lora_b_stacked=b)
    wrapper.join(linear)
    ids = [9, 9, 9, 34, 34, 50, 50, 50, 50]
    wrapper.update_metadata(LoRAMapping(tuple(ids), tuple(ids), True), SLOTS, len(SLOTS) + 1, 100)
    asked = [2, 4, 5, 6, 7, 8]
    for cuts_target in (False, True):
        parts = Parts.build([1, 0, 1], [0, 3, 5, 9], 9, scored=[False, False, True], cuts_target=cuts_target)
        own = [row for row in asked if row not in (3, 4)]
        of_target = len(asked) if cuts_target else 9
        with step_in_parts(parts):
            for rows, before in ((own, of_target), ([0, 1, 2, 5, 6, 7, 8], 9)):  # behind it, and before
                x = torch.randn(before + len(rows), IN, generator=rng)
                y = torch.zeros(len(x), sum(OUTS))
                add_joined(y, x, joined_numbers([None, linear]))
                check(y, torch.zeros_like(y), x, a, b, [*[0] * before, *(ids[row] for row in rows)], 1.0)
            with pytest.raises(RuntimeError, match=r"of the step's parts, \[9, 7\] or \[[69], 5\]"):
                add_joined(torch.zeros(3, sum(OUTS)), torch.randn(3, IN), joined_numbers([None, linear]))


def test_small_batches_go_to_the_kernel_compiled_at_the_start_and_large_ones_do_not(monkeypatch):
    wrapper, calls = make_wrapper(), []
    wrapper.add_rows = lambda *args: calls.append(args) or add_lora_rows(*args)
    a, b = draw_adapters(None, torch.float32)
    linear = SimpleNamespace(lora_a_stacked=a, lora_b_stacked=b)
    wrapper.join(linear)
    numbers = joined_numbers([None, linear])
    weights = sum(x[0].numel() for x in (*linear.lora_a_stacked, *linear.lora_b_stacked))
    monkeypatch.setattr(cpu_lora, "ALONE", 7 * weights)
    for num_rows in (1, 7, 8):
        ids = (9,) * num_rows
        wrapper.update_metadata(LoRAMapping(ids, ids, False), SLOTS, len(SLOTS) + 1, 100)
        with torch.inference_mode():
            add_joined(torch.zeros(2 * num_rows, sum(OUTS)), torch.randn(2 * num_rows, IN), numbers)
    assert len(calls) == 2 and len(add_lora_rows.signatures) == 1
    with pytest.raises(RuntimeError, match=r"15 rows are not those of the step's parts, \[8, 8\]"):
        add_joined(torch.zeros(15, sum(OUTS)), torch.randn(15, IN), numbers)


def test_weights_that_are_written_again_and_those_of_other_modules_count(seed):
    rng, wrapper = torch.Generator().manual_seed(seed), make_wrapper()
    wrapper.update_metadata(LoRAMapping((9, 34, 9), (9, 34, 9), False), SLOTS, len(SLOTS) + 1, 100)
    modules = []
    for _ in range(2):
        a = tuple(torch.empty(len(SLOTS), 1, RANK, IN) for _ in OUTS)
        modules.append((a, tuple(torch.empty(len(SLOTS), 1, out, RANK) for out in OUTS)))
    for _ in range(2):
        for a, b in modules:
            for tensor in (*a, *b):  # as vLLM loads an adapter: into what is there
                tensor.copy_(torch.randn(tensor.shape, generator=rng))
        for a, b in modules:
            x, y = torch.randn(3, IN, generator=rng), torch.zeros(3, sum(OUTS))
            wrapper.add_lora_linear(y, x, a, b, 1.0, OUTS)
            slots = [SLOTS.index(adapter_id) for adapter_id in (9, 34, 9)]
            rows = [
                torch.cat([b_[s, 0] @ (a_[s, 0] @ x[i]) for a_, b_ in zip(a, b, strict=True)])
                for i, s in enumerate(slots)
            ]
            torch.testing.assert_close(y, torch.stack(rows), msg=lambda m: f"seed {seed}: {m}")
