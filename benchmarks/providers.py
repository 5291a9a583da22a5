"""What the kernel benchmark runs: cases, their inputs, and the ways of composing them that are compared.

Shape legend: S input sets, R target rows, N (row, forget set) pairs, V vocab, B bytes.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from unlearngate.kernels.compose import compose
from unlearngate.kernels.pairs import Pairs
from unlearngate.kernels.reference import compose_reference
from unlearngate.kernels.scratch import Scratch

KEEP_RATIO = 0.01
WEIGHT = 1.0
GATE_NATS = 0.0

Run = Callable[[int], object]
"""Composes input set s. It may leave the result in the input set's target or anywhere else."""

_PEAK = 10.0  # added to one token of each row: an over-confident target
_CACHES = 4  # the input sets together are larger than this many L2 caches
_MOST_INPUT_SETS = 1024


@dataclass(frozen=True, slots=True)
class Case:
    """One size of the problem; every row has `num_sets` forget sets in force."""

    num_rows: int
    vocab_size: int
    num_sets: int
    target_dtype: torch.dtype = torch.float32
    assistant_dtype: torch.dtype = torch.float32

    @property
    def num_pairs(self) -> int:
        """N."""
        return self.num_rows * self.num_sets

    @property
    def target_bytes(self) -> int:
        """Size of the target's logits."""
        return self.num_rows * self.vocab_size * self.target_dtype.itemsize

    @property
    def assistant_bytes(self) -> int:
        """Size of all assistants' logits."""
        return self.num_pairs * self.vocab_size * self.assistant_dtype.itemsize

    @property
    def min_bytes(self) -> int:
        """What must move at least: each input read once, each written row written once; without sets nothing."""
        return 2 * self.target_bytes + self.assistant_bytes if self.num_sets else 0

    @property
    def input_bytes(self) -> int:
        """What one input set occupies: the target twice, the assistants, and what the copy moves."""
        return 2 * self.target_bytes + self.assistant_bytes + self.min_bytes

    def working_bytes(self, provider: str) -> int:
        """A generous estimate of what a provider allocates beside its inputs."""
        if provider in {"copy", "empty", "ours"}:
            return 0
        return (32 * self.num_rows + 24 * self.num_pairs) * self.vocab_size


