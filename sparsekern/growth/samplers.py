"""Candidates: edges that a layer does not have, drawn by one of GSE's three distributions."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.growth.statistics import absolute_sums, sketched_sums
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern, draw_seed

# Draws up to `count` candidates of a layer from (layer, x, grad, count, generator). Raises FloatingPointError
# where x or grad is not finite.
Sampler = Callable[[SparseLayer, Tensor, Tensor, int, torch.Generator], Pattern]

# Added to every weight, in units of their mean: no row or column is ever impossible, so that a layer where
# most of them are silent still has candidates.
EPSILON = 1e-6


def sample_uniform(pattern: Pattern, count: int, generator: torch.Generator) -> Pattern:
    """``count`` distinct edges that are not in ``pattern`` (all if there are fewer), all sets alike likely.

    Time and memory are O(rows + cols + nnz + count).
    """
    keys = torch.empty(min(count, inactive(pattern)), dtype=torch.int64, device="cpu")
    ccol, row = pattern.ccol_indices.cpu(), pattern.row_indices.cpu()
    _C.inactive_edges(
        draw_seed(generator),
        ccol.data_ptr(),
        row.data_ptr(),
        *pattern.shape,
        keys.numel(),
        keys.data_ptr(),
        ccol.dtype == torch.int64,
    )
    return Pattern.from_sorted_keys(pattern.shape, keys).to(pattern.device)


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
    rows, cols = _positive(row_weights), _positive(col_weights)
    keys = torch.empty(count, dtype=torch.int64, device="cpu")
    ccol, row = pattern.ccol_indices.cpu(), pattern.row_indices.cpu()
    found = _C.weighted_edges(
        draw_seed(generator),
        ccol.data_ptr(),
        row.data_ptr(),
        *pattern.shape,
        cols.shape[0],
        rows.data_ptr(),
        cols.data_ptr(),
        count,
        keys.data_ptr(),
        ccol.dtype == torch.int64,
    )
    return Pattern.from_sorted_keys(pattern.shape, keys[:found]).to(pattern.device)


def inactive(pattern: Pattern) -> int:
    """How many places of the matrix are not edges."""
    return pattern.shape[0] * pattern.shape[1] - pattern.nnz


def uniform(layer: SparseLayer, x: Tensor, grad: Tensor, count: int, generator: torch.Generator) -> Pattern:
    """Every candidate equally likely."""
    return sample_uniform(layer.pattern, count, generator)


def grabo(layer: SparseLayer, x: Tensor, grad: Tensor, count: int, generator: torch.Generator) -> Pattern:
    """By the upper bound of each weight's gradient: abs(h delta^T) <= (abs(h) 1) (abs(delta) 1)^T."""
    f, g = absolute_sums(layer, x, grad)
    return sample_weighted(layer.pattern, g, f, count, generator)


def graest(layer: SparseLayer, x: Tensor, grad: Tensor, count: int, generator: torch.Generator) -> Pattern:
    """By a random estimate of each weight's gradient, from sums of the batch under the same random signs."""
    f, g = sketched_sums(layer, x, grad, generator)
    return sample_weighted(layer.pattern, g, f, count, generator)


SAMPLERS: dict[str, Sampler] = {"uniform": uniform, "grabo": grabo, "graest": graest}


def _positive(weights: Tensor) -> Tensor:
    """float64 on the CPU, with EPSILON; alike where all are 0."""
    weights = weights.detach().to(device="cpu", dtype=torch.float64)
    mean = float(weights.mean())
    if not mean < float("inf"):
        raise FloatingPointError("its activations or gradients hold values that are not finite")
    return (weights + (EPSILON * mean if mean > 0 else 1.0)).contiguous()
