"""Memory that torch frees stays the process's: training and calibration make the same large tensors again and again."""

from __future__ import annotations

import ctypes
import sys

# glibc's malloc.h
_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3
_LARGE = 2**30


def keep_freed_memory() -> None:
    """On Linux, let this process keep what it frees.

    The logits of a batch, N x V, are tens of megabytes, which glibc gives back to the kernel each time. The kernel
    fills every page with zeros before it hands it out again.
    """
    if sys.platform != "linux":
        return
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)  # not in musl
    if mallopt and mallopt(_M_MMAP_THRESHOLD, _LARGE):  # 0 from older ones, which bound it
        mallopt(_M_TRIM_THRESHOLD, _LARGE)
