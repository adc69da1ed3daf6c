"""A training step with a GSE update against an ordinary one, layer by layer."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from benchmarks import report
from benchmarks.options import Updates
from benchmarks.shapes import SHAPES, Shape
from benchmarks.timing import Timing
from sparsekern.growth import GSE
from sparsekern.growth.samplers import SAMPLERS
from sparsekern.nn import SparseConv2d, SparseLinear

# An update, the step after it, which finds a topology that it has not met, and an ordinary one.
KINDS = ("update", "next", "ordinary")


def measure_all(options: Updates) -> list[dict[str, Any]]:
    """A result for each layer that is asked for, sparsity and sampler."""
    return [
        {"layer": shape.name, "sparsity": sparsity, "sampler": sampler, **measure(shape, sparsity, sampler, options)}
        for shape in SHAPES
        if not shape.is_large and options.layer in shape.name
        for sparsity in options.sparsity
        for sampler in SAMPLERS
    ]


def measure(shape: Shape, sparsity: float, sampler: str, options: Updates) -> dict[str, Any]:
    """{"update", "next", "ordinary"}: the time of such steps: forward, backward, optimizer and Growth.step."""
    clock: Callable[[], float] = time.process_time if options.cpu_time else time.perf_counter
    torch.manual_seed(options.seed)
    with torch.device("meta"):
        dense = shape.make()
    layer = sparse_layer(dense, 1 - sparsity / 100)
    optimizer = torch.optim.Adam(layer.parameters())
    growth = GSE(layer, optimizer, sampler=sampler, interval=len(KINDS), end=2**40)
    seconds: dict[str, list[float]] = {kind: [] for kind in KINDS}
    x = shape.sample(dense).requires_grad_()
    grad = torch.randn_like(layer(x).detach())
    for index in range(len(KINDS) * (options.repeats + 1)):  # the first of each kind are a warm-up
        x.grad = None
        optimizer.zero_grad()
        began = clock()
        layer(x).backward(grad)
        optimizer.step()
        updated = bool(growth.step())
        took = clock() - began
        kind = "update" if updated else "next" if index % len(KINDS) == 0 else "ordinary"
        if index >= len(KINDS):
            seconds[kind].append(took)
    return {kind: Timing.of(values).as_dict() for kind, values in seconds.items()}


def sparse_layer(dense: nn.Linear | nn.Conv2d, density: float) -> SparseLinear | SparseConv2d:
    if isinstance(dense, nn.Linear):
        return SparseLinear(dense.in_features, dense.out_features, density=density)
    sizes = dense.in_channels, dense.out_channels, dense.kernel_size
    return SparseConv2d(*sizes, stride=dense.stride, padding=dense.padding, density=density)


def table(results: list[dict[str, Any]]) -> str:
    """A row for each layer and sparsity: the ordinary step, and how many of it one with an update takes."""
    rows: dict[tuple[str, float], list[str]] = {}
    for result in results:
        ordinary, updated, after = (result[kind]["median"] for kind in ("ordinary", "update", "next"))
        key = result["layer"], result["sparsity"]
        row = rows.setdefault(key, [result["layer"], f"{result['sparsity']:g}%", f"{ordinary:.2f}"])
        row.append(f"{updated / ordinary:.2f} ({(updated + after) / ordinary - 1:.2f})")
    samplers = list(dict.fromkeys(result["sampler"] for result in results))
    return report.table(["layer", "sparsity", "ordinary step, ms", *samplers], list(rows.values()))
