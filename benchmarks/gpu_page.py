"""Writes docs/gpu-measured.md from the result files of `make gpu`."""

from __future__ import annotations

from benchmarks.gpu.page import page
from benchmarks.options import GpuPage


def run(options: GpuPage) -> None:
    options.file.write_text(page(options.results))
    print(f"written to {options.file}")
