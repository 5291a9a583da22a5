"""LoRA for a few rows on a CPU: row by row, each with its own adapter.

For few rows, calling a matmul costs more than its work; a row's weights are read once, in memory order.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from unlearngate.kernels.numba_kernels import compiled


@compiled(fastmath={"reassoc", "contract"})
def add_lora_rows(y: Any, x: Any, a: Any, b: Any, sizes: Any, slot_T: Any, first: int) -> None:
    """y[first + t] += x[first + t] @ a[s]^T @ b[s], slice by slice of the output, for t's slot s = slot_T[t].

    Args:
        y: (rows, out) fp32, written.
        x: (rows, in) fp32.
        a: (slots, n * rank, in) fp32: for each of the n slices its own A.
        b: (slots, rank, out) fp32: B^T of each slice in the columns of its output.
        sizes: (n,) int64, of the slices of the output.
        slot_T: (T,) int64; -1 for a row without an adapter.
        first: the row of `y` and `x` that slot_T[0] is of.
    """
    rank = b.shape[1]
    for t in range(len(slot_T)):
        slot = slot_T[t]
        if slot < 0:
            continue
        x_row, start = x[first + t], 0
        for piece in range(len(sizes)):
            stop = start + sizes[piece]
            y_slice = y[first + t, start:stop]
            for k in range(rank):
                a_row, b_row, low = a[slot, piece * rank + k], b[slot, k, start:stop], np.float32(0)
                for i in range(len(x_row)):
                    low += a_row[i] * x_row[i]
                for i in range(len(y_slice)):
                    y_slice[i] += low * b_row[i]
            start = stop
