"""Memory that this process holds at a moment, and the most that it has held."""

from __future__ import annotations

import sys
from pathlib import Path

import torch

STATUS = Path("/proc/self/status")


def memory_now(device: torch.device) -> dict[str, int | None]:
    """Bytes: resident and its peak, those of tensors on a CUDA device and their peak; None where nothing tells."""
    on_gpu = device.type == "cuda"
    resident, peak = resident_memory()
    return {
        "resident": resident,
        "resident_peak": peak,
        "device": torch.cuda.memory_allocated(device) if on_gpu else None,
        "device_peak": torch.cuda.max_memory_allocated(device) if on_gpu else None,
    }


def resident_memory(status: Path = STATUS) -> tuple[int | None, int | None]:
    """(bytes in memory now, the most there ever were). Linux tells both, other Unixes the second alone."""
    try:
        lines = status.read_text().splitlines()
    except OSError:
        return None, peak_of_usage()
    found = {line.split()[0]: int(line.split()[1]) << 10 for line in lines if line.startswith(("VmRSS:", "VmHWM:"))}
    return found.get("VmRSS:"), found.get("VmHWM:")


def peak_of_usage() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    usage = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return usage if sys.platform == "darwin" else usage << 10
