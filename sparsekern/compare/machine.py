"""Cores and memory that this process may use, and what other processes use. Linux tells; elsewhere cores alone."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

SYSTEM = Path("/")


def cores_at_hand(root: Path = SYSTEM) -> int:
    """Cores of this process: its affinity, or fewer where a control group's quota gives it less time than that."""
    cores = float(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
    for group in control_groups(root, "cpu"):
        match words(group / "cpu.max"):  # version 2: quota and period in microseconds
            case [quota, period] if quota.isdecimal():
                cores = min(cores, int(quota) / int(period))
        quota_v1, period_v1 = number(group / "cpu.cfs_quota_us"), number(group / "cpu.cfs_period_us")
        if quota_v1 and period_v1:
            cores = min(cores, quota_v1 / period_v1)
    return max(1, int(cores))


def memory_at_hand(root: Path = SYSTEM) -> int | None:
    """Bytes that can be had without swapping and within the control groups' limits; None where nothing tells."""
    available = meminfo(root, "MemAvailable")
    if available is None:
        return None
    for group in control_groups(root, "memory"):
        for limit_name, use_name, cache_name in (
            ("memory.max", "memory.current", "inactive_file"),
            ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
        ):
            limit, use = number(group / limit_name), number(group / use_name)
            if limit is not None and use is not None:
                cache = field(group / "memory.stat", cache_name) or 0
                available = min(available, limit - use + cache)
    return max(0, available)


def control_groups(root: Path, controller: str) -> Iterator[Path]:
    """Folders of the control groups that this process is in, inner to outer, of version 2 and of version 1."""
    for line in lines(root / "proc/self/cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers and controller not in controllers.split(","):
            continue
        top = root / "sys/fs/cgroup" / (controller if controllers else "")
        inner = top / path.lstrip("/")
        for folder in (inner, *inner.parents):
            yield folder
            if folder == top:
                break


def resident_memory(process: int, root: Path = SYSTEM) -> tuple[int, int]:
    """(bytes of a process and its descendants in memory now, sum of the most that each ever had)."""
    now, peak = 0, 0
    for member in family(process, root):
        status = root / f"proc/{member}/status"
        now += (field(status, "VmRSS:") or 0) << 10
        peak += (field(status, "VmHWM:") or 0) << 10
    return now, peak


def family(process: int, root: Path) -> Iterator[int]:
    yield process
    for task in (root / f"proc/{process}/task").glob("*/children"):
        for child in words(task):
            yield from family(int(child), root)


def meminfo(root: Path, name: str) -> int | None:
    kibibytes = field(root / "proc/meminfo", f"{name}:")
    return None if kibibytes is None else kibibytes << 10


def field(path: Path, name: str) -> int | None:
    """The number after `name` in a file of a name and a number a line."""
    return next((int(line.split()[1]) for line in lines(path) if line.split()[:1] == [name]), None)


def number(path: Path) -> int | None:
    """The number that a file consists of; None for "max", -1 and files that are not there."""
    text = "".join(words(path))
    return int(text) if text.isdecimal() else None


def words(path: Path) -> list[str]:
    return " ".join(lines(path)).split()


def lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:  # not there, or of a process that has ended
        return []
