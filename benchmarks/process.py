"""What must hold in a measuring process before torch is imported."""

from __future__ import annotations

import ctypes
import os
import sys

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER = 2**31 - 1  # bytes; mallopt takes an int
_RETURNED = 64 << 10  # bytes

KEPT = (
    "Freed memory is kept by the process (mallopt: mmap and trim thresholds of 2 GiB), for all candidates alike: "
    "otherwise each large tensor is given back and its pages are faulted in anew, which can cost more than the layer."
)


def prepare(threads: int | None) -> None:
    """Sets the threads of every OpenMP runtime that comes to be loaded, and has freed memory kept."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    keep_freed_memory()


def keep_freed_memory() -> bool:
    """Has the C library keep freed blocks below 2 GiB for the next allocation. Returns whether it can (glibc)."""
    return _set_thresholds(_NEVER, _NEVER)


def return_freed_memory() -> bool:
    """Has the C library give freed blocks of 64 KiB and more back at once, so that resident memory is what is held."""
    return _set_thresholds(_RETURNED, _RETURNED)


def _set_thresholds(mmap: int, trim: int) -> bool:
    if not sys.platform.startswith("linux"):
        return False
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    return mallopt is not None and all((mallopt(_M_MMAP_THRESHOLD, mmap), mallopt(_M_TRIM_THRESHOLD, trim)))
