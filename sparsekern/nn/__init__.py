"""Sparse layers that take the place of torch's dense ones, and fused norms and activations for between them."""

from sparsekern.nn.attention import SparseMultiheadAttention
from sparsekern.nn.batch_norm import BatchNorm2d
from sparsekern.nn.conv2d import SparseConv2d
from sparsekern.nn.gelu import GELU
from sparsekern.nn.layer import SparseLayer
from sparsekern.nn.linear import SparseLinear

__all__ = ["GELU", "BatchNorm2d", "SparseConv2d", "SparseLayer", "SparseLinear", "SparseMultiheadAttention"]
