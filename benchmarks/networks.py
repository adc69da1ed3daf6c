"""Whole networks' training step: forward, backward, optimizer."""

from __future__ import annotations

import copy
import itertools
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import Optimizer

from benchmarks import breakdown, nets, networks_page, report
from benchmarks.nets import Network
from benchmarks.networks_page import PARTS
from benchmarks.options import Networks
from benchmarks.timing import Timing, interleaved
from benchmarks.twin import disagreement

# Relative difference of a parameter's gradient. In float32 single ReLUs switch by rounding, which moves the gradients
# of a layer by some thousandths; float64 tells such noise from a mistake.
TOLERANCES = {torch.float64: 1e-8, torch.float32: 5e-2}
CHECKED_IMAGES = 16
DENSE = "dense"
OURS = "dense, sparsekern's modules"


@dataclass
class Candidate:
    """A network in training; `parts` collects the seconds of each step's PARTS."""

    model: nn.Module
    optimizer: Optimizer
    sparsity: float
    layout: torch.memory_format = torch.contiguous_format
    parts: list[tuple[float, ...]] = field(default_factory=list)

    def prepare_step(self, images: Tensor, labels: Tensor) -> Callable[[], None]:
        own = images.clone(memory_format=self.layout)
        self.optimizer.zero_grad()

        def step() -> None:
            times = [time.perf_counter()]
            loss = F.cross_entropy(self.model(own), labels)
            times.append(time.perf_counter())
            loss.backward()
            times.append(time.perf_counter())
            self.optimizer.step()
            times.append(time.perf_counter())
            self.parts.append(tuple(after - before for before, after in itertools.pairwise(times)))

        return step

    def forward_backward(self, images: Tensor, labels: Tensor) -> None:
        F.cross_entropy(self.model(images.clone(memory_format=self.layout)), labels).backward()


def run(options: Networks) -> None:
    torch.set_num_threads(options.threads)
    if options.rounds < 2:
        raise ValueError(f"--rounds is {options.rounds}; expected at least 2")
    networks = nets.chosen(options.network)
    result = report.begin("networks", options)
    result |= {"rounds": options.rounds, "batch": options.batch, "networks": []}
    for name, network in networks.items():
        result["networks"].append({"network": name, **measure(name, network, options)})
    file = f"networks_{options.threads}_threads"
    chart = networks_page.draw(result, options.output, file)
    report.write(result, networks_page.page(result, chart), options.output, file)


def measure(name: str, network: Network, options: Networks) -> dict[str, Any]:
    """Dense in its ways and sparse at every sparsity, timed in the same rounds, then each one's breakdown."""
    torch.manual_seed(options.seed)
    notes: list[str] = []
    start = network.make()
    candidates = {DENSE: trained(copy.deepcopy(start), network, 0.0)}
    fast = trained(network.fast(copy.deepcopy(start)), network, 0.0)
    fast.layout = torch.channels_last if network.fast is nets.channels_last else torch.contiguous_format
    candidates[network.fast_name] = fast
    candidates[OURS] = trained(network.in_our_modules(start), network, 0.0)
    errors = {}
    for sparsity in sorted(options.sparsity):
        label = f"sparsekern at {sparsity:g}%"
        print(f"checking {name}, {label}", file=sys.stderr, flush=True)
        sparse = nets.make_sparse(network.in_our_modules(start), 1 - sparsity / 100)
        errors[label] = differences(sparse, start, *network.batch(min(options.batch, CHECKED_IMAGES)))
        if all(errors[label][str(dtype)] <= most for dtype, most in TOLERANCES.items()):
            candidates[label] = trained(sparse, network, sparsity)
        else:
            notes.append(f"{label}: gradients differ from the dense twin's by {errors[label]}, not timed")
    print(f"timing {len(candidates)} candidates", file=sys.stderr, flush=True)
    timings = interleaved(
        lambda _: network.batch(options.batch),
        {label: lambda inputs, each=each: each.prepare_step(*inputs) for label, each in candidates.items()},
        options.rounds,
    )
    rows = []
    images, labels = network.batch(options.batch)
    for label, each in candidates.items():
        counted = each.parts[-options.rounds :]
        rows.append(
            {
                "candidate": label,
                "sparsity": each.sparsity,
                "gradient_difference": errors.get(label),
                "ms": timings[label].as_dict(),
                "parts_ms": {
                    part: Timing.of([times[index] for times in counted]).as_dict() for index, part in enumerate(PARTS)
                },
                "breakdown": breakdown.shares(partial(each.forward_backward, images, labels)),
            }
        )
    return {"results": rows, "notes": notes}


def differences(sparse: nn.Module, dense: nn.Module, images: Tensor, labels: Tensor) -> dict[str, float]:
    """By dtype, how far the sparse network's gradients are from those of a dense network with the same zeros."""
    return {
        str(dtype): disagreement(
            copy.deepcopy(sparse).to(dtype), copy.deepcopy(dense).to(dtype), images.to(dtype), labels
        )
        for dtype in TOLERANCES
    }


def trained(model: nn.Module, network: Network, sparsity: float) -> Candidate:
    return Candidate(model, network.optimizer(model), sparsity)
