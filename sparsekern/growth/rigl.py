"""The rigged lottery."""

import torch
from torch import Tensor

from sparsekern.growth.base import Growth
from sparsekern.growth.samplers import inactive
from sparsekern.growth.select import select_by_magnitude
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern


class RigL(Growth):
    """Grows the edges with the largest gradient of all (Evci et al. 2020), in :class:`Growth`'s schedule.

    DENSE at update steps: backward computes each layer's dense weight gradient, one layer at a time, and
    frees it at once. With gradient accumulation, the nnz edges with the largest gradient of the first
    micro-batch are the candidates that all micro-batches score.
    """

    def propose(self, layer: SparseLayer, x: Tensor, grad: Tensor, asked: int, generator: torch.Generator) -> Pattern:
        pattern = layer.pattern
        by_column = layer.dense_weight_grad(grad, x).t().contiguous()
        rows, cols = pattern.edges()
        by_column[cols, rows] = torch.nan  # the smallest there is to select_by_magnitude
        keys = select_by_magnitude(by_column.view(-1), min(layer.nnz, inactive(pattern)), largest=True)
        return Pattern.from_sorted_keys(pattern.shape, keys.cpu()).to(pattern.device)
