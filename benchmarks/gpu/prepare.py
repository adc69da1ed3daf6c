"""Has Triton compile what the sections will start, before they are timed: `python -m benchmarks.gpu.prepare PART`.

A ResNet-50 takes some hundred kernels, a second each. Compiled code is kept on disk, where the sections find it. A part
is a process, so that several compile at once: "layers", "convolutions", or of the networks "checks" or the steps in a
precision. `--device cpu --smoke` behind it rehearses.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor

from benchmarks.gpu import cases, networks, ways
from benchmarks.gpu.cases import Problem
from benchmarks.gpu.clock import Call, first_line, is_fatal
from benchmarks.gpu.layers import OUR_PRECISIONS
from benchmarks.gpu.networks import CHECKED_IMAGES
from benchmarks.gpu.options import Gpu, parse
from benchmarks.gpu.place import device_of
from benchmarks.shapes import Shape

LAYERS = {
    "layers": (cases.LINEAR, cases.SMOKE_LINEAR),
    "convolutions": (cases.CONVOLUTIONS, cases.SMOKE_CONVOLUTIONS),
}
CHECKS = "checks"
PARTS = (*LAYERS, CHECKS, "bfloat16", "float32")


def main(arguments: Sequence[str]) -> int:
    """Returns the exit code: 0, 1 where something failed, 2 for another part."""
    part, *rest = arguments
    if part not in PARTS:
        print(f"the part is {part!r}; expected one of {', '.join(PARTS)}", file=sys.stderr)
        return 2
    options = parse(rest, f"python -m benchmarks.gpu.prepare {part}")
    device = device_of(options.device)
    if device.type == "cuda":
        options = replace(options, backends=("triton",))  # nothing else is compiled at its first start
    if part in LAYERS:
        works = of_layers(LAYERS[part][options.smoke], options, device)
    else:
        works = of_networks(part, options, device)
    failed = 0
    for name, work in works:
        try:
            work()
            print(f"{name}: ran", flush=True)
        except Exception as error:
            failed += 1
            print(f"{name}: failed ({type(error).__name__}: {first_line(error)})", flush=True)
            if is_fatal(error):
                break
    return int(failed > 0)


def of_layers(
    shapes: Sequence[Shape], options: Gpu, device: torch.device
) -> Iterator[tuple[str, Callable[[], object]]]:
    """Every product and step of every layer at every sparsity: how many edges there are says which kernel is taken."""
    backends = ways.serving(device, options.backends)
    for shape in shapes:
        layer = cases.dense_layer(shape, device)
        x, grad = cases.draw(shape, layer, device)
        for sparsity in options.sparsity:
            if sparsity < shape.lowest:
                continue
            problem = Problem.of(shape, layer, sparsity)
            for way in ways.our_ways(problem, OUR_PRECISIONS, backends)[0]:
                yield f"{shape.name}, {way.label}", partial(way.results, way.taken(x), way.taken(grad))


def of_networks(part: str, options: Gpu, device: torch.device) -> Iterator[tuple[str, Callable[[], object]]]:
    """A step of every sparse candidate: in float32 of the few images that are checked, or of a batch in a precision."""
    precision = "float32" if part == CHECKS else part
    for name, network in (networks.SMOKE_NETWORKS if options.smoke else networks.NETWORKS).items():
        images = networks.batch(network, device, CHECKED_IMAGES if part == CHECKS else None)
        for make in networks.makers(network, options, device):
            for candidate in make():
                if candidate.backend is None or (part != CHECKS and candidate.precision != precision):
                    continue
                candidate.precision = precision
                yield f"{name}, {part}, {candidate.name}", partial(take, candidate.step, images)


def take(step: Callable[..., Call], images: tuple[Tensor, Tensor]) -> None:
    call = step(*images)
    with call.context():
        for each in call.parts:
            each()


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
