"""Sparse evolutionary training."""

import torch
from torch import Tensor

from sparsekern.growth.base import Growth
from sparsekern.growth.samplers import sample_uniform
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern


class SET(Growth):
    """Grows random edges (Mocanu et al. 2018), in :class:`Growth`'s schedule; no gradient is needed."""

    needs_backward = False

    def propose(self, layer: SparseLayer, x: Tensor, grad: Tensor, asked: int, generator: torch.Generator) -> Pattern:
        return sample_uniform(layer.pattern, asked, generator)
