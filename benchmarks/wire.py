"""Bytes that a rank sends in a data-parallel training step, against the dense model's: counted by the kernel."""

from __future__ import annotations

import json
import os
import socket
import struct
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import sparsekern
from benchmarks import report
from benchmarks.options import Wire
from sparsekern import tables
from sparsekern.growth.ranks import digest

_BYTES_SENT = 200  # offset in Linux's struct tcp_info
_SETTLED = 0.05  # seconds after which what was sent has left
_ROWS = 12  # of a batch of which 2, 3 and 4 ranks have equal parts
_METHODS = ("set", "uniform", "grabo", "graest", "rigl")


def run(options: Wire) -> None:
    if not (min(options.densities) > 0 and max(options.densities) < 1):
        raise ValueError(f"--densities are {options.densities}; expected numbers between 0 and 1")
    if options.steps < 2:
        raise ValueError(f"--steps is {options.steps}; expected at least 2")
    result = report.begin("wire", options)
    measured = [on_ranks(count, options) for count in options.ranks]
    result |= {
        "widths": options.widths,
        "interval": options.interval,
        "results": [row for parts in measured for row in parts["results"]],
        "updates": [row for parts in measured for row in parts["updates"]],
        "topologies": [row for parts in measured for row in parts["topologies"]],
    }
    report.write(result, page(result), options.output, "wire")


def measure(rank: int, count: int, options: Wire) -> dict[str, Any]:
    """All figures of so many ranks, called on each."""
    dense = traffic(None, "grabo", options)["plain"]
    results = []
    for density in sorted(options.densities, reverse=True):
        sparse = traffic(density, "grabo", options)
        rigl = traffic(density, "rigl", options)["update"] - sparse["plain"]
        every = sparse["plain"] + (sparse["update"] - sparse["plain"]) / options.interval
        shares = {"plain_share": sparse["plain"] / dense, "share": every / dense}
        results.append({"ranks": count, "density": density, "dense": dense, **sparse, **shares, "rigl": rigl})
    known = {"ranks": count, "density": results[0]["density"]}
    return {
        "results": results,
        "updates": [known | {"method": each, **traffic(results[0]["density"], each, options)} for each in _METHODS],
        "topologies": [
            {"ranks": count, "method": each, "updates": options.updates, **topologies(rank, each, options)}
            for each in _METHODS
        ],
    }


def bytes_sent() -> int:
    """By all TCP connections of this process, as the kernel counts them (Linux)."""
    total = 0
    for entry in os.listdir("/proc/self/fd"):
        try:
            if not os.readlink(f"/proc/self/fd/{entry}").startswith("socket:"):
                continue
            with socket.socket(fileno=os.dup(int(entry))) as connection:
                if connection.family not in (socket.AF_INET, socket.AF_INET6):
                    continue
                told = connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_INFO, 256)
        except OSError:  # closed meanwhile, or no connection
            continue
        if len(told) < _BYTES_SENT + 8:
            raise RuntimeError("this system does not count the bytes of a TCP connection")
        total += struct.unpack_from("=Q", told, _BYTES_SENT)[0]
    return total


def bytes_of(work: Any) -> int:
    """What this rank sends in a call that all ranks make at once."""
    dist.barrier()
    time.sleep(_SETTLED)
    before = bytes_sent()
    work()
    time.sleep(_SETTLED)
    return bytes_sent() - before


def traffic(density: float | None, method: str, options: Wire) -> dict[str, float]:
    """{"plain", "update"}: bytes that a rank sends in an ordinary step and in one with an update."""
    model = make_model(options, density)
    parallel = DistributedDataParallel(model)
    optimizer = torch.optim.AdamW(model.parameters())
    growth = None if density is None else make_growth(method, parallel, optimizer, interval=options.steps)
    x = torch.randn(options.batch, options.widths[0])

    def step() -> None:
        optimizer.zero_grad()
        parallel(x).square().mean().backward()
        optimizer.step()
        if growth is not None:
            growth.step()

    for _ in range(options.steps):  # the first ones build buckets
        step()
    plain = [bytes_of(step) for _ in range(options.steps - 1)]
    return {"plain": sum(plain) / len(plain), "update": bytes_of(step)}


