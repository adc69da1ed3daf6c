"""Time of one GSE update by the layer's width, and against an ordinary step."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

import torch

from benchmarks import report, update_steps
from benchmarks.options import Updates
from benchmarks.timing import Timing
from sparsekern import tables
from sparsekern.growth import GSE
from sparsekern.growth.samplers import SAMPLERS
from sparsekern.nn import SparseLinear


def run(options: Updates) -> None:
    torch.set_num_threads(options.threads)
    if options.repeats < 2:
        raise ValueError(f"--repeats is {options.repeats}; expected at least 2")
    result = report.begin("updates", options)
    result |= {
        "clock": "cpu" if options.cpu_time else "wall",
        "batch": options.batch,
        "edges_per_row": options.edges,
        "repeats": options.repeats,
        "results": [
            {"sampler": sampler, "width": width, **measure(width, sampler, options)}
            for sampler in SAMPLERS
            for width in sorted(options.widths)
        ],
        "steps": update_steps.measure_all(options),
    }
    report.write(result, page(result), options.output, f"updates_{options.threads}_threads")


def measure(width: int, sampler: str, options: Updates) -> dict[str, Any]:
    """{"backward_ms", "step_ms", "total_ms"}: the update's part inside backward, that in Growth.step, and both."""
    clock: Callable[[], float] = time.process_time if options.cpu_time else time.perf_counter
    torch.manual_seed(options.seed)
    layer = SparseLinear(width, width, bias=False, density=options.edges / width)
    optimizer = torch.optim.Adam(layer.parameters())
    update = GSE(layer, optimizer, sampler=sampler, interval=1, end=2**40)
    x, grad = torch.randn(2, options.batch, width)
    backward, step = [], []
    for _ in range(options.repeats + 1):  # the first is a warm-up
        layer.weight.grad = torch.randn_like(layer.weight)
        optimizer.step()
        start = clock()
        layer.watcher(layer, x, grad)
        middle = clock()
        update.step()
        backward.append(middle - start)
        step.append(clock() - middle)
    total = [sum(both) for both in zip(backward, step, strict=True)]
    parts = {"backward_ms": backward, "step_ms": step, "total_ms": total}
    return {name: Timing.of(seconds[1:]).as_dict() for name, seconds in parts.items()}


def page(result: dict[str, Any]) -> str:
    rows = []
    before: dict[str, Any] = {}
    for row in result["results"]:
        total = row["total_ms"]["median"]
        is_next = before.get("sampler") == row["sampler"]
        ratio = f"{total / before['total_ms']['median']:.2f}" if is_next else ""
        times = [f"{row[name]['median']:.2f}" for name in ("backward_ms", "step_ms", "total_ms")]
        edges = f"{row['width'] * result['edges_per_row']:,}"
        rows.append([row["sampler"], f"{row['width']:,}", edges, *times, ratio])
        before = row
    header = ["sampler", "width", "edges", "in backward, ms", "in Growth.step, ms", "together, ms", "of the row above"]
    paragraphs = [
        "# Time of one GSE update",
        f"Adam, alpha 0.2, one candidate an edge; medians of {result['repeats']} updates, {result['clock']} time.",
        report.where(result),
        "## By width",
        f"A square layer with {result['edges_per_row']} edges a neuron, {result['batch']} samples. In backward, "
        "candidates are drawn and their gradients computed; Growth.step selects and replaces edges and moves weight, "
        "gradient and the optimizer's state.",
        report.table(header, rows),
    ]
    if result["steps"]:
        paragraphs += [
            "## Against an ordinary step",
            "Forward, backward, optimizer and Growth.step: how many ordinary steps one with an update is; in "
            "brackets, with what the step after it takes longer than an ordinary one, because what is kept of a "
            "topology is made when it is first met.",
            update_steps.table(result["steps"]),
        ]
    return tables.page(paragraphs)
