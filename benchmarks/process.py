"""What must hold in a measuring process before torch is imported."""

from __future__ import annotations

import ctypes
import gc
import os
import sys
from pathlib import Path
from typing import Any

_M_TRIM_THRESHOLD, _M_MMAP_THRESHOLD = -1, -3  # of glibc's malloc.h
_NEVER = 2**31 - 1  # bytes; mallopt takes an int
_RETURNED = 64 << 10  # bytes
MOST = 0.85  # of the available memory; what fails there fails in one process, not in the whole machine

KEPT = (
    "Freed memory is kept by the process (mallopt: mmap and trim thresholds of 2 GiB), for all candidates alike: "
    "otherwise each large tensor is given back and its pages are faulted in anew, which can cost more than the layer."
)


def prepare(threads: int | None) -> None:
    """Sets the threads of every OpenMP runtime that comes to be loaded, has freed memory kept, and limits memory."""
    if threads is not None:
        os.environ["OMP_NUM_THREADS"] = str(threads)
    keep_freed_memory()
    if available := available_memory():
        limit_memory(int(MOST * available))


def available_memory() -> int | None:
    """Bytes that can be had without swapping; None where Linux does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((int(line.split()[1]) << 10 for line in lines if line.startswith("MemAvailable:")), None)


def limit_memory(size: int) -> None:
    """Makes an allocation fail that would bring this process's private memory beyond this many bytes."""
    import resource

    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    resource.setrlimit(resource.RLIMIT_DATA, (size, hard))


def trim() -> None:
    """Gives all freed memory back now."""
    gc.collect()
    if (malloc_trim := _libc("malloc_trim")) is not None:
        malloc_trim(0)


def keep_freed_memory() -> bool:
    """Has the C library keep freed blocks below 2 GiB for the next allocation. Returns whether it can (glibc)."""
    return _set_thresholds(_NEVER, _NEVER)


def return_freed_memory() -> bool:
    """Has the C library give freed blocks of 64 KiB and more back at once, so that resident memory is what is held."""
    return _set_thresholds(_RETURNED, _RETURNED)


def _set_thresholds(mmap: int, trim: int) -> bool:
    mallopt = _libc("mallopt")
    return mallopt is not None and all((mallopt(_M_MMAP_THRESHOLD, mmap), mallopt(_M_TRIM_THRESHOLD, trim)))


def _libc(name: str) -> Any:
    """A function of glibc, or None with another C library."""
    return getattr(ctypes.CDLL(None), name, None) if sys.platform.startswith("linux") else None
