"""Initial values of sparse layers."""

import math

import torch
from torch import Tensor

from sparsekern.pattern import Pattern


def fan_in_bounds(pattern: Pattern, dtype: torch.dtype) -> Tensor:
    """Bounds (rows,) b = sqrt(3 / max(1, fan-in)) of each row's uniform draw, with the row's ACTUAL fan-in.

    A row's values then have variance 1 / fan-in, whatever its share of the edges (GSE paper, arXiv 2401.06898,
    section 4; its code draws U(-b, b) with b = sqrt(3) / sqrt(fan-in)).
    """
    return math.sqrt(3.0) * pattern.fan_in().clamp(min=1).to(dtype).rsqrt()


@torch.no_grad()
def fan_in_uniform_(
    weight: Tensor, bias: Tensor | None, pattern: Pattern, generator: torch.Generator | None = None
) -> None:
    """Fills ``weight`` (nnz,) and ``bias`` (rows,) from U(-b, b), b being each row's :func:`fan_in_bounds`."""
    bounds = fan_in_bounds(pattern, weight.dtype)
    rows, _ = pattern.edges()
    weight.uniform_(-1.0, 1.0, generator=generator).mul_(bounds.index_select(0, rows))
    if bias is not None:
        bias.uniform_(-1.0, 1.0, generator=generator).mul_(bounds.to(bias.dtype))
