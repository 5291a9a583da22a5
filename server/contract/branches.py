"""How assistants live inside the served model: S branches of m layers, named so that vLLM's LoRA finds them.

One definition, used by the model (to build them), the launcher (to tell vLLM where LoRA goes) and the registry (to name
an adapter's tensors). Import-light.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from unlearngate.families import FAMILIES, Family

ARCHITECTURE = "UnlearningForCausalLM"
CONFIG_FIELD = "unlearngate"
TARGET_LAYERS = "target.model.layers"
MAX_BRANCHES = 8
_ATTENTION, _MLP = ("self_attn.qkv_proj", "self_attn.o_proj"), ("mlp.gate_up_proj", "mlp.down_proj")


@dataclass(frozen=True, slots=True)
class BranchOptions:
    """What the launcher tells the model class, through the Hugging Face configuration's `unlearngate` field.

    A branch is the target's layers tap_layer to tap_layer + num_layers; tap_layer 0 starts at the embeddings.
    adapted_layers is how many of the target's own layers LoRA sits on: none, or all of them for sets of kind `undial`.
    """

    target_architecture: str
    tap_layer: int
    num_layers: int
    num_branches: int
    adapted_layers: int = 0

    def __post_init__(self) -> None:
        counts = (self.tap_layer, self.num_layers, self.num_branches, self.adapted_layers)
        if not all(isinstance(count, int) for count in counts):
            raise TypeError(f"everything but target_architecture must be a whole number, got {self}")

    def to_config(self) -> dict[str, Any]:
        """As JSON values, for `hf_overrides`."""
        return asdict(self)

    def branch_names(self) -> list[str]:
        """`assistant_a`, `assistant_b`, ...: letters, because vLLM wants exactly one number in a layer's name."""
        return [branch_name(index) for index in range(self.num_branches)]

    def lora_target_modules(self) -> list[str]:
        """Full names of every linear map that a forget set may adapt: a shorter name would match other modules too."""
        layers = [f"{name}.layers.{layer}" for name in self.branch_names() for layer in range(self.num_layers)]
        layers += [f"{TARGET_LAYERS}.{layer}" for layer in range(self.adapted_layers)]
        experts = FAMILIES.get(self.target_architecture, Family()).experts
        return [f"{layer}.{linear}" for layer in layers for linear in (_ATTENTION if experts else _ATTENTION + _MLP)]


def branch_name(index: int) -> str:
    """The module name of a branch."""
    return f"assistant_{chr(ord('a') + index)}"
