"""Time of one GSE update by layer width.

    python -m benchmarks.gse_update [--batch 32] [--repeats 15] [--threads 1] [--cpu-time]

A square SparseLinear with 8 edges a row, Adam, alpha 0.2. What is timed is all that an update step does
beyond a plain one: drawing the candidates and computing their gradients inside backward, then Growth.step
(selection, replacement of edges, transposition, moving the weight, its gradient and Adam's state). The best of
the repeats counts. The update is O(rows + columns + edges): twice the width should take twice the time.

Writes benchmarks/results/gse_update_<threads>_threads.json.
"""

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path

import torch

from benchmarks import machine
from sparsekern.growth import GSE
from sparsekern.nn import SparseLinear

EDGES_PER_ROW = 8
RESULTS = Path(__file__).resolve().parent / "results"


def time_update(width: int, sampler: str, batch: int, repeats: int, clock: Callable[[], float]) -> tuple[float, float]:
    """(seconds inside backward, seconds in Growth.step), each the best of the repeats."""
    torch.manual_seed(0)
    layer = SparseLinear(width, width, bias=False, density=EDGES_PER_ROW / width)
    optimizer = torch.optim.Adam(layer.parameters())
    update = GSE(layer, optimizer, sampler=sampler, interval=1, end=10**9)
    x, grad = torch.randn(2, batch, width)
    backward, step = [], []
    for _ in range(repeats + 1):
        layer.weight.grad = torch.randn_like(layer.weight)
        optimizer.step()
        start = clock()
        layer.watcher(layer, x, grad)
        middle = clock()
        update.step()
        backward.append(middle - start)
        step.append(clock() - middle)
    return min(backward[1:]), min(step[1:])


def main() -> None:
    parser = argparse.ArgumentParser(description="Time of one GSE update by layer width")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--threads", type=int, default=None)
    parser.add_argument("--widths", type=int, nargs="+", default=[2**power for power in range(14, 19)])
    parser.add_argument("--cpu-time", action="store_true", help="count CPU time: on a busy machine, with 1 thread")
    arguments = parser.parse_args()
    clock = time.process_time if arguments.cpu_time else time.perf_counter
    if arguments.threads:
        torch.set_num_threads(arguments.threads)
    print(f"{'sampler':8} {'width':>7} {'edges':>8} {'backward ms':>12} {'step ms':>8} {'total ms':>9} {'ratio':>6}")
    rows = []
    for sampler in ("uniform", "grabo", "graest"):
        before = None
        for width in arguments.widths:
            backward, step = time_update(width, sampler, arguments.batch, arguments.repeats, clock)
            total = backward + step
            ratio = f"{total / before:6.2f}" if before else ""
            times = f"{backward * 1e3:12.1f} {step * 1e3:8.1f} {total * 1e3:9.1f}"
            print(f"{sampler:8} {width:7} {EDGES_PER_ROW * width:8} {times} {ratio}", flush=True)
            rows.append({"sampler": sampler, "width": width, "backward_ms": backward * 1e3, "step_ms": step * 1e3})
            before = total
    report = {
        "benchmark": "gse_update",
        "machine": machine.describe(),
        "threads": torch.get_num_threads(),
        "clock": "cpu" if arguments.cpu_time else "wall",
        "batch": arguments.batch,
        "edges_per_row": EDGES_PER_ROW,
        "repeats": arguments.repeats,
        "rows": rows,
    }
    path = RESULTS / f"gse_update_{torch.get_num_threads()}_threads.json"
    path.parent.mkdir(exist_ok=True)
    path.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