def topologies(rank: int, method: str, options: Wire) -> dict[str, int]:
    """At how many of so many updates, one a step, all ranks and a single one with the whole batch have one topology."""
    found = []
    start = make_model(options, 0.2, small=True).double()
    for whole in (False, True):
        torch.manual_seed(options.seed)
        model = make_model(options, 0.2, small=True).double()
        model.load_state_dict(start.state_dict())
        net = model if whole else DistributedDataParallel(model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
        growth = make_growth(method, net, optimizer, interval=1, process_group="alone" if whole else None)
        generator = torch.Generator().manual_seed(options.seed)
        seen, losses = [], []
        for _ in range(options.updates):
            x, y = torch.randn(2, _ROWS, 24, dtype=torch.float64, generator=generator)
            rows = slice(None) if whole else slice(*(_ROWS * at // dist.get_world_size() for at in (rank, rank + 1)))
            loss = (net(x[rows]) - y[rows, :8]).square().mean()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            growth.step()
            losses.append(loss.item())
            seen.append([digest(layer.ccol_indices, layer.row_indices) for layer in growth.layers.values()])
        found.append((seen, torch.tensor(losses, dtype=torch.float64)))
    (together, losses), (alone, wanted) = found
    told: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(told, (together, losses))
    mean = torch.stack([each for _, each in told]).mean(0)
    return {
        "equal_among_ranks": sum(all(each[0][at] == told[0][0][at] for each in told) for at in range(options.updates)),
        "equal_to_one": sum(mine == theirs for mine, theirs in zip(together, alone, strict=True)),
        "loss_difference": float(((mean - wanted) / wanted).abs().max()),
    }


def make_model(options: Wire, density: float | None, small: bool = False) -> nn.Module:
    torch.manual_seed(options.seed)
    widths = (24, 32, 8) if small else options.widths
    layers = []
    for inputs, outputs in pairwise(widths):
        layers += [nn.Linear(inputs, outputs), nn.ReLU()]
    model = nn.Sequential(*layers[:-1])
    if density is not None:
        sparsekern.sparsify(model, density=density, distribution="uniform")
    return model


def make_growth(method: str, model: nn.Module, optimizer: Any, **options: Any) -> sparsekern.growth.Growth:
    options |= {"end": 2**40, "generator": torch.Generator().manual_seed(0)}
    if method in ("set", "rigl"):
        return {"set": sparsekern.SET, "rigl": sparsekern.RigL}[method](model, optimizer, **options)
    return sparsekern.GSE(model, optimizer, method, **options)


def on_ranks(count: int, options: Wire) -> dict[str, Any]:
    """The first rank's figures."""
    with tempfile.TemporaryDirectory() as folder:
        mp.spawn(_work, (count, Path(folder), options), nprocs=count)
        return json.loads((Path(folder) / "result.json").read_text())


def _work(rank: int, count: int, folder: Path, options: Wire) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=count)
    result = measure(rank, count, options)
    if rank == 0:
        (folder / "result.json").write_text(json.dumps(result))
    dist.destroy_process_group()


def page(result: dict[str, Any]) -> str:
    rows = [
        [
            str(row["ranks"]),
            f"{row['density']:.1%}",
            f"{row['dense']:,.0f}",
            f"{row['plain']:,.0f}",
            f"{row['update']:,.0f}",
            f"{row['plain_share']:.2%}",
            f"{row['share']:.2%}",
            f"{row['share'] / row['density']:.2f}",
        ]
        for row in result["results"]
    ]
    header = [
        "ranks",
        "density",
        "dense, bytes",
        "sparse, bytes",
        "with an update, bytes",
        "of dense",
        f"of dense, an update every {result['interval']} steps",
        "that over density",
    ]
    rigl = [
        [str(row["ranks"]), f"{row['density']:.1%}", f"{row['rigl']:,.0f}", f"{row['rigl'] / row['dense']:.1%}"]
        for row in result["results"]
    ]
    updates = [
        [str(row["ranks"]), row["method"], f"{row['plain']:,.0f}", f"{row['update']:,.0f}"] for row in result["updates"]
    ]
    equal = [
        [
            str(row["ranks"]),
            row["method"],
            f"{row['equal_among_ranks']} of {row['updates']}",
            f"{row['equal_to_one']} of {row['updates']}",
            f"{row['loss_difference']:.1e}",
        ]
        for row in result["topologies"]
    ]
    return tables.page(
        [
            "# What ranks send",
            "Bytes that the first rank sends in a step of DistributedDataParallel on gloo, as the kernel counts them "
            f"at its TCP connections: float32, widths {' - '.join(f'{width:,}' for width in result['widths'])}, biases "
            "dense, GSE with GraBo.",
            report.where(result),
            report.table(header, rows),
            "## By method",
            f"SET sends no more at an update than hashes. At a density of {result['updates'][0]['density']:.1%}.",
            report.table(["ranks", "method", "an ordinary step, bytes", "with an update, bytes"], updates, left=2),
            "## RigL",
            "What an update adds to a step, and that over a step of the dense model, which sends the dense gradient "
            "once: the ranks find the largest of the dense gradients' sum. The gradients are of random inputs.",
            report.table(["ranks", "density", "an update, bytes", "of dense"], rigl),
            "## One topology",
            "A small model in float64 with an update at each step: at how many of them the topology is the same on all "
            "ranks, and the same as that of a single process with the whole batch; and the largest relative "
            "difference between the mean of the ranks' losses and the single process's.",
            report.table(["ranks", "method", "among ranks", "as one process", "loss"], equal, left=2),
        ]
    )
