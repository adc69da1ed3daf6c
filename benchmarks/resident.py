"""Resident memory of this process, now and at its peak (Linux)."""

from __future__ import annotations

import re
from pathlib import Path

from benchmarks import process

_STATUS, _CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def now() -> int:
    """Bytes."""
    return _field("VmRSS")


def peak() -> int:
    """Bytes, the most since the process began or since `reset_peak`."""
    return _field("VmHWM")


def reset_peak() -> None:
    """Gives freed memory back and has the peak counted from now on."""
    process.trim()
    _CLEAR_REFS.write_text("5")


def _field(name: str) -> int:
    return int(re.search(rf"^{name}:\s+(\d+) kB$", _STATUS.read_text(), re.MULTILINE)[1]) << 10