class Inputs:
    """Random logits of one case, in enough sets that none is found in the GPU's cache.

    compose works in place, and composing a composed row is another problem: `restore` brings fresh targets back.
    """

    def __init__(self, case: Case, device: torch.device, seed: int) -> None:
        self.case = case
        self.device = device
        self.num_slots = num_slots(case, device)
        generator = torch.Generator(device).manual_seed(seed)
        shape = (self.num_slots, case.num_rows, case.vocab_size)
        self._fresh_SRV = torch.empty(shape, dtype=case.target_dtype, device=device)
        self.assistant_SNV = torch.empty(
            (self.num_slots, case.num_pairs, case.vocab_size), dtype=case.assistant_dtype, device=device
        )
        for fresh_RV, assistant_NV in zip(self._fresh_SRV, self.assistant_SNV, strict=True):
            # An engine's logits have bf16 precision, whatever dtype they are stored in.
            fresh_RV.copy_(draw_target(case.num_rows, case.vocab_size, generator).bfloat16())
            assistant_NV.copy_(torch.randn(assistant_NV.shape, generator=generator, device=device).mul_(2))
        self.target_SRV = self._fresh_SRV.clone()
        self.pairs = Pairs.build(
            [row for row in range(case.num_rows) for _ in range(case.num_sets)],
            [WEIGHT] * case.num_pairs,
            [GATE_NATS] * case.num_pairs,
            [KEEP_RATIO] * case.num_rows,
            vocab_size=case.vocab_size,
            device=device,
        )
        self.scratch = Scratch(case.num_pairs, case.vocab_size, device) if device.type == "cuda" else None
        moved = (self.num_slots, case.min_bytes // 2)
        self.source_SB = torch.empty(moved, dtype=torch.uint8, device=device).random_(generator=generator)
        self.sink_SB = torch.empty_like(self.source_SB)

    def restore(self) -> None:
        """Bring back the targets as they were before anything was composed. Does not wait for the device."""
        self.target_SRV.copy_(self._fresh_SRV)


def draw_target(num_rows: int, vocab_size: int, generator: torch.Generator) -> Tensor:
    """(R, V) fp32 logits: normal(0, 3), and one token of each row raised far above."""
    device = generator.device
    target_RV = torch.randn(num_rows, vocab_size, generator=generator, device=device).mul_(3)
    peak_R1 = torch.randint(vocab_size, (num_rows, 1), generator=generator, device=device)
    return target_RV.scatter_add_(1, peak_R1, torch.full(peak_R1.shape, _PEAK, device=device))


def num_slots(case: Case, device: torch.device) -> int:
    """How many input sets: one on a CPU; on a GPU enough to overflow its L2 cache, if half of its memory holds them."""
    if device.type != "cuda" or case.num_sets == 0:
        return 1
    l2_bytes = torch.cuda.get_device_properties(device).L2_cache_size
    wanted = math.ceil(_CACHES * l2_bytes / (case.target_bytes + case.assistant_bytes)) + 1
    fitting = torch.cuda.mem_get_info(device)[0] // 2 // case.input_bytes
    return max(1, min(wanted, fitting, _MOST_INPUT_SETS))


def compose_paper(
    target_RV: Tensor, assistant_NV: Tensor, *, weight: float = WEIGHT, keep_ratio: float = KEEP_RATIO
) -> Tensor:
    """The result as the paper's released code has it: log-softmax of both, relative-top filter by a full sort.

    Args:
        target_RV: (R, V) fp32 or fp64 logits, not written.
        assistant_NV: (N, V), N / R rows for each target row, one after the other.
        weight: of every assistant.
        keep_ratio: tau, above 0.

    Returns: (R, V) in target_RV's dtype, -inf where not kept; compose's result up to a constant in each row.
    Source: ULD, arXiv:2406.08607, rewritten for a batch.
    """
    num_rows, vocab_size = target_RV.shape
    base_RV = target_RV.log_softmax(dim=-1)
    descending_RV = base_RV.sort(dim=-1, descending=True).values
    kth_R = descending_RV[:, max(1, math.floor(keep_ratio * vocab_size)) - 1]
    threshold_R = torch.minimum(kth_R, base_RV.amax(dim=-1) + math.log(keep_ratio))
    dropped_RV = base_RV < threshold_R[:, None]
    for assistant_RV in assistant_NV.view(num_rows, -1, vocab_size).unbind(1):
        base_RV = base_RV - weight * assistant_RV.log_softmax(dim=-1, dtype=target_RV.dtype)
    return base_RV.masked_fill_(dropped_RV, -math.inf)


def make_runs(inputs: Inputs) -> dict[str, Run | str]:
    """Every provider by name; where one has nothing to do in a case, the reason instead."""
    target_SRV, assistant_SNV, pairs = inputs.target_SRV, inputs.assistant_SNV, inputs.pairs
    compiled = torch.compile(compose_reference, fullgraph=True, dynamic=False)
    runs: dict[str, Run | str] = {
        "reference": lambda s: compose_reference(target_SRV[s], assistant_SNV[s], pairs),
        "compiled": lambda s: compiled(target_SRV[s], assistant_SNV[s], pairs),
        "paper": lambda s: compose_paper(target_SRV[s], assistant_SNV[s]),
        "ours": lambda s: compose(target_SRV[s], assistant_SNV[s], pairs, scratch=inputs.scratch),
        "copy": lambda s: inputs.sink_SB[s].copy_(inputs.source_SB[s]),
    }
    if inputs.device.type == "cuda":
        runs["empty"] = _empty_launch()
    if inputs.case.num_sets == 0:
        runs["paper"] = "nothing to run: the paper has no rows without an assistant"
        runs["copy"] = "nothing to run: no bytes need to move"
    return runs


def provider_names(device: torch.device) -> tuple[str, ...]:
    """The keys of `make_runs`."""
    return ("reference", "compiled", "paper", "ours", "copy", *(["empty"] if device.type == "cuda" else []))


def _empty_launch() -> Run:
    import triton

    @triton.jit
    def empty_kernel():  # type: ignore[no-untyped-def]
        pass

    return lambda s: empty_kernel[(1,)]()


def lack_of_memory(case: Case, provider: str, device: torch.device, *, allocated: bool) -> str:
    """Why a case cannot run on this CPU, or "". A GPU says so itself; a process on a CPU would be killed."""
    if device.type != "cpu":
        return ""
    needed = case.working_bytes(provider) + (0 if allocated else case.input_bytes)
    free = free_bytes()
    if needed <= 0.9 * free:
        return ""
    return f"out of memory: needs about {needed / 2**30:.1f} GiB, {free / 2**30:.1f} GiB are free"


def free_bytes() -> int:
    """Memory that this process can still get, in a container that limits it too."""
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        fields = dict(line.split(":") for line in meminfo.read_text().splitlines())
        free = int(fields["MemAvailable"].split()[0]) * 1024
    limit, used = Path("/sys/fs/cgroup/memory.max"), Path("/sys/fs/cgroup/memory.current")
    if limit.exists() and used.exists() and limit.read_text().strip() != "max":
        free = min(free, int(limit.read_text()) - int(used.read_text()))
    return free
