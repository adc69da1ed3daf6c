"""What the GPU can do at most: dense products, copies, its second-level cache, launches."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from typing import Any

import torch

from benchmarks.gpu.clock import Call, Clock, first_line, is_fatal
from benchmarks.gpu.options import Gpu
from benchmarks.gpu.ways import DTYPES, tensor_cores

REPEATS = 10
LAUNCHES = 1000
L2_SHARE = 4  # the buffer read from the cache is this part of it: surely inside
L2_READS = 64  # times


def measure(options: Gpu, device: torch.device, clock: Clock, deadline: float) -> Iterator[dict[str, Any]]:
    """One entry a ceiling: {"ceiling", "value", "unit"}, or {"ceiling", "failed"}."""
    size = 64 if options.smoke else 8192
    elements = 1 << (12 if options.smoke else 29)
    wanted: dict[str, Callable[[], tuple[float, str]]] = {
        f"dense {precision} product": lambda precision=precision: (matmul(clock, device, precision, size), "TFLOP/s")
        for precision in DTYPES
    }
    wanted["copy"] = lambda: (copy(clock, device, elements), "GB/s")
    wanted["read from the second-level cache"] = lambda: (read_l2(clock, device, options.smoke), "GB/s")
    wanted["launch, one after another"] = lambda: (launch(device, waits=False), "us")
    wanted["launch and wait"] = lambda: (launch(device, waits=True), "us")
    for name, value in wanted.items():
        if time.monotonic() > deadline:
            yield {"ceiling": name, "failed": "not measured: the time was over"}
            continue
        try:
            found, unit = value()
            yield {"ceiling": name, "value": round(found, 3), "unit": unit}
        except Exception as failure:
            if is_fatal(failure):
                raise
            yield {"ceiling": name, "failed": first_line(failure)}


def median_seconds(clock: Clock, call: Call) -> float:
    """Of REPEATS calls, after two that do not count."""
    times = [sum(clock.time(call, 1e-3)[0]) for _ in range(2 + REPEATS)]
    return statistics.median(times[2:])


def matmul(clock: Clock, device: torch.device, precision: str, size: int) -> float:
    """TFLOP/s of a product of two square random matrices: random, for zeros let a GPU clock higher."""
    a, b = torch.randn(2, size, size, device=device, dtype=DTYPES[precision])
    seconds = median_seconds(clock, Call([lambda: a @ b], lambda: tensor_cores(precision == "TF32")))
    return 2 * size**3 / seconds / 1e12


def copy(clock: Clock, device: torch.device, elements: int) -> float:
    """GB/s read and written together."""
    source = torch.rand(elements, device=device)
    target = torch.empty_like(source)
    return 2 * source.nbytes / median_seconds(clock, Call([lambda: target.copy_(source)])) / 1e9


def read_l2(clock: Clock, device: torch.device, smoke: bool) -> float:
    """GB/s of reads past the first-level cache of what the second-level cache holds."""
    if device.type != "cuda":
        raise RuntimeError("only a GPU has it")
    if find_spec("triton") is None:
        raise RuntimeError("triton is not installed, whose kernel reads it")
    from benchmarks.gpu.l2 import read

    cache = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0) or 64 << 20
    source = torch.rand(cache // L2_SHARE // 4, device=device)
    programs = 8 * torch.cuda.get_device_properties(device).multi_processor_count
    times = {}
    # The difference of two numbers of reads: what comes from memory first, and the launch, are in both.
    for reads in (L2_READS, 2 * L2_READS):
        times[reads] = median_seconds(clock, Call([lambda reads=reads: read(source, programs, reads)]))
    return L2_READS * source.nbytes / (times[2 * L2_READS] - times[L2_READS]) / 1e9


def launch(device: torch.device, waits: bool) -> float:
    """Microseconds of the host for the smallest kernel; `waits` for its end each time."""
    x = torch.zeros(1, device=device)
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for count in (LAUNCHES // 10, LAUNCHES):
        synchronize()
        began = time.perf_counter()
        for _ in range(count):
            x.add_(1)
            if waits:
                synchronize()
        synchronize()
        seconds = time.perf_counter() - began
    return seconds / LAUNCHES * 1e6
