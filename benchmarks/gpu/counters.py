"""The GPU's own counters of sparsekern's kernels, read by ncu, beside what the roofline predicts.

The roofline counts useful multiply-adds a clock and multiprocessor: an edge reads one activation a token, so a kernel
that gathers from shared memory, whose banks give 128 bytes a clock, makes at most 128 / size of them, and one that
gathers from the second-level cache as many as that gives bytes.
"""

from __future__ import annotations

import contextlib
import csv
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from typing import Any

import torch

from benchmarks.gpu import ways
from benchmarks.gpu.cases import PRODUCTS
from benchmarks.gpu.clock import Clock
from benchmarks.gpu.options import Gpu
from benchmarks.gpu.profiled import SEPARATOR
from benchmarks.options import ROOT

# name here: ncu's name
METRICS = {
    "duration, ns": "gpu__time_duration.sum",
    "clocks": "sm__cycles_elapsed.max",
    "shared memory wavefronts": "l1tex__data_pipe_lsu_wavefronts_mem_shared.sum",
    "shared memory, % of peak": "l1tex__data_pipe_lsu_wavefronts_mem_shared.avg.pct_of_peak_sustained_elapsed",
    "L1 data pipe, % of peak": "l1tex__data_pipe_lsu_wavefronts.avg.pct_of_peak_sustained_elapsed",
    "L1 hits, %": "l1tex__t_sector_hit_rate.pct",
    "L2 hits, %": "lts__t_sector_hit_rate.pct",
    "L2, % of peak": "lts__t_sectors.avg.pct_of_peak_sustained_elapsed",
    "DRAM, % of peak": "dram__throughput.avg.pct_of_peak_sustained_elapsed",
    "instructions issued, % of peak": "sm__inst_issued.avg.pct_of_peak_sustained_elapsed",
}
SHARED_BYTES = 128  # a clock and multiprocessor
SPARSITY = 98.0
SECONDS = 60.0  # of one process under ncu
REFUSED = re.compile(r"ERR_NVGPUCTRPERM|permission", re.IGNORECASE)
UNKNOWN = re.compile(r"Failed to find metric ([\w.]+)")


def measure(options: Gpu, device: torch.device, clock: Clock, deadline: float) -> Iterator[dict[str, Any]]:
    """One entry a backend and precision: {"backend", "precision", "products"}, or why ncu does not answer."""
    # The CUDA kernels first: what the roofline predicts is about them.
    for backend in sorted(ways.serving(device, options.backends), key=lambda name: name != "cuda"):
        if backend == "reference":  # has no kernels of its own
            continue
        for precision in ("bfloat16", "float32"):
            if ways.served_by(backend, "linear", ways.DTYPES[precision], device) != backend:
                continue
            entry = {"backend": backend, "precision": precision, "sparsity": SPARSITY}
            left = deadline - time.monotonic()
            if left <= 0:
                yield entry | {"failed": "not measured: the time was over"}
                continue
            yield entry | profile(backend, precision, options, device, min(left, SECONDS))


def profile(backend: str, precision: str, options: Gpu, device: torch.device, seconds: float) -> dict[str, Any]:
    target = [sys.executable, "-m", "benchmarks.gpu.profiled", backend, precision, device.type, str(SPARSITY)]
    target.append("smoke" if options.smoke else "whole")
    metrics = dict(METRICS)
    for _ in range(2):
        on_gpu = device.type == "cuda"
        if on_gpu and shutil.which("ncu") is None:
            return {"failed": "ncu is not installed"}
        # The clocks stay as they are: a machine's settings are not this program's.
        ncu = ["ncu", "--profile-from-start", "off", "--clock-control", "none", "--csv", "--page", "raw"]
        command = [*ncu, "--metrics", ",".join(metrics.values()), *target] if on_gpu else target
        try:
            status, text = output_of(command, seconds)
        except subprocess.TimeoutExpired:
            return {"failed": f"stopped after {seconds:.0f} s"}
        if unknown := UNKNOWN.findall(text):
            metrics = {name: metric for name, metric in metrics.items() if metric not in unknown}
            continue
        if REFUSED.search(text) and '"ID"' not in text:
            return {"failed": "ncu may not read this GPU's counters (ERR_NVGPUCTRPERM)"}
        if not on_gpu and status == 0:
            return {"failed": "only a GPU has counters; the kernels ran"}
        try:
            return summary(text, metrics, precision, device)
        except (ValueError, KeyError, IndexError, TypeError, ZeroDivisionError) as error:
            last = (text.strip().splitlines() or ["no output"])[-1]
            return {"failed": f"ncu's answer cannot be read ({error}); exit status {status}: {last[:200]}"}
    return {"failed": "ncu knows none of the metrics"}


