"""Every backend's kernels on small odd shapes against the reference: what compute-sanitizer is given to watch.

`python -m benchmarks.gpu.exercise cuda`; the exit code says whether all results agree.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from benchmarks.gpu import cases, ways
from benchmarks.gpu.cases import Problem
from benchmarks.gpu.layers import OUR_PRECISIONS, expected_results
from benchmarks.gpu.place import device_of
from benchmarks.libraries.candidate import largest_error
from benchmarks.shapes import conv, linear

# Tokens that fill no tile and that fill some; rows and columns that are no multiples of anything.
SHAPES = (linear(1, 30, 7), linear(33, 20, 6), linear(128, 45, 70), conv(3, 5, 7, 9))
SPARSITY = 70.0


def main(arguments: Sequence[str]) -> int:
    (name,) = arguments
    device = device_of(name)
    torch.manual_seed(0)
    failed = 0
    for shape in SHAPES:
        layer = cases.dense_layer(shape, device)
        problem = Problem.of(shape, layer, SPARSITY)
        for way in ways.our_ways(problem, OUR_PRECISIONS, ways.serving(device, ()))[0]:
            x, grad = (way.taken(tensor) for tensor in cases.draw(shape, layer, device))
            expected = expected_results(way, shape, layer, x, grad)
            error = max(largest_error(found, expected) for found in way.results(x, grad))
            agrees = error <= ways.TOLERANCES[way.precision]
            failed += not agrees
            print(f"{shape.name}, {way.name}: {'agrees' if agrees else 'WRONG'}, {error:.1e}", flush=True)
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
