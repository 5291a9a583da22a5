"""How assistants live inside the served model: S branches of m layers, named so that vLLM's LoRA finds them.

One definition, used by the model (to build them), the launcher (to tell vLLM where LoRA goes) and the registry (to name
an adapter's tensors). Import-light.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

ARCHITECTURE = "UnlearningForCausalLM"
CONFIG_FIELD = "unlearngate"
MAX_BRANCHES = 8
# Architectures whose inner model takes (input_ids, positions) or inputs_embeds, gives the hidden states before a layer
# that is asked for (vLLM's EAGLE-3 interface), and names its linear maps as Llama does.
# Each is in the parity tests.
TARGET_ARCHITECTURES = ("LlamaForCausalLM", "MistralForCausalLM", "Qwen3ForCausalLM")
_LORA_LINEARS = ("self_attn.qkv_proj", "self_attn.o_proj", "mlp.gate_up_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True)
class BranchOptions:
    """What the launcher tells the model class, through the Hugging Face configuration's `unlearngate` field.

    A branch is the target's layers tap_layer to tap_layer + num_layers; tap_layer 0 starts at the embeddings.
    """

    target_architecture: str
    tap_layer: int
    num_layers: int
    num_branches: int

    def __post_init__(self) -> None:
        if not all(isinstance(n, int) for n in (self.tap_layer, self.num_layers, self.num_branches)):
            raise TypeError(f"tap_layer, num_layers and num_branches must be whole numbers, got {self}")

    def to_config(self) -> dict[str, Any]:
        """As JSON values, for `hf_overrides`."""
        return asdict(self)

    def branch_names(self) -> list[str]:
        """`assistant_a`, `assistant_b`, ...: letters, because vLLM wants exactly one number in a layer's name."""
        return [branch_name(index) for index in range(self.num_branches)]

    def lora_target_modules(self) -> list[str]:
        """Full names of every linear map of every branch; nothing of the target."""
        return [
            f"{name}.layers.{layer}.{linear}"
            for name in self.branch_names()
            for layer in range(self.num_layers)
            for linear in _LORA_LINEARS
        ]


def branch_name(index: int) -> str:
    """The module name of a branch."""
    return f"assistant_{chr(ord('a') + index)}"
