"""What is set right in vLLM itself, against vLLM's own classes."""

from types import SimpleNamespace

import pytest
import torch
from vllm.lora.layers import LoRAMapping
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from unlearngate.server.vllm_compat import adapts_a_row, skip_plain_rows_in_cpu_lora

RANK, IN, OUTS = 4, 6, (5, 3)


@pytest.mark.parametrize("is_prefill", [False, True])
def test_lora_on_a_cpu_leaves_rows_without_an_adapter_alone(is_prefill, seed):
    """A mixed batch with every slot taken: each row is its own adapter's, and a plain row keeps its bits."""
    skip_plain_rows_in_cpu_lora()
    generator = torch.Generator().manual_seed(seed)
    slots = [21, 9]  # the adapters' ids
    ids = [(0, *slots)[i] for i in torch.randint(0, 3, (16,), generator=generator)] + [0, *slots]
    wrapper = PunicaWrapperCPU(max_num_batched_tokens=32, max_batches=32, device="cpu")
    wrapper.update_metadata(LoRAMapping(tuple(ids), tuple(ids), is_prefill), slots, len(slots) + 1, 100)
    x = torch.randn(len(ids), IN, generator=generator)
    y = torch.randn(len(ids), sum(OUTS), generator=generator)
    a = tuple(torch.randn(len(slots), 1, RANK, IN, generator=generator) for _ in OUTS)
    b = tuple(torch.randn(len(slots), 1, out, RANK, generator=generator) for out in OUTS)
    before = y.clone()
    wrapper.add_lora_linear(y, x, a, b, 1.0, OUTS)
    for row, adapter_id in enumerate(ids):
        if adapter_id == 0:
            assert torch.equal(y[row], before[row])
        else:
            slot = slots.index(adapter_id)
            update = torch.cat([b_[slot, 0] @ a_[slot, 0] @ x[row] for a_, b_ in zip(a, b, strict=True)])
            torch.testing.assert_close(y[row], before[row] + update, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("is_prefill", [False, True])
@pytest.mark.parametrize("on_gpu", [False, True])
def test_a_batch_has_an_adapter_or_not(on_gpu, is_prefill):
    """By the CPU wrapper's indices, or by the flag that vLLM's GPU kernels themselves go by."""
    wrapper = PunicaWrapperCPU(max_num_batched_tokens=8, max_batches=8, device="cpu")
    linear = SimpleNamespace(punica_wrapper=wrapper)
    assert adapts_a_row(SimpleNamespace()) and adapts_a_row(linear)  # nothing is known yet
    if on_gpu:
        wrapper.token_mapping_meta = LoRAKernelMeta.make(2, 8, device="cpu", captured_lora_counts=[2])
    for ids in ((0, 0, 0), (0, 21, 0), (0,), (9, 21), (0, 0, 0, 0)):
        wrapper.update_metadata(LoRAMapping(ids, ids, is_prefill), [21, 9], 3, 100)
        if on_gpu:
            wrapper.token_mapping_meta.prepare_tensors(wrapper.token_lora_indices)
        assert adapts_a_row(linear) == any(ids)
