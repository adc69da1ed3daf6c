"""sparselab's layer."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.libraries.candidate import Candidate

NAME = "sparselab"


def layers(dense: nn.Linear, mask: Tensor) -> list[Candidate]:
    import sparselab
    from sparselab import layout

    layer = sparselab.SparseLinear(dense.in_features, dense.out_features, sparsity=0.999)
    csr = layout.from_dense(dense.weight.detach() * mask)
    layer._csr = csr
    layer._values = nn.Parameter(torch.from_numpy(np.asarray(csr.values)))
    with torch.no_grad():
        layer.bias.copy_(dense.bias)
    starts, lengths = (torch.from_numpy(np.array(rows)) for rows in (csr.row_start, csr.row_nnz))
    # Rows are padded: an edge's slot is its row's start and its place in the row.
    ends = lengths.cumsum(0)
    slots = torch.arange(int(ends[-1])) + (starts - (ends - lengths)).repeat_interleave(lengths)
    return [Candidate(NAME, layer, [layer._values, layer.bias], lambda: layer._values.grad[slots])]
