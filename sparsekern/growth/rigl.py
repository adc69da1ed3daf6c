"""The rigged lottery."""

import torch
from torch import Tensor

from sparsekern.backends.choice import topology_of
from sparsekern.growth.base import Growth
from sparsekern.growth.candidates import Candidates
from sparsekern.growth.largest import largest_of_sum
from sparsekern.growth.samplers import inactive
from sparsekern.growth.select import all_finite, select_by_magnitude
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern


class RigL(Growth):
    """Grows the edges with the largest gradient of all (Evci et al. 2020), in :class:`Growth`'s schedule.

    DENSE at update steps: backward computes each layer's dense weight gradient, one layer at a time, and
    frees it at once. With gradient accumulation, the nnz edges with the largest gradient of the first
    micro-batch are the candidates that all micro-batches score. On several ranks each computes that of its part of the
    batch, and they find the largest of the sum without sending all of it (docs/distributed.md).
    """

    def propose(self, layer: SparseLayer, x: Tensor, grad: Tensor, asked: int, generator: torch.Generator) -> Pattern:
        pattern = layer.pattern
        count = min(layer.nnz, inactive(pattern))
        by_column = self._dense_grad(layer, x, grad).t().contiguous().view(-1)
        finite = all_finite(by_column)  # or edges of the layer could be among the NaNs that are taken below
        rows, cols = pattern.edges()
        by_column.index_fill_(0, cols * pattern.shape[0] + rows, torch.nan)  # the smallest to select_by_magnitude
        if self.ranks is None:
            keys = select_by_magnitude(by_column, count, largest=True)
        else:
            keys, finite = largest_of_sum(by_column, finite, count, self.ranks, generator)
        ccol, row = topology_of(keys.device).unpack_keys(keys, pattern.shape, pattern.ccol_indices.dtype)
        return Candidates.drawn(pattern.shape, ccol, row, finite=finite)

    def _dense_grad(self, layer: SparseLayer, x: Tensor, grad: Tensor) -> Tensor:
        """Of this rank's part of the batch, (rows, columns)."""
        if self.ranks is None:
            return layer.dense_weight_grad(grad, x)
        dtype = torch.promote_types(layer.weight.dtype, torch.float32)
        if x.numel() == 0:
            return layer.weight.new_zeros(layer.matrix_shape, dtype=dtype)
        return layer.dense_weight_grad(grad, x).to(dtype)
