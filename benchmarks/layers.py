"""Single layers' training step, forward and both gradients, in several libraries."""

from __future__ import annotations

import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks import ceilings, layers_charts, layers_page, report
from benchmarks.libraries import Peer, available, dense, ours
from benchmarks.libraries.candidate import Candidate, largest_error
from benchmarks.options import Layers
from benchmarks.shapes import SHAPES, Shape
from benchmarks.speed import break_evens
from benchmarks.timing import Timing, interleaved

# Of the largest element of the same result; sums of some thousand products, and for bfloat16 one rounding of each sum.
TOLERANCE = {"float32": 1e-4, "bfloat16": 1.5e-2}


@dataclass
class Entry:
    """A candidate that may be timed, at one sparsity (None: dense)."""

    candidate: Candidate
    sparsity: float | None
    edges: int
    error: float

    @property
    def label(self) -> str:
        return self.candidate.name if self.sparsity is None else f"{self.candidate.name} at {self.sparsity:g}%"


@dataclass
class Admission:
    """Compares candidates with dense and lets those in that agree and take no longer than `longest` seconds a call."""

    tolerance: float
    longest: float
    entries: list[Entry] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    too_slow: set[str] = field(default_factory=set)

    def admit(self, entry: Entry, x: Tensor, grad: Tensor, expected: tuple[Tensor, ...], is_peer: bool = False) -> None:
        if entry.candidate.name in self.too_slow:
            return
        try:
            entry.error = largest_error(entry.candidate.results(x, grad), expected)
        except RuntimeError as error:
            self.notes.append(f"{entry.label}: failed, not timed ({str(error).splitlines()[0]})")
            return
        if entry.error > self.tolerance:
            self.notes.append(f"{entry.label}: wrong by {entry.error:.1e} of the largest element, not timed")
        elif is_peer and (took := one_call(entry.candidate, x, grad)) > self.longest:
            self.notes.append(f"{entry.label}: one call takes {took:.1f} s, not timed there and at lower sparsities")
            self.too_slow.add(entry.candidate.name)
        else:
            self.entries.append(entry)


def run(options: Layers) -> None:
    torch.set_num_threads(options.threads)
    shapes = [shape for shape in chosen_shapes(options) if options.layer in shape.name]
    if not shapes:
        names = "; ".join(shape.name for shape in SHAPES)
        raise ValueError(f"--layer is {options.layer!r}, which no layer's name contains: {names}")
    if options.rounds < 2:
        raise ValueError(f"--rounds is {options.rounds}; expected at least 2")
    if bad := [value for value in options.sparsity if not 0 < value < 100]:
        raise ValueError(f"--sparsity has {bad[0]:g}; expected percentages between 0 and 100")
    # The peers have float32 kernels only.
    peers, skipped = available(options.peers if options.dtype == "float32" else ())
    result = report.begin("layers", f"python -m benchmarks layers --threads {options.threads}", options.seed)
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


def chosen_shapes(options: Layers) -> Iterator[Shape]:
    for shape in SHAPES:
        yield shape if options.batch is None else shape.with_batch(options.batch)


def result_name(options: Layers) -> str:
    dtype = "" if options.dtype == "float32" else f"_{options.dtype}"
    batch = "" if options.batch is None else f"_batch_{options.batch}"
    return f"layers_{options.threads}_threads{dtype}{batch}"