def output_of(command: list[str], seconds: float) -> tuple[int, str]:
    """A command's exit status and all that it wrote, what it started included: that outlives ncu, and keeps its pipe.

    Raises:
        subprocess.TimeoutExpired: it was stopped.
    """
    pipe = subprocess.PIPE
    with subprocess.Popen(
        command, cwd=ROOT, env=environment(), text=True, stdout=pipe, stderr=subprocess.STDOUT, start_new_session=True
    ) as process:
        try:
            text, _ = process.communicate(timeout=seconds)
        except BaseException:
            with contextlib.suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)
            raise
    return process.returncode, text


def environment() -> dict[str, str]:
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    return {**os.environ, "PYTHONPATH": path}


def summary(text: str, metrics: dict[str, str], precision: str, device: torch.device) -> dict[str, Any]:
    """The kernels of each product; the longest is the one that the roofline is about."""
    found = re.search(r"edges (\d+), tokens (\d+)", text)
    if found is None:
        raise ValueError("the products did not run to their end")
    edges, tokens = int(found[1]), int(found[2])
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 1
    size = ways.DTYPES[precision].itemsize
    products = []
    for product, kernels in zip(PRODUCTS, by_product(kernels_of(text, metrics)), strict=True):
        main = max(kernels, key=lambda kernel: kernel["duration, ns"])
        products.append(
            {
                "product": product,
                "kernels": kernels,
                "multiply-adds a clock and multiprocessor": round(edges * tokens / main["clocks"] / processors, 2),
                "at most from shared memory": SHARED_BYTES / size,
            }
        )
    return {"edges": edges, "tokens": tokens, "products": products}


def kernels_of(text: str, metrics: dict[str, str]) -> list[dict[str, Any]]:
    """{"kernel": its name, each metric's name here: value} of ncu's raw page as CSV, in the order of launches.

    Raises:
        ValueError: there is none.
    """
    lines = text.splitlines()
    start = next((number for number, line in enumerate(lines) if line.startswith('"ID"')), None)
    if start is None:
        raise ValueError("no kernels")
    header, units, *rows = csv.reader(line for line in lines[start:] if line.startswith('"'))
    scales = {"us": 1e3, "usecond": 1e3, "ms": 1e6, "msecond": 1e6, "s": 1e9, "second": 1e9}
    kernels = []
    for row in rows:
        values = dict(zip(header, row, strict=True))
        kernel: dict[str, Any] = {"kernel": values["Kernel Name"]}
        for name, metric in metrics.items():
            value = float(values[metric].replace(",", "")) if values.get(metric, "") not in ("", "n/a") else None
            if name == "duration, ns" and value is not None:
                value *= scales.get(units[header.index(metric)], 1.0)
            kernel[name] = value
        kernels.append(kernel)
    return kernels


def by_product(kernels: list[dict[str, Any]]) -> list[list[dict[str, Any]]]:
    """The kernels between the separators, without these."""
    groups: list[list[dict[str, Any]]] = []
    for kernel in kernels:
        if SEPARATOR in kernel["kernel"]:
            groups.append([])
        elif groups:
            groups[-1].append(kernel)
    return groups
