"""The three products once each, for a profiler to look at: `python -m benchmarks.gpu.profiled BACKEND PRECISION ...`.

Between the products runs a kernel whose name nothing else here has, so that a profile can be cut at it.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence

import torch

from benchmarks.gpu import cases, ways
from benchmarks.gpu.cases import PRODUCTS, Problem
from benchmarks.gpu.place import device_of

SEPARATOR = "cosh"


def main(arguments: Sequence[str]) -> int:
    backend, precision, device_name, sparsity, smoke = arguments
    device = device_of(device_name)
    torch.manual_seed(0)
    shape = (cases.SMOKE_LINEAR if smoke == "smoke" else cases.LINEAR)[0]
    layer = cases.dense_layer(shape, device)
    problem = Problem.of(shape, layer, float(sparsity))
    (way,), _ = ways.our_ways(problem, (precision,), (backend,))
    x, grad = (way.taken(tensor) for tensor in cases.draw(shape, layer, device))
    mark = torch.zeros(1, device=device)
    on_gpu = device.type == "cuda"
    with way.context():
        for profiled in (False, True):  # compiled, and kept orders made, before
            if profiled and on_gpu:
                torch.cuda.synchronize()
                torch.cuda.profiler.start()
            for product in PRODUCTS:
                mark.cosh()
                way.products[product](x, grad)
        if on_gpu:
            torch.cuda.synchronize()
            torch.cuda.profiler.stop()
    print(f"edges {problem.edges}, tokens {shape.batch}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
