"""One square layer in training, timed or measured; runs in a fresh process."""

from __future__ import annotations

import time
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from benchmarks import resident
from benchmarks.timing import Timing
from sparsekern.growth import GSE
from sparsekern.nn import SparseLinear

WARM_UP = 2


class Training:
    """A layer of `width` inputs and outputs, Adam, and for a sparse one (edges a neuron not None) GSE."""

    def __init__(self, width: int, edges: int | None, batch: int, interval: int, sampler: str, seed: int) -> None:
        torch.manual_seed(seed)
        self.layer: nn.Module = (
            nn.Linear(width, width) if edges is None else SparseLinear(width, width, density=edges / width)
        )
        self.optimizer = torch.optim.Adam(self.layer.parameters())
        self.growth = None
        if edges is not None:
            self.growth = GSE(self.layer, self.optimizer, sampler, interval=interval, end=2**40)
        self.x, self.target = torch.randn(2, batch, width)

    def step(self) -> bool:
        """One training step. Returns whether the topology changed in it."""
        self.optimizer.zero_grad()
        F.mse_loss(self.layer(self.x), self.target).backward()
        self.optimizer.step()
        return bool(self.growth and self.growth.step())


def timed(interval: int, updates: int, **training: Any) -> dict[str, Any]:
    """{"step_ms", "update_step_ms" (None where there is no update)}: steps without an update, and steps with one."""
    running = Training(interval=interval, **training)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    for index in range(WARM_UP + interval * updates):
        began = time.perf_counter()
        updated = running.step()
        if index >= WARM_UP:
            seconds[updated].append(time.perf_counter() - began)
    updating = seconds[True]
    return {
        "step_ms": Timing.of(seconds[False]).as_dict(),
        "update_step_ms": Timing.of(updating).as_dict() if len(updating) > 1 else None,
    }


def resident_peak(interval: int, **training: Any) -> dict[str, int]:
    """{"peak", "update_peak"}: bytes, in a plain step, and with updates as well.

    Resident memory above what the same training of a tiny layer leaves: the libraries' code is loaded by then.
    """
    tiny = Training(interval=interval, **(training | {"width": 64, "edges": training["edges"] and 1}))
    for _ in range(interval + 1):
        tiny.step()
    resident.reset_peak()
    before = resident.now()
    running = Training(interval=interval, **training)
    running.step()
    peaks = {False: 0, True: 0}
    for _ in range(interval + 1):
        resident.reset_peak()
        updated = running.step()
        peaks[updated] = max(peaks[updated], resident.peak() - before)
    return {"peak": peaks[False], "update_peak": max(peaks.values())}
