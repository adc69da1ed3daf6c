"""A ViT-B/16's and a ResNet-50's training step on a GPU, dense and sparse: time by part, and peak memory."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import sparsekern
from benchmarks.gpu import ways
from benchmarks.gpu.clock import Call, Clock, Fault, OutOfTime, first_line, interleaved, is_fatal
from benchmarks.gpu.layers import PARTS
from benchmarks.gpu.options import Gpu
from benchmarks.gpu.plain import ResNet, ViT
from benchmarks.twin import disagreement
from sparsekern.models import make_model
from sparsekern.nn import SparseLayer

# The largest relative difference (2-norm) of a parameter's gradient from a dense twin's, in float32: ReLUs that are
# switched by rounding make some thousandths.
TOLERANCE = 5e-2
CHECKED_IMAGES = 4
LONGEST = 1.0  # seconds of a step; what takes longer is noted and not timed
FIRST_LONGEST = 45.0  # of the first, which compiles what benchmarks/gpu/prepare.py has not
BUILDING = 0.7  # of the time that is left; the rest is for the rounds
DENSE = ("bfloat16", "TF32", "float32")
SPARSITIES = (90.0, 95.0, 98.0, 99.0, 99.9)  # those of the options that are among these
FIRST_SPARSITY = 98.0  # the library's own model, with its fused modules, is measured there alone
FLOAT32_AT = (90.0, 95.0, 98.0)


class TooSlow(Exception):
    """A step takes too long to be timed; so it will with more edges."""


@dataclass(frozen=True)
class Network:
    """`make` in plain torch, `ours` of `sparsekern.models`; `size` in pixels."""

    make: Callable[[], nn.Module]
    ours: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    size: int
    classes: int
    batch: int
    layout: torch.memory_format = torch.contiguous_format


def adamw(model: nn.Module) -> Optimizer:
    return AdamW(model.parameters(), lr=1e-5, fused=True)


def sgd(model: nn.Module) -> Optimizer:
    return SGD(model.parameters(), lr=1e-4, momentum=0.9, weight_decay=1e-4, fused=True)


NETWORKS = {
    "ViT-B/16": Network(ViT, lambda: make_model("vit-b", 3, 224, 1000), adamw, 224, 1000, 64),
    "ResNet-50": Network(ResNet, lambda: make_model("resnet50", 3, 224, 1000), sgd, 224, 1000, 64, torch.channels_last),
}
SMOKE_NETWORKS = {
    "tiny ViT": Network(
        lambda: ViT(size=32, width=24, depth=1, heads=2, classes=5),
        lambda: make_model("vit", 3, 32, 5, width=24, depth=1, heads=2, patch=16),
        adamw,
        32,
        5,
        4,
    ),
    "tiny ResNet": Network(
        lambda: ResNet(blocks=(1, 1), width=8, classes=5),
        lambda: make_model("resnet", 3, 32, 5, width=4, depth=8),
        sgd,
        32,
        5,
        4,
        torch.channels_last,
    ),
}


@dataclass
class Candidate:
    """A network in training, under autocast to a half precision or in float32; `twin` is a dense one of its structure.

    Candidates of one sparsity share their model and optimizer.
    """

    name: str
    model: nn.Module
    optimizer: Optimizer
    precision: str
    sparsity: float | None = None
    backend: str | None = None
    layout: torch.memory_format = torch.contiguous_format
    twin: nn.Module | None = None

    @contextmanager
    def context(self) -> Iterator[None]:
        with ExitStack() as stack:
            stack.enter_context(ways.tensor_cores(self.precision == "TF32"))
            if self.backend is not None:
                stack.enter_context(sparsekern.backend(self.backend))
            yield

    def step(self, images: Tensor, labels: Tensor) -> Call:
        own = images.contiguous(memory_format=self.layout)
        self.optimizer.zero_grad()
        held: list[Tensor] = []

        def forward() -> None:
            with self.autocast(images.device):
                held.append(F.cross_entropy(self.model(own), labels))

        return Call([forward, lambda: held.pop().backward(), self.optimizer.step], self.context)

    def autocast(self, device: torch.device) -> AbstractContextManager[Any]:
        dtype = ways.DTYPES[self.precision]
        return torch.autocast(device.type, dtype, enabled=dtype != torch.float32)


def measure(options: Gpu, device: torch.device, clock: Clock, deadline: float) -> Iterator[dict[str, Any]]:
    """One entry a network, as each is done. Time is shared out evenly among those that are left."""
    networks = SMOKE_NETWORKS if options.smoke else NETWORKS
    for index, (name, network) in enumerate(networks.items()):
        now = time.monotonic()
        if now > deadline:
            yield {"network": name, "results": [], "notes": ["not measured: the time was over"]}
            continue
        own_deadline = now + (deadline - now) / (len(networks) - index)
        entry = measure_network(name, network, options, device, clock, own_deadline)
        yield entry | {"seconds": round(time.monotonic() - now, 1)}
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure_network(
    name: str, network: Network, options: Gpu, device: torch.device, clock: Clock, deadline: float
) -> dict[str, Any]:
    notes: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    ready: dict[str, Candidate] = {}
    checked: set[tuple[str | None, float | None]] = set()
    too_slow: dict[tuple[str | None, str], float] = {}
    now = time.monotonic()
    built_until = now + BUILDING * (deadline - now)
    for make in makers(network, options, device):
        if time.monotonic() > built_until:
            notes.append("the time was over before every candidate had been built")
            break
        try:
            made = make()
        except Exception as failure:
            if is_fatal(failure):
                raise
            notes.append(f"a network could not be built ({type(failure).__name__}: {first_line(failure)})")
            continue
        for candidate in made:
            print(f"checking {name}, {candidate.name}", file=sys.stderr, flush=True)
            way = candidate.backend, candidate.precision
            try:
                if (candidate.sparsity or 0.0) <= too_slow.get(way, -1.0):
                    raise ValueError(f"too slow at {too_slow[way]:g}% already")
                if candidate.twin is not None and (candidate.backend, candidate.sparsity) not in checked:
                    check(candidate, network, device)
                    checked.add((candidate.backend, candidate.sparsity))
                rows[candidate.name] = memory(candidate, network, device, clock)
                ready[candidate.name] = candidate
            except TooSlow as failure:
                too_slow[way] = max(candidate.sparsity or 0.0, too_slow.get(way, 0.0))
                notes.append(f"{candidate.name}: not timed ({failure})")
            except Exception as failure:
                if is_fatal(failure):
                    raise Fault(failure, candidate.backend, candidate.name) from failure
                notes.append(f"{candidate.name}: not timed ({type(failure).__name__}: {first_line(failure)})")
    print(f"timing {len(ready)} candidates of {name}", file=sys.stderr, flush=True)
    calls = {label: lambda inputs, each=each: each.step(*inputs) for label, each in ready.items()}
    results = []
    try:
        backends = {label: each.backend for label, each in ready.items()}
        times, failed = interleaved(
            clock, lambda _: batch(network, device), calls, options.rounds, deadline, backends=backends
        )
        notes += failed
        for label, found in times.items():
            parts = {part: timing.median for part, timing in zip(PARTS, found.parts, strict=True)}
            results.append(rows[label] | {"ms": found.total.as_dict(), "parts_ms": parts, "host_ms": found.host.median})
    except OutOfTime as error:
        notes.append(str(error))
        results = [entry | {"ms": None} for entry in rows.values()]  # memory at least
    return {"network": name, "batch": network.batch, "size": network.size, "results": results, "notes": notes}


def makers(network: Network, options: Gpu, device: torch.device) -> Iterator[Callable[[], list[Candidate]]]:
    """What makes the candidates, a network of its own for each sparsity, in the order of their value."""
    torch.manual_seed(options.seed)
    with torch.device(device):
        start = network.make()
    yield lambda: dense(network, start)
    wanted = sorted((s for s in options.sparsity if s in SPARSITIES), key=lambda s: (s != FIRST_SPARSITY, s))
    backends = tuple(name for name in ways.serving(device, options.backends) if name != "reference") or ("reference",)
    for sparsity in wanted:
        yield partial(sparse, network, start, sparsity, backends)
    if options.smoke or FIRST_SPARSITY in wanted:
        yield partial(own_modules, network, device, backends[0])


def dense(network: Network, start: nn.Module) -> list[Candidate]:
    model = copy.deepcopy(start).to(memory_format=network.layout)
    optimizer = network.optimizer(model)
    return [Candidate(f"dense {precision}", model, optimizer, precision, layout=network.layout) for precision in DENSE]


def sparse(network: Network, start: nn.Module, sparsity: float, backends: tuple[str, ...]) -> list[Candidate]:
    """One network of this sparsity, through each backend in each precision."""
    model = copy.deepcopy(start)
    sparsekern.sparsify(model, density=1 - sparsity / 100)
    optimizer = network.optimizer(model)
    precisions = ("bfloat16", "float32") if sparsity in FLOAT32_AT else ("bfloat16",)
    return [
        Candidate(
            f"sparsekern {backend} {precision} at {sparsity:g}%",
            model,
            optimizer,
            precision,
            sparsity,
            backend,
            twin=start,
        )
        for backend in backends
        for precision in precisions
    ]


def own_modules(network: Network, device: torch.device, backend: str) -> list[Candidate]:
    with torch.device(device):
        model = network.ours()
    sparsekern.sparsify(model, density=1 - FIRST_SPARSITY / 100)
    name = f"sparsekern.models {backend} bfloat16 at {FIRST_SPARSITY:g}%"
    return [Candidate(name, model, network.optimizer(model), "bfloat16", FIRST_SPARSITY, backend)]


def check(candidate: Candidate, network: Network, device: torch.device) -> None:
    """Compares a sparse network's gradients with those of a dense twin with its zeros, both in float32.

    Raises:
        ValueError: they differ.
    """
    with candidate.context(), ways.tensor_cores(False):
        twin = copy.deepcopy(candidate.twin)
        difference = disagreement(candidate.model, twin, *batch(network, device, CHECKED_IMAGES))
    if not difference <= TOLERANCE:
        raise ValueError(f"WRONG: gradients differ from the dense twin's by {difference:.1e}")


def memory(candidate: Candidate, network: Network, device: torch.device, clock: Clock) -> dict[str, Any]:
    """What a candidate is, and its bytes: what it holds, and those on top at a step's most.

    Raises:
        TooSlow: a step takes too long to be timed.
    """
    images, labels = batch(network, device)
    # The first makes the optimizer's state, and compiles what is compiled.
    for longest in (FIRST_LONGEST, LONGEST):
        began = time.perf_counter()
        peak = clock.peak(candidate.step(images, labels))
        took = time.perf_counter() - began
        if took > longest:
            raise TooSlow(f"a step takes {took:.1f} s, with {peak} bytes at its most beside what is held")
    model = candidate.model
    tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}
    state = [v for each in candidate.optimizer.state.values() for v in each.values() if isinstance(v, Tensor)]
    candidate.optimizer.zero_grad()
    layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    return {
        "candidate": candidate.name,
        "precision": candidate.precision,
        "sparsity": candidate.sparsity,
        "backend": candidate.backend,
        "edges": sum(layer.nnz for layer in layers) or None,
        "bytes": {"held": sum(each.nbytes for each in (*tensors.values(), *state)), "peak": peak},
    }


def batch(network: Network, device: torch.device, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Random (images, labels)."""
    count = network.batch if size is None else size
    images = torch.randn(count, 3, network.size, network.size, device=device)
    return images, torch.randint(network.classes, (count,), device=device)
