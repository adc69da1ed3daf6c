"""A ViT-B/16's and a ResNet-50's training step on a GPU, dense and sparse: time by part, and peak memory."""

from __future__ import annotations

import copy
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import sparsekern
from benchmarks.gpu import ways
from benchmarks.gpu.clock import Call, Clock, OutOfTime, first_line, interleaved, is_fatal
from benchmarks.gpu.layers import PARTS
from benchmarks.gpu.options import Gpu
from benchmarks.gpu.plain import ResNet, ViT
from benchmarks.twin import disagreement
from sparsekern.models import make_model
from sparsekern.nn import SparseLayer

# The largest relative difference (2-norm) of a parameter's gradient from a dense twin's, in float32: ReLUs that rounding
# switches make some thousandths.
TOLERANCE = 5e-2
CHECKED_IMAGES = 4
LONGEST = 2.0  # seconds of a step; what takes longer is noted and not timed
OWN_MODULES_AT = 98.0  # percent; the library's own model, with its fused modules, is measured there alone
SPARSITIES_FROM = 90.0


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
    "ResNet-50": Network(
        ResNet, lambda: make_model("resnet50", 3, 224, 1000), sgd, 224, 1000, 64, torch.channels_last
    ),
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
    """A network in training on its own batch layout, under autocast to a half precision or in float32."""

    name: str
    model: nn.Module
    optimizer: Optimizer
    precision: str
    sparsity: float | None = None
    backend: str | None = None
    layout: torch.memory_format = torch.contiguous_format
    notes: list[str] = field(default_factory=list)

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
        yield measure_network(name, network, options, device, clock, own_deadline)
        if device.type == "cuda":
            torch.cuda.empty_cache()


def measure_network(
    name: str, network: Network, options: Gpu, device: torch.device, clock: Clock, deadline: float
) -> dict[str, Any]:
    notes: list[str] = []
    rows: dict[str, dict[str, Any]] = {}
    ready: dict[str, Candidate] = {}
    for make in makers(network, options, device, notes):
        if time.monotonic() > deadline:
            notes.append("the time was over before every candidate had been built")
            break
        try:
            candidate, entry = built(make, network, device, clock)
        except Exception as failure:
            if is_fatal(failure):
                raise
            notes.append(f"{make.keywords.get('name', 'a candidate')}: failed ({type(failure).__name__}: {first_line(failure)})")
            continue
        notes += candidate.notes
        if not candidate.notes:
            ready[candidate.name], rows[candidate.name] = candidate, entry
    print(f"timing {len(ready)} candidates of {name}", file=sys.stderr, flush=True)
    calls = {label: lambda inputs, each=each: each.step(*inputs) for label, each in ready.items()}
    results = []
    try:
        times, failed = interleaved(clock, lambda _: batch(network, device), calls, options.rounds, deadline)
        notes += failed
        for label, found in times.items():
            parts = {part: timing.as_dict() for part, timing in zip(PARTS, found.parts, strict=True)}
            results.append(
                rows[label] | {"ms": found.total.as_dict(), "parts_ms": parts, "host_ms": found.host.median}
            )
    except OutOfTime as error:
        notes.append(str(error))
        results = [entry | {"ms": None} for entry in rows.values()]  # memory at least
    return {"network": name, "batch": network.batch, "size": network.size, "results": results, "notes": notes}


def makers(network: Network, options: Gpu, device: torch.device, notes: list[str]) -> Iterator[partial[Candidate]]:
    """What makes the candidates, in the order of their value."""
    torch.manual_seed(options.seed)
    with torch.device(device):
        start = network.make()
    for precision in ("bfloat16", "TF32", "float32"):
        yield partial(dense, network, start, precision, name=f"dense {precision}")
    backends = [name for name in ways.serving(device, options.backends) if name != "reference"] or ["reference"]
    wanted = sorted((each for each in options.sparsity if each >= SPARSITIES_FROM), key=lambda each: (each != 98.0, each))
    for backend in backends:
        for precision in ("bfloat16", "float32"):
            for sparsity in wanted:
                label = f"sparsekern {backend} {precision} at {sparsity:g}%"
                yield partial(sparse, network, start, precision, backend, sparsity, name=label)
    if not options.smoke and OWN_MODULES_AT not in wanted:
        return
    label = f"sparsekern.models {backends[0]} bfloat16 at {OWN_MODULES_AT:g}%"
    with torch.device(device):
        ours = network.ours()
    yield partial(sparse, network, ours, "bfloat16", backends[0], OWN_MODULES_AT, name=label, has_twin=False)


def dense(network: Network, start: nn.Module, precision: str, name: str) -> Candidate:
    model = copy.deepcopy(start).to(memory_format=network.layout)
    return Candidate(name, model, network.optimizer(model), precision, layout=network.layout)


def sparse(
    network: Network,
    start: nn.Module,
    precision: str,
    backend: str,
    sparsity: float,
    name: str,
    has_twin: bool = True,
) -> Candidate:
    """Checked against a dense twin with its zeros, in float32, where the model is the same; else by its loss alone."""
    model = copy.deepcopy(start)
    sparsekern.sparsify(model, density=1 - sparsity / 100)
    candidate = Candidate(name, model, network.optimizer(model), precision, sparsity, backend)
    if has_twin:
        device = next(model.parameters()).device
        with candidate.context(), ways.tensor_cores(False):
            difference = disagreement(model, copy.deepcopy(start), *batch(network, device, CHECKED_IMAGES))
        if not difference <= TOLERANCE:
            candidate.notes.append(f"{name}: WRONG, gradients differ from the dense twin's by {difference:.1e}, not timed")
    return candidate


def built(
    make: partial[Candidate], network: Network, device: torch.device, clock: Clock
) -> tuple[Candidate, dict[str, Any]]:
    """A candidate that may be timed, or has notes that say why not; and its bytes, what it holds and a step's most."""
    print(f"building {make.keywords['name']}", file=sys.stderr, flush=True)
    candidate = make()
    if candidate.notes:
        return candidate, {}
    images, labels = batch(network, device)
    candidate_step = candidate.step(images, labels)
    clock.peak(candidate_step)  # makes the optimizer's state, and compiles what is compiled
    began = time.perf_counter()
    peak = clock.peak(candidate.step(images, labels))
    took = time.perf_counter() - began
    if took > LONGEST:
        candidate.notes.append(f"{candidate.name}: a step takes {took:.1f} s, not timed (its peak is {peak} bytes)")
    model = candidate.model
    tensors = {id(each): each for each in (*model.parameters(), *model.buffers())}
    state = [v for each in candidate.optimizer.state.values() for v in each.values() if isinstance(v, Tensor)]
    candidate.optimizer.zero_grad()
    sparse_layers = [module for module in model.modules() if isinstance(module, SparseLayer)]
    return candidate, {
        "candidate": candidate.name,
        "precision": candidate.precision,
        "sparsity": candidate.sparsity,
        "backend": candidate.backend,
        "edges": sum(layer.nnz for layer in sparse_layers) or None,
        "bytes": {"held": sum(each.nbytes for each in (*tensors.values(), *state)), "peak": peak},
    }


def batch(network: Network, device: torch.device, size: int | None = None) -> tuple[Tensor, Tensor]:
    """Random (images, labels)."""
    count = network.batch if size is None else size
    images = torch.randn(count, 3, network.size, network.size, device=device)
    return images, torch.randint(network.classes, (count,), device=device)
