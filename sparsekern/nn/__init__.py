"""Sparse layers that take the place of torch's dense ones."""

from sparsekern.nn.conv2d import SparseConv2d
from sparsekern.nn.layer import SparseLayer
from sparsekern.nn.linear import SparseLinear

__all__ = ["SparseConv2d", "SparseLayer", "SparseLinear"]
