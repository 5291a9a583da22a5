"""What is set right in vLLM itself, against vLLM's own classes."""

from types import SimpleNamespace

import pytest
from vllm.lora.layers import LoRAMapping
from vllm.lora.ops.triton_ops.lora_kernel_metadata import LoRAKernelMeta
from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

from unlearngate.server.worker.compat import adapts_a_row


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
