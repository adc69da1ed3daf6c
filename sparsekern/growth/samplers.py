"""Candidates: edges that a layer does not have, drawn by one of GSE's three distributions."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.growth.ranks import WHOLE_BATCH, GlobalBatch
from sparsekern.growth.statistics import absolute_sums, sketched_sums
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern, draw_seed, pointer_dtype

# Draws up to `count` candidates of a layer from (layer, x, grad, count, generator, batch), where x and grad are a part
# of the batch. Raises FloatingPointError where the batch's are not finite.
Sampler = Callable[..., Pattern]

# Added to every weight, in units of their mean: no row or column is ever impossible, so that a layer where
# most of them are silent still has candidates.
EPSILON = 1e-6


def sample_uniform(pattern: Pattern, count: int, generator: torch.Generator) -> Pattern:
    """``count`` distinct edges that are not in ``pattern`` (all if there are fewer), all sets alike likely.

    Time and memory are O(rows + cols + nnz + count).
    """
    return _draw(pattern, min(count, inactive(pattern)), generator)


def sample_weighted(
    pattern: Pattern, row_weights: Tensor, col_weights: Tensor, count: int, generator: torch.Generator
) -> Pattern:
    """Up to ``count`` distinct edges that are not in ``pattern``, drawn by weight; all if there are no more.

    Each is drawn with a probability proportional to ``row_weights[row] * col_weights[group of row, col]``
    among those that are neither in the pattern nor drawn yet. Rows and columns are drawn on their own,
    repeats and active edges are drawn again, and after 16 draws for each edge asked for what was found is
    returned. Time and memory are O(rows + cols + nnz + count).

    Args:
        pattern: of the layer.
        row_weights: (rows,), not negative.
        col_weights: (groups, cols), not negative; rows are split evenly into the groups.
        count: candidates asked for.
        generator: a CPU generator; one number is drawn from it.

    Raises:
        FloatingPointError: if a weight is not finite.
    """
    if inactive(pattern) <= count:
        return sample_uniform(pattern, count, generator)
    # Copies: they are changed in place.
    rows, cols = (
        weights.detach().to(device="cpu", dtype=torch.float64, copy=True).contiguous()
        for weights in (row_weights, col_weights)
    )
    return _draw(pattern, count, generator, rows, cols)


def _draw(
    pattern: Pattern,
    count: int,
    generator: torch.Generator,
    row_weights: Tensor | None = None,
    col_weights: Tensor | None = None,
) -> Pattern:
    ccol, row = pattern.ccol_indices.cpu(), pattern.row_indices.cpu()
    ccol = ccol.to(torch.promote_types(ccol.dtype, pointer_dtype(count)))
    new_ccol, new_row = torch.empty_like(ccol), torch.empty(count, dtype=torch.int32, device="cpu")
    found = _C.draw_candidates(
        draw_seed(generator),
        ccol.data_ptr(),
        row.data_ptr(),
        *pattern.shape,
        1 if col_weights is None else col_weights.shape[0],
        0 if row_weights is None else row_weights.data_ptr(),
        0 if col_weights is None else col_weights.data_ptr(),
        EPSILON,
        count,
        new_ccol.data_ptr(),
        new_row.data_ptr(),
        ccol.dtype == torch.int64,
    )
    if found < 0:
        raise FloatingPointError("its activations or gradients hold values that are not finite")
    return Pattern.from_stored(pattern.shape, new_ccol, new_row[:found]).to(pattern.device)


def inactive(pattern: Pattern) -> int:
    """How many places of the matrix are not edges."""
    return pattern.shape[0] * pattern.shape[1] - pattern.nnz


def uniform(
    layer: SparseLayer,
    x: Tensor,
    grad: Tensor,
    count: int,
    generator: torch.Generator,
    batch: GlobalBatch = WHOLE_BATCH,
) -> Pattern:
    """Every candidate equally likely."""
    return sample_uniform(layer.pattern, count, generator)


def grabo(
    layer: SparseLayer,
    x: Tensor,
    grad: Tensor,
    count: int,
    generator: torch.Generator,
    batch: GlobalBatch = WHOLE_BATCH,
) -> Pattern:
    """By the upper bound of each weight's gradient: abs(h delta^T) <= (abs(h) 1) (abs(delta) 1)^T."""
    f, g = absolute_sums(layer, x, grad, batch)
    return sample_weighted(layer.pattern, g, f, count, generator)


def graest(
    layer: SparseLayer,
    x: Tensor,
    grad: Tensor,
    count: int,
    generator: torch.Generator,
    batch: GlobalBatch = WHOLE_BATCH,
) -> Pattern:
    """By a random estimate of each weight's gradient, from sums of the batch under the same random signs."""
    f, g = sketched_sums(layer, x, grad, generator, batch)
    return sample_weighted(layer.pattern, g, f, count, generator)


SAMPLERS: dict[str, Sampler] = {"uniform": uniform, "grabo": grabo, "graest": graest}
