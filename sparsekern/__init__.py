"""sparsekern: PyTorch layers that train always sparse."""

import torch  # noqa: F401  (first: the extension finds torch's libraries already loaded)

from sparsekern import masks, nn, testing
from sparsekern.backends.choice import backend
from sparsekern.counting import count_model
from sparsekern.fuse import fuse
from sparsekern.growth import GSE, SET, RigL, Static
from sparsekern.nn import SparseConv2d, SparseLayer, SparseLinear, SparseMultiheadAttention
from sparsekern.nn.served import backend_of
from sparsekern.pattern import Pattern
from sparsekern.sparsify import sparsify
from sparsekern.tost import ToST

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
    "ToST",
    "backend",
    "backend_of",
    "count_model",
    "fuse",
    "masks",
    "nn",
    "sparsify",
    "testing",
]
