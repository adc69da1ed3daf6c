"""Networks for ImageNet: built, trained for two steps and saved, dense and sparse; how much memory each part takes."""

from __future__ import annotations

import contextlib
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.optim import SGD, AdamW, Optimizer

import sparsekern
from benchmarks import fresh, report, resident
from benchmarks.footprint import saved_bytes
from benchmarks.memory import MIB, part_sizes
from benchmarks.options import Large
from sparsekern import tables
from sparsekern.models import make_model
from sparsekern.testing import forbid_dense
from sparsekern.training.checkpoint import save_checkpoint
from sparsekern.training.memory import measure_memory


@dataclass(frozen=True)
class Network:
    """A network of `sparsekern.models` by its name there, and the optimizer that it is usually trained with."""

    model: str
    optimizer: Callable[[nn.Module], Optimizer]

    def make(self, size: int, classes: int) -> nn.Module:
        return make_model(self.model, 3, size, classes)


NETWORKS = {
    "ResNet-50": Network("resnet50", lambda model: SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=1e-4)),
    "ViT-B/16": Network("vit-b", lambda model: AdamW(model.parameters(), lr=1e-4)),
}


def run(options: Large) -> None:
    names = [name for name in NETWORKS if options.network.lower() in name.lower()]
    if not names:
        raise ValueError(f"--network is {options.network!r}, which no network's name contains: {', '.join(NETWORKS)}")
    result = report.begin("large", options)
    result |= {"batch": options.batch, "size": options.size, "limit_gib": options.limit, "networks": []}
    for name in names:
        rows = []
        for sparsity in (0.0, *sorted(options.sparsity)):
            print(f"{name} at {sparsity:g}%", file=sys.stderr, flush=True)
            measured = fresh.call(
                "large.measure",
                {
                    "name": name,
                    "density": None if sparsity == 0 else 1 - sparsity / 100,
                    "batch": options.batch,
                    "size": options.size,
                    "seed": options.seed,
                },
                threads=options.threads,
                gibibytes=options.limit,
                seconds=options.seconds,
                keep_freed=False,
            )
            rows.append({"candidate": f"sparsekern at {sparsity:g}%" if sparsity else "dense", **measured})
        result["networks"].append({"network": name, "results": rows})
    report.write(result, page(result), options.output, "large")


def measure(name: str, density: float | None, batch: int, size: int, seed: int) -> dict[str, Any]:
    """Bytes and seconds of building, two steps and saving; density None: dense. Runs in a fresh process.

    All of a sparse network's life is under `forbid_dense`. "build" and "step" are resident memory at its most above
    that after the imports, while the network was built and in the second step; "file" is the saved size.
    """
    network = NETWORKS[name]
    classes = 1000
    load_lazy_parts()
    imports = resident.now()
    torch.manual_seed(seed)
    with contextlib.ExitStack() as stack:
        resident.reset_peak()
        started = time.perf_counter()
        if density is None:
            model = network.make(size, classes)
        else:
            with torch.device("meta"):
                known, model = network.make(size, classes), network.make(size, classes)
            sparsekern.sparsify(known, density)
            stack.enter_context(forbid_dense(known, batch_sizes=(batch,)))
            sparsekern.sparsify(model, density, device="cpu")
        seconds, build = time.perf_counter() - started, resident.peak() - imports
        optimizer = network.optimizer(model)
        images, labels = torch.randn(batch, 3, size, size), torch.randint(classes, (batch,))

        def step() -> float:
            optimizer.zero_grad()
            loss = F.cross_entropy(model(images), labels)
            loss.backward()
            optimizer.step()
            return loss.item()

        losses = [step()]
        resident.reset_peak()
        losses.append(step())
        peak = resident.peak() - imports
        with tempfile.TemporaryDirectory() as folder:
            path = Path(folder) / "state.safetensors"
            save_checkpoint(path, {"model": model.state_dict(), "optimizer": optimizer.state_dict()})
            file = path.stat().st_size
    parts = asdict(measure_memory(model, optimizer)[0])
    parts["activations"] = saved_bytes(model, lambda: F.cross_entropy(model(images), labels))
    return {**parts, "build": build, "peak": peak, "file": file, "build_seconds": seconds, "losses": losses}


def load_lazy_parts() -> None:
    """Has torch load what it loads with the first operator on the meta device, which is not the network's memory."""
    with torch.device("meta"):
        model = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Flatten(), nn.LayerNorm(8), nn.Linear(8, 8))
        nn.init.trunc_normal_(torch.empty(8, 8))
    sparsekern.sparsify(model, 0.5, device="cpu")
    with forbid_dense(model, batch_sizes=(13,)):
        model(torch.randn(13, 3, 3, 3)).sum().backward()


def page(result: dict[str, Any]) -> str:
    size, batch = result["size"], result["batch"]
    paragraphs = [
        "# Networks for ImageNet: memory of building, training and saving",
        f'MiB, float32, {batch} images of {size}x{size} pixels in 1000 classes. "Built" is the resident memory of a '
        'fresh process at its most while the network was made, "step" in its second training step, both above that '
        'after the imports; the parts are bytes of live tensors, and "saved" is the size of the checkpoint with the '
        "optimizer's state. A sparse network is made on the meta device and built sparse from there; all of it, from "
        "building to saving, runs under `forbid_dense`.",
        report.where(result),
    ]
    header = ["", "built", "weights", "indices", "gradients", "optimizer", "activations", "step", "of dense", "saved"]
    for network in result["networks"]:
        rows, dense = [], network["results"][0]
        for row in network["results"]:
            if "failed" in row:
                rows.append([row["candidate"], *["-"] * (len(header) - 2), row["failed"]])
                continue
            sizes = [row["build"] / MIB, *part_sizes(row).values(), row["peak"] / MIB]
            share = f"{row['peak'] / dense['peak']:.0%}" if "peak" in dense else "-"
            rows.append([row["candidate"], *(f"{mib:,.1f}" for mib in sizes), share, f"{row['file'] / MIB:,.1f}"])
        paragraphs += [f"## {network['network']}, MiB", report.table(header, rows)]
    return tables.page(paragraphs)
