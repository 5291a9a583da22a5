"""How much memory forgetting takes: docs/deployment.md's formulas, compared with the engine's own figures by tests."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Shape:
    """A target as its configuration has it, and the bytes of one number."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    bytes: int = 2

    @property
    def lora_sides(self) -> int:
        """Inputs plus outputs of a layer's seven linear maps: the numbers of one rank of one layer's LoRA."""
        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        attention = (self.hidden + queries) + 2 * (self.hidden + keys) + (queries + self.hidden)
        return attention + 3 * (self.hidden + self.intermediate)


def kv_bytes_per_token(shape: Shape, *, branches: int, branch_layers: int) -> int:
    """Of the KV cache: every branch's layers have keys and values of their own."""
    layers = shape.layers + branches * branch_layers
    return 2 * layers * shape.kv_heads * shape.head_dim * shape.bytes


def set_bytes(shape: Shape, *, branch_layers: int, rank: int, number_bytes: int) -> int:
    """One forget set's tensors: on disk as it was trained, in memory padded to --max-rank."""
    return branch_layers * rank * shape.lora_sides * number_bytes


def slot_bytes(shape: Shape, *, branches: int, branch_layers: int, max_rank: int, max_loaded: int) -> int:
    """LoRA's slots, taken at the start: one for each combination that a batch may hold, on every branch."""
    one = set_bytes(shape, branch_layers=branch_layers, rank=max_rank, number_bytes=shape.bytes)
    return max_loaded * branches * one


def gate_bytes(*, max_num_seqs: int, max_model_len: int) -> int:
    """The memory in which open gates are counted, and what each sequence says."""
    slots = max(max_num_seqs, min(64 * 2**20 // (2 * max_model_len), 4096))
    return 64 + 2 * slots * (1 + max_model_len)


TARGETS = {
    "Llama 3.1 8B": Shape(32, 4096, 14336, 32, 8, 128),
    "Qwen3 32B": Shape(64, 5120, 25600, 64, 8, 128),
    "Llama 3.1 70B": Shape(80, 8192, 28672, 64, 8, 128),
}


def table_row(name: str, *, branch_layers: int, rank: int = 32, max_loaded: int = 8) -> list[str]:
    """A row of docs/deployment.md's table."""
    shape = TARGETS[name]
    plain = kv_bytes_per_token(shape, branches=0, branch_layers=0)
    one = kv_bytes_per_token(shape, branches=1, branch_layers=branch_layers)
    on_disk = set_bytes(shape, branch_layers=branch_layers, rank=rank, number_bytes=4)
    slots = slot_bytes(shape, branches=1, branch_layers=branch_layers, max_rank=rank, max_loaded=max_loaded)
    return [
        name,
        str(branch_layers),
        f"{plain / 2**10:.0f} KiB",
        f"{(one - plain) / 2**10:.0f} KiB ({(one - plain) / plain:.1%})",
        f"{on_disk / 2**20:.0f} MiB",
        f"{slots / 2**20:.0f} MiB",
    ]
