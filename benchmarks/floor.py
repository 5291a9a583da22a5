"""The least time that a decoding step can take: bytes to read and numbers to multiply, at this machine's speeds."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from benchmarks.shapes import RANK

SIDE = 8192  # of the square matrix that is read: more than any cache holds
BLOCK = 2048  # of the square matrices that are multiplied


@dataclass(frozen=True)
class Machine:
    """Its best speeds, as torch reaches them."""

    device: torch.device
    dtype: torch.dtype
    bytes_per_s: float  # of a matrix-vector product
    flops_per_s: float  # of a matrix-matrix product

    @classmethod
    def measure(cls, device: torch.device, dtype: torch.dtype) -> Machine:
        """Take the fastest of several runs."""
        matrix, vector = (
            torch.ones(SIDE, SIDE, device=device, dtype=dtype),
            torch.ones(SIDE, device=device, dtype=dtype),
        )
        block = torch.ones(BLOCK, BLOCK, device=device, dtype=dtype)
        read_s = _fastest(lambda: torch.mv(matrix, vector))
        multiply_s = _fastest(lambda: torch.mm(block, block))
        return cls(device, dtype, matrix.nbytes / read_s, 2 * BLOCK**3 / multiply_s)

    def step_s(self, config: Any, sets: Sequence[Sequence[str]], num_layers: int) -> float:
        """Seconds for one token of each row. Attention, a few percent of it for short rows, is left out.

        Args:
            config: the target's Hugging Face configuration.
            sets: for each row the names of the sets in force in it.
            num_layers: of an assistant.
        """
        hidden = config.hidden_size
        head_dim = getattr(config, "head_dim", None) or hidden // config.num_attention_heads
        queries, keys = head_dim * config.num_attention_heads, head_dim * config.num_key_value_heads
        maps = [(hidden, queries), (hidden, keys), (hidden, keys), (queries, hidden)]
        maps += [(hidden, config.intermediate_size)] * 2 + [(config.intermediate_size, hidden)]
        layer, head = sum(a * b for a, b in maps), hidden * config.vocab_size
        adapter = num_layers * RANK * sum(a + b for a, b in maps)
        target = config.num_hidden_layers * layer + head
        pairs = sum(map(len, sets))
        read = target + adapter * len({name for names in sets for name in names})
        multiplied = len(sets) * target + pairs * (num_layers * layer + head + adapter)
        return max(read * self.dtype.itemsize / self.bytes_per_s, 2 * multiplied / self.flops_per_s)


def _fastest(run: Callable[[], object]) -> float:
    times = []
    for _ in range(12):
        began = time.perf_counter()
        run()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return statistics.quantiles(times[2:], n=10)[0]