def measure(shape: Shape, options: Layers, peers: dict[str, Peer]) -> dict[str, Any]:
    """One layer: every candidate at every sparsity, and dense, timed in the same rounds."""
    torch.manual_seed(options.seed)
    dtype = getattr(torch, options.dtype)
    layer = shape.make().to(dtype)
    sparsities = sorted((s for s in options.sparsity if s >= shape.lowest), reverse=True)
    admission = Admission(TOLERANCE[options.dtype], options.longest)
    if len(sparsities) < len(set(options.sparsity)):
        admission.notes.append(f"sparsities below {shape.lowest:g}% are left out: in all libraries, too much memory")
    # From the sparsest on, so that a library which is too slow is found out by its fastest call.
    for sparsity in sparsities:
        print(f"checking {shape.name} at {sparsity:g}%", file=sys.stderr, flush=True)
        mask = torch.rand(layer.weight.shape) < 1 - sparsity / 100
        edges = int(mask.sum())
        x = shape.sample(layer).to(dtype)
        expected, grad = reference(layer, mask, x)
        if not admission.entries:  # dense takes the same time whatever is zero
            for candidate in dense.layers(layer, mask):
                admission.admit(Entry(candidate, None, mask.numel(), 0), x, grad, expected)
        admission.admit(Entry(ours.layer(layer, mask), sparsity, edges, 0), x, grad, expected)
        for peer in peers.values():
            if peer.linear_only and not isinstance(layer, nn.Linear):
                continue
            for candidate in peer.make(layer, mask):
                admission.admit(Entry(candidate, sparsity, edges, 0), x, grad, expected, is_peer=True)
    print(f"timing {len(admission.entries)} candidates", file=sys.stderr, flush=True)
    timings = interleaved(
        lambda _: (shape.sample(layer).to(dtype), torch.randn(grad.shape).to(dtype)),
        {
            entry.label: lambda inputs, candidate=entry.candidate: candidate.prepare_step(*inputs)
            for entry in admission.entries
        },
        options.rounds,
    )
    rows = [row(entry, timings[entry.label], x, grad, layer) for entry in admission.entries]
    return {
        "layer": shape.name,
        "kind": "linear" if isinstance(layer, nn.Linear) else "conv",
        "results": rows,
        "break_even": {library: even.as_dict() for library, even in break_evens(rows).items()},
        "notes": admission.notes,
    }


def reference(layer: nn.Linear | nn.Conv2d, mask: Tensor, x: Tensor) -> tuple[tuple[Tensor, ...], Tensor]:
    """(dense torch's results in float32 for a layer with zeros outside the mask, the output gradient they are for)."""
    candidate = dense.layers(layer, mask, torch.float32)[0]
    with torch.no_grad():
        shape = candidate.forward(x.float()).shape
    grad = torch.randn(shape).to(x.dtype)
    return candidate.results(x.float(), grad.float()), grad


def one_call(candidate: Candidate, x: Tensor, grad: Tensor) -> float:
    """Seconds."""
    step = candidate.prepare_step(x, grad)
    began = time.perf_counter()
    step()
    return time.perf_counter() - began


def row(entry: Entry, timing: Timing, x: Tensor, grad: Tensor, layer: nn.Linear | nn.Conv2d) -> dict[str, Any]:
    """One candidate's result. The arithmetic and the traffic are the least that a step needs: see `intensity`."""
    positions = grad.numel() // layer.weight.shape[0]  # at which each edge is used
    operations = 6 * entry.edges * positions
    return {
        "candidate": entry.candidate.name,
        "library": "dense" if entry.sparsity is None else entry.candidate.library,
        "sparsity": 0.0 if entry.sparsity is None else entry.sparsity,
        "edges": entry.edges,
        "max_relative_error": entry.error,
        "ms": timing.as_dict(),
        "gflops": round(operations / timing.median / 1e6, 4),
        "intensity": round(operations / traffic(x, grad, entry.edges), 3),
    }


def traffic(x: Tensor, grad: Tensor, edges: int) -> int:
    """Bytes that a step must move when every tensor is read or written once in forward and once in backward.

    Forward reads the input and writes the output, backward reads the input and the output's gradient and writes the
    input's. Both read values and indices (4 bytes), and backward writes the values' gradient.
    """
    size = x.element_size()
    return size * (3 * x.numel() + 2 * grad.numel()) + edges * (3 * size + 2 * 4)
