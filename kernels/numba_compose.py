"""`compose` on a CPU: numba's kernels, on as many threads as torch uses if there is work for several.

Shape legend: R target rows, N (row, forget set) pairs, M distinct rows among them, V vocab.
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import pairwise

import numpy as np
import torch
from torch import Tensor

from unlearngate.kernels.numba_kernels import compose_rows
from unlearngate.kernels.pairs import Composition, Mode, Pairs

_ALONE = 2**19  # logits of the target; fewer are not worth a second thread


def compose_cpu(
    target_RV: Tensor, assistant_NV: Tensor, pairs: Pairs, *, mode: Mode = "sampling", own_RV: Tensor | None = None
) -> Composition:
    """The formula of docs/composition.md in fp32, without padding; rows whose gates are all closed are not written."""
    numbers = pairs.numbers()
    num_members, num_pairs = len(numbers.row_M), len(numbers.member_N)
    open_N, bad_N = np.zeros((2, num_pairs), np.bool_)
    evidence_N = np.zeros(num_pairs, np.float32)
    if num_pairs and pairs.vocab_size:
        written_M = np.zeros(num_members, np.bool_)
        finite_max, work_RV = torch.finfo(target_RV.dtype).max, target_RV.float()
        own = _flat(work_RV if own_RV is None else own_RV.float())
        given = (pairs.vocab_size, finite_max, mode == "scoring", own_RV is not None)
        logits = (*_flat(work_RV), *own, *_flat(assistant_NV.float()), *given)
        found = (written_M, open_N, evidence_N, bad_N)

        def compose_part(part: tuple[int, int]) -> None:
            compose_rows(*logits, *part, *numbers, *found)

        if num_members * pairs.vocab_size < _ALONE:
            compose_part((0, num_members))
        else:
            bounds = np.linspace(0, num_members, torch.get_num_threads() + 1).astype(int).tolist()
            list(_threads().map(compose_part, pairwise(bounds)))
        if work_RV is not target_RV and written_M.any():
            rows = torch.from_numpy(numbers.row_M[written_M])
            target_RV[rows] = work_RV[rows].to(target_RV.dtype)
    return Composition(*map(torch.from_numpy, (open_N, evidence_N, bad_N)))


def compile_kernels() -> None:
    """Compile what `compose_cpu` runs, some seconds the first time, so that no request waits for it."""
    compose_cpu(torch.zeros(1, 1), torch.zeros(1, 1), Pairs.build([0], [1.0], [0.0], [0.0], vocab_size=1))


def _flat(x_RV: Tensor) -> tuple[np.ndarray, int]:
    """The memory of fp32 logits, and the stride of its rows."""
    (num_rows, vocab_size), stride = x_RV.shape, x_RV.stride(0)
    return x_RV.as_strided(((num_rows - 1) * stride + vocab_size,), (1,)).numpy(), stride


@cache
def _threads() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(thread_name_prefix="compose", initializer=_spread)


def _spread() -> None:
    """Let this thread run on any core of the process: vLLM binds each torch thread, its parent too, to one core."""
    cores: set[int] = set()
    for task in os.listdir("/proc/self/task"):
        with suppress(ProcessLookupError):  # the thread has ended
            cores |= os.sched_getaffinity(int(task))
    os.sched_setaffinity(0, cores)
