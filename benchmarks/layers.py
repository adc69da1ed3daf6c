"""Single layers' training step, forward and both gradients, in several libraries."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import ceilings, conditions, layers_charts, layers_page, process, report
from benchmarks.admission import DENSE, TOLERANCE, Admission, Entry, Problem, at
from benchmarks.libraries import Peer, available, dense, ours
from benchmarks.options import Layers
from benchmarks.shapes import SHAPES, Shape
from benchmarks.speed import break_evens
from benchmarks.timing import Timing, interleaved


def run(options: Layers) -> None:
    torch.set_num_threads(options.threads)
    if options.rounds < 2:
        raise ValueError(f"--rounds is {options.rounds}; expected at least 2")
    if bad := [value for value in options.sparsity or (0,) if not 0 < value < 100]:
        raise ValueError(f"--sparsity has {bad[0]:g}; expected percentages between 0 and 100")
    shapes = chosen_shapes(options)
    # The peers have float32 kernels only.
    peers, skipped = available(options.peers if options.dtype == "float32" else ())
    result = report.begin("layers", options)
    result |= {"dtype": options.dtype, "rounds": options.rounds, "ceilings": None, "notes": skipped, "layers": []}
    try:
        result["ceilings"] = ceilings.measure(options.threads, result["machine"]["caches"])
    except RuntimeError as error:
        result["notes"].append(str(error))
    for line in result["notes"]:
        print(line, file=sys.stderr, flush=True)
    name = result_name(options)
    for shape in shapes:
        result["layers"].append(measure(shape, options, peers))
        report.save(result, layers_page.page(result, {}), options.output, name)  # what there is, should it be stopped
    charts = layers_charts.draw(result, options.output, name)
    report.write(result, layers_page.page(result, charts), options.output, name)


def chosen_shapes(options: Layers) -> list[Shape]:
    """Those that are asked for and have a sparsity to be measured at."""
    every = [shape if options.batch is None else shape.with_batch(options.batch) for shape in SHAPES]
    chosen = [shape for shape in every if options.layer in shape.name and max(options.sparsity) >= shape.lowest]
    if not chosen:
        names = "; ".join(shape.name for shape in every)
        raise ValueError(f"--layer is {options.layer!r}, which no layer's name contains at these sparsities: {names}")
    return chosen


def result_name(options: Layers) -> str:
    dtype = "" if options.dtype == "float32" else f"_{options.dtype}"
    batch = "" if options.batch is None else f"_batch_{options.batch}"
    return f"layers_{options.threads}_threads{dtype}{batch}"


def measure(shape: Shape, options: Layers, peers: dict[str, Peer]) -> dict[str, Any]:
    """One layer: every candidate at every sparsity, and dense, timed in the same rounds."""
    torch.manual_seed(options.seed)
    layer = shape.make().to(getattr(torch, options.dtype))
    admission = Admission(TOLERANCE[options.dtype], options.longest)
    # From the sparsest on, so that a library which is too slow is found out by its fastest call.
    sparsities = sorted((sparsity for sparsity in options.sparsity if sparsity >= shape.lowest), reverse=True)
    if len(sparsities) < len(options.sparsity):
        admission.notes.append(f"Sparsities below {shape.lowest:g}% would take too much memory")
    groups = [sparsities]
    if shape.is_large:
        groups = [[sparsity] for sparsity in sparsities]
        admission.notes.append("One sparsity at a time, for memory; dense in the rounds of the first")
    rows: list[dict[str, Any]] = []
    others: list[dict[str, Any]] = []
    for group in groups:
        more, under_others = measure_together(shape, layer, group, options, peers, admission, with_dense=not rows)
        rows += more
        others += under_others
        process.trim()
    return {
        "layer": shape.name,
        "kind": "linear" if isinstance(layer, nn.Linear) else "conv",
        "results": rows,
        "others": others,
        "break_even": {library: even.as_dict() for library, even in break_evens(rows).items()},
        "notes": admission.notes,
    }


def measure_together(
    shape: Shape,
    layer: nn.Linear | nn.Conv2d,
    sparsities: Sequence[float],
    options: Layers,
    peers: dict[str, Peer],
    admission: Admission,
    with_dense: bool,
) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The results of all that is admitted, timed in the same rounds; and our layer's under other conditions."""
    entries: list[Entry] = []
    own = conditions.own(options)
    steps: dict[str, Any] = {}
    others: dict[str, dict[str, Any]] = {}
    for sparsity in sparsities:
        print(f"checking {shape.name} at {sparsity:g}%", file=sys.stderr, flush=True)
        torch.set_num_threads(options.threads)
        problem = Problem.draw(shape, layer, sparsity)
        if with_dense and not entries:  # dense takes the same time whatever is zero
            entries += admission.admit(problem, DENSE, dense.layers)
            if not entries:
                raise RuntimeError(f"{shape.name}: {admission.notes[-1]}")
        admitted = admission.admit(problem, ours.NAME, lambda *dense_and_mask: [ours.layer(*dense_and_mask)])
        for condition in conditions.others(options) if admitted else ():
            label = f"{at(ours.NAME, sparsity)}, {condition.name}"
            steps[label] = condition.step(condition.layer(problem))
            others[label] = {"condition": condition.name, "sparsity": sparsity}
        entries += admitted
        for name, peer in peers.items():
            if isinstance(layer, nn.Linear) or not peer.linear_only:
                entries += admission.admit(problem, name, peer.make, is_peer=True)
    if not entries:
        return [], []
    steps |= {entry.label: own.step(entry.candidate) for entry in entries}
    print(f"timing {len(steps)} candidates", file=sys.stderr, flush=True)
    grad = problem.grad
    timings = interleaved(
        lambda _: (shape.sample(layer).to(grad.dtype), torch.randn(grad.shape).to(grad.dtype)), steps, options.rounds
    )
    return (
        [row(entry, timings[entry.label], problem) for entry in entries],
        [{**each, "ms": timings[label].as_dict()} for label, each in others.items()],
    )


def row(entry: Entry, timing: Timing, problem: Problem) -> dict[str, Any]:
    """One candidate's result. The arithmetic is 2 operations an edge and position in each of the three products."""
    positions = problem.grad.numel() // problem.layer.weight.shape[0]  # at which each edge is used
    operations = 6 * entry.edges * positions
    return {
        "candidate": entry.candidate.name,
        "library": DENSE if entry.sparsity is None else entry.candidate.library,
        "sparsity": entry.sparsity or 0.0,
        "edges": entry.edges,
        "max_relative_error": entry.error,
        "ms": timing.as_dict(),
        "gflops": round(operations / timing.median / 1e6, 4),
        "intensity": round(operations / traffic(problem.x, problem.grad, entry.edges), 3),
    }


def traffic(x: Tensor, grad: Tensor, edges: int) -> int:
    """Bytes that a step must move when every tensor is read or written once in forward and once in backward.

    Forward reads the input and writes the output, backward reads the input and the output's gradient and writes the
    input's. Both read values and indices (4 bytes), and backward writes the values' gradient.
    """
    size = x.element_size()
    return size * (3 * x.numel() + 2 * grad.numel()) + edges * (3 * size + 2 * 4)
