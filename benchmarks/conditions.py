"""Under what our layer is timed: the run's own threads and dtype and, to compare with, one thread or float32."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from benchmarks.admission import Problem
from benchmarks.libraries import ours
from benchmarks.libraries.candidate import Candidate
from benchmarks.options import Layers


@dataclass(frozen=True)
class Condition:
    """`name` is "" for the run's own."""

    name: str
    threads: int
    dtype: torch.dtype

    def layer(self, problem: Problem) -> Candidate:
        """sparsekern's layer with the problem's values in this dtype."""
        return ours.layer(copy.deepcopy(problem.layer).to(self.dtype), problem.mask)

    def step(self, candidate: Candidate) -> Callable[[tuple[Tensor, Tensor]], Callable[[], object]]:
        """What prepares a training step, untimed, from (input, output's gradient) in any dtype."""

        def prepare(inputs: tuple[Tensor, Tensor]) -> Callable[[], object]:
            torch.set_num_threads(self.threads)
            x, grad = inputs
            return candidate.prepare_step(x.to(self.dtype), grad.to(self.dtype))

        return prepare


def own(options: Layers) -> Condition:
    """The one that is asked for."""
    return Condition("", options.threads, getattr(torch, options.dtype))


def others(options: Layers) -> list[Condition]:
    """Those that it is compared with, one thread or float32, where it is neither."""
    asked = own(options)
    found = []
    if asked.threads > 1:
        found.append(Condition("one thread", 1, asked.dtype))
    if asked.dtype != torch.float32:
        found.append(Condition("float32", asked.threads, torch.float32))
    return found
