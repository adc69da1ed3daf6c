"""sparsekern: PyTorch layers that train always sparse."""

import torch  # noqa: F401  (first: the extension finds torch's libraries already loaded)

from sparsekern import nn, testing
from sparsekern.counting import count_model
from sparsekern.fuse import fuse
from sparsekern.growth import GSE, SET, RigL, Static
from sparsekern.nn import SparseConv2d, SparseLayer, SparseLinear, SparseMultiheadAttention
from sparsekern.pattern import Pattern
from sparsekern.sparsify import sparsify

__version__ = "0.1.0"

__all__ = [
    "GSE",
    "SET",
    "Pattern",
    "RigL",
    "SparseConv2d",
    "SparseLayer",
    "SparseLinear",
    "SparseMultiheadAttention",
    "Static",
    "count_model",
    "fuse",
    "nn",
    "sparsify",
    "testing",
]
