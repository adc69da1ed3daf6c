"""The machine's ceilings, measured: what no kernel can be faster than."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from benchmarks import report

SOURCE = Path(__file__).with_name("ceilings.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++17", "-shared", "-fPIC", "-pthread")
SECONDS = 0.2  # of each measurement
FALLBACK = {"L1": 32 << 10, "L2": 1 << 20, "L3": 16 << 20}


def measure(threads: int, caches: dict[str, int], seconds: float = SECONDS) -> dict[str, Any]:
    """One entry for each number of threads, 1 and `threads`.

    Each has `threads`, `fma_gflops`, `load_fma_gflops` (one operand of each multiply-add loaded, by level: "L1",
    "L2", "L3", "DRAM"), `read_gbps` (the same as bytes) and `copy_gbps` (from and to DRAM).

    Args:
        threads: of the second entry.
        caches: bytes by level; modest sizes stand in for those that are missing.
        seconds: of each measurement.

    Raises:
        RuntimeError: there is no C++ compiler, or it fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        library = compiled(Path(folder))
        entries = [_measure(library, count, {**FALLBACK, **caches}, seconds) for count in sorted({1, threads})]
        return {"vector_bytes": library.vector_bytes(), "entries": entries}


def compiled(folder: Path) -> ctypes.CDLL:
    """The library of ceilings.cpp, made by the system's C++ compiler (the variable CXX, or c++, g++, clang++)."""
    names = (os.environ.get("CXX", ""), "c++", "g++", "clang++")
    compiler = next((name for name in names if name and shutil.which(name)), None)
    if compiler is None:
        raise RuntimeError("no C++ compiler, so the machine's ceilings are not measured")
    target = folder / "ceilings.so"
    result = subprocess.run([compiler, *FLAGS, str(SOURCE), "-o", str(target)], capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{compiler} failed, so the machine's ceilings are not measured: {result.stderr.strip()}")
    library = ctypes.CDLL(str(target))
    for name, block in (("fma_rate", []), ("load_fma_rate", [ctypes.c_int64]), ("copy_rate", [ctypes.c_int64])):
        function = getattr(library, name)
        function.restype, function.argtypes = ctypes.c_double, [ctypes.c_int, ctypes.c_double, *block]
    return library


def _measure(library: ctypes.CDLL, threads: int, caches: dict[str, int], seconds: float) -> dict[str, Any]:
    # Blocks that surely lie in their level: half of a core's own cache, half of its share of the common one.
    blocks = {"L1": caches["L1"] // 2, "L2": caches["L2"] // 2, "L3": caches["L3"] // 2 // threads}
    blocks["DRAM"] = max(256 << 20, 8 * caches["L3"]) // threads  # together far beyond the last cache
    loads = {level: library.load_fma_rate(threads, seconds, size) / 1e9 for level, size in blocks.items()}
    return {
        "threads": threads,
        "fma_gflops": round(library.fma_rate(threads, seconds) / 1e9, 1),
        "load_fma_gflops": {level: round(value, 1) for level, value in loads.items()},
        # A multiply-add is two operations and reads four bytes.
        "read_gbps": {level: round(2 * value, 1) for level, value in loads.items()},
        "copy_gbps": round(library.copy_rate(threads, seconds, blocks["DRAM"]) / 1e9, 1),
    }


def table(ceilings: dict[str, Any]) -> str:
    """Markdown: a row for each number of threads."""
    levels = list(ceilings["entries"][0]["load_fma_gflops"])
    header = [
        "threads",
        "multiply-adds, GFLOP/s",
        *(f"one load from {level} each, GFLOP/s" for level in levels),
        "DRAM read, GB/s",
        "DRAM copy, GB/s",
    ]
    rows = [
        [
            str(entry["threads"]),
            f"{entry['fma_gflops']:.0f}",
            *(f"{entry['load_fma_gflops'][level]:.0f}" for level in levels),
            f"{entry['read_gbps']['DRAM']:.1f}",
            f"{entry['copy_gbps']:.1f}",
        ]
        for entry in ceilings["entries"]
    ]
    return report.table(header, rows)
