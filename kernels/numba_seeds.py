"""Look-ups in a sorted array of 32-bit seeds: about two reads of memory each, however many seeds there are."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from unlearngate.kernels.numba_kernels import compiled
from unlearngate.passages import mix

_mix = njit(inline="always")(mix)


class SeedIndex:
    """The seeds of one set, by their upper bits: a bucket holds one seed on average."""

    def __init__(self, seeds: np.ndarray, salt: int) -> None:
        """Index the seeds.

        Args:
            seeds: (N,) uint32, sorted, each once.
            salt: the set's, of 64 bits.
        """
        bits = min(30, max(1, len(seeds).bit_length()))
        self._shift = np.uint64(32 - bits)
        counts = np.bincount(seeds >> np.uint32(32 - bits), minlength=2**bits)
        self._starts = np.concatenate([[0], np.cumsum(counts)]).astype(np.uint32)
        self._seeds = seeds
        self._salt = np.uint64(salt)

    @property
    def size_bytes(self) -> int:
        """What it takes of memory."""
        return self._seeds.nbytes + self._starts.nbytes

    def contains(self, hashed_L: np.ndarray) -> np.ndarray:
        """(L,) uint64 hashes of windows -> (L,) bool, which windows are in the set."""
        found_L = np.empty(len(hashed_L), np.bool_)
        _look_up(self._seeds, self._starts, self._shift, self._salt, hashed_L, found_L)
        return found_L


@compiled()
def _look_up(seeds: Any, starts: Any, shift: Any, salt: Any, hashed_L: Any, found_L: Any) -> None:
    for i in range(len(hashed_L)):
        seed = _mix(hashed_L[i], salt)
        low, high = starts[seed >> shift], starts[(seed >> shift) + np.uint64(1)]
        while low < high:  # by halves: a forged set may have all its seeds in one bucket
            middle = (low + high) // np.uint32(2)
            if seeds[middle] < seed:
                low = middle + np.uint32(1)
            else:
                high = middle
        found_L[i] = low < len(seeds) and seeds[low] == seed
