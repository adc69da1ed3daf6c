"""Guided stochastic exploration."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekern.growth.base import Growth
from sparsekern.growth.ranks import Group
from sparsekern.growth.samplers import SAMPLERS
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern


class GSE(Growth):
    """Grows the candidates with the largest gradient out of a random sample (arXiv 2401.06898, Alg. 1).

    ceil(gamma * nnz) candidates a layer are drawn in the backward pass of an update step (all inactive edges
    where there are no more), and only their gradients are computed, from that step's own batch. Time and
    memory of an update are O(rows + columns + nnz) a layer. With gradient accumulation, candidates are drawn
    by the first micro-batch and scored by all. On several ranks, rows + columns numbers a layer are added up in the
    backward pass, and the candidates' gradients, gamma * nnz numbers, before the update.

    Args:
        model, optimizer, alpha, interval, end, exclude, followers, generator, process_group: see :class:`Growth`.
        sampler: the candidates' distribution. "uniform": all alike. "grabo": by the sums of absolute inputs
            and of absolute output gradients, the factors of an upper bound of the gradient. "graest": by such
            sums under random signs, the factors of an estimate of the gradient.
        gamma: candidates per edge, above 0.
    """

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        sampler: str = "grabo",
        *,
        gamma: float = 1.0,
        alpha: float = 0.2,
        interval: int = 1000,
        end: int,
        exclude: Sequence[str] = (),
        followers: Sequence[nn.Module] = (),
        generator: torch.Generator | None = None,
        process_group: Group = None,
    ) -> None:
        if sampler not in SAMPLERS:
            raise ValueError(f"sampler is {sampler!r}; expected one of {', '.join(SAMPLERS)}")
        if not 0 < gamma < math.inf:
            raise ValueError(f"gamma is {gamma!r}; expected a positive number")
        self.sampler = sampler
        self.gamma = gamma
        super().__init__(
            model,
            optimizer,
            alpha=alpha,
            interval=interval,
            end=end,
            exclude=exclude,
            followers=followers,
            generator=generator,
            process_group=process_group,
        )

    def propose(self, layer: SparseLayer, x: Tensor, grad: Tensor, asked: int, generator: torch.Generator) -> Pattern:
        count = math.ceil(round(self.gamma * layer.nnz, 9))
        return SAMPLERS[self.sampler](layer, x, grad, count, generator, self.batch)

    def config(self) -> dict[str, Any]:
        return {**super().config(), "sampler": self.sampler, "gamma": self.gamma}
