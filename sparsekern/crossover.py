"""Where a dense layer measured faster than a sparse one: a table of measurements, and the layers that it is about.

A crossover is the sparsity from which on a layer's whole training step, both gradients included, was faster sparse than
with the fastest dense of the same machine. The table is made from the benchmarks' result files by
`python -m benchmarks crossover`. A layer is held against the measured one of its kind whose size is nearest.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from sparsekern import _C
from sparsekern.counting import LayerCount

NEAR = 4.0  # times as many rows or columns, or as few: nothing is said about layers that are farther from all measured
KINDS = ("SparseLinear", "SparseConv2d")
NAMED = 4  # layers of a line that are named one by one


@dataclass(frozen=True)
class Crossover:
    """One measured layer.

    Attributes:
        device: "cpu" or "cuda".
        machine: the processor's or GPU's name.
        kernels: the CPU kernels' instruction set, or the GPU backend.
        dtype: of the activations.
        against: what dense computed in: the dtype, or "TF32".
        layer: the measured layer, in words.
        kernel: pixels a side of a convolution's kernel; 0 for a linear layer.
        rows, columns: of the weight's matrix.
        bound: "at": faster from `sparsity` on; "below": at all that was measured, from `sparsity` on; "above": at none,
            up to `sparsity`.
        sparsity: in percent.
        source: the result file, with its commit and date.
    """

    device: str
    machine: str
    kernels: str
    dtype: str
    against: str
    layer: str
    kernel: int
    rows: int
    columns: int
    bound: str
    sparsity: float
    source: str

    def dense_is_faster(self, density: float) -> bool:
        """Whether dense measured faster at this density; False also where that was not measured."""
        sparsity = 100 * (1 - density)
        return sparsity <= self.sparsity if self.bound == "above" else self.bound == "at" and sparsity < self.sparsity

    @property
    def group(self) -> str:
        """The machine and the arithmetic, in words."""
        against = "" if self.against == self.dtype else f" against {self.against}"
        return f"{self.machine}, {self.kernels} kernels, {self.dtype}{against}"


@cache
def measured() -> tuple[Crossover, ...]:
    """All of the package's table."""
    text = resources.files("sparsekern").joinpath("crossover.json").read_text()
    return tuple(Crossover(**entry) for entry in json.loads(text)["crossovers"])


def nearest(table: Iterable[Crossover], kernel: int, rows: int, columns: int) -> Crossover | None:
    """The measured layer of the same kernel size whose rows and columns are nearest, or None where none is near."""

    def distance(entry: Crossover) -> float:
        return max(abs(math.log(entry.rows / rows)), abs(math.log(entry.columns / columns)))

    best = min((entry for entry in table if entry.kernel == kernel), key=distance, default=None)
    return best if best is not None and distance(best) <= math.log(NEAR) + 1e-9 else None


def notes(layers: Sequence[LayerCount], table: Sequence[Crossover] | None = None) -> list[str]:
    """Lines on which sparse layers dense measured faster for: on this machine's CPU kernels, and on each GPU measured.

    Args:
        layers: rows of a :class:`~sparsekern.counting.ModelCount`.
        table: by default :func:`measured`.
    """
    sparse = [layer for layer in layers if layer.kind in KINDS and layer.dense_weights]
    if not sparse:
        return []
    table = measured() if table is None else table
    lines = []
    shown = [entry for entry in table if entry.device != "cpu" or entry.kernels == _C.isa()]
    for group in dict.fromkeys(entry.group for entry in shown):
        lines.append(_line(group, [entry for entry in shown if entry.group == group], sparse))
    for device, name in (("cpu", f"{_C.isa()} kernels"), ("cuda", "a GPU")):
        if not any(entry.device == device for entry in shown):
            lines.append(f"  {name}: not measured")
    return ["Layers for which dense measured faster (docs/crossover.md), by the nearest measured layer:", *lines]


def _line(group: str, entries: Sequence[Crossover], sparse: Sequence[LayerCount]) -> str:
    found: dict[Crossover, list[str]] = {}
    far = 0
    for layer in sparse:
        kernel = layer.shape[-1] if len(layer.shape) == 4 else 0
        near = nearest(entries, kernel, layer.shape[0], math.prod(layer.shape[1:]))
        if near is None:
            far += 1
        elif near.dense_is_faster(layer.weights / layer.dense_weights):
            found.setdefault(near, []).append(layer.name)
    unknown = f"; nothing like {far} of them was measured" if far else ""
    lines = [f"  {group}: {sum(map(len, found.values()))} of {len(sparse)}{unknown}"]
    for near, names in found.items():
        where = (
            f"not up to {near.sparsity:g}% sparse" if near.bound == "above" else f"from {near.sparsity:g}% sparse on"
        )
        more = f" and {len(names) - NAMED} more" if len(names) > NAMED else ""
        lines.append(f"    like {near.layer}, faster sparse {where}: {', '.join(names[:NAMED])}{more}")
    return "\n".join(lines)
