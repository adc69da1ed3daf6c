"""sparsekern's own layers."""

from __future__ import annotations

from torch import Tensor, nn

from benchmarks.libraries.candidate import Candidate
from sparsekern.nn import SparseConv2d, SparseLinear

NAME = "sparsekern"


def layer(dense: nn.Linear | nn.Conv2d, mask: Tensor) -> Candidate:
    cls = SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d
    sparse = cls.from_dense(dense, mask=mask)
    return Candidate(NAME, sparse, list(sparse.parameters()), lambda: sparse.weight.grad[sparse.permutation.long()])
