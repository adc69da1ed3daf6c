"""sparsekern: PyTorch layers that train always sparse."""

import torch  # noqa: F401  (first: the extension finds torch's libraries already loaded)

from sparsekern.nn import SparseConv2d, SparseLayer, SparseLinear
from sparsekern.pattern import Pattern

__version__ = "0.1.0"

__all__ = ["Pattern", "SparseConv2d", "SparseLayer", "SparseLinear"]
