"""Candidates: edges that a layer does not have, drawn by one of GSE's three distributions."""

from collections.abc import Callable

import torch
from torch import Tensor

from sparsekern.backends.choice import topology_of
from sparsekern.growth.candidates import Candidates
from sparsekern.growth.ranks import WHOLE_BATCH, GlobalBatch
from sparsekern.growth.statistics import absolute_sums, sketched_sums
from sparsekern.nn.layer import SparseLayer
from sparsekern.pattern import Pattern, pointer_dtype

# Draws up to `count` candidates of a layer from (layer, x, grad, count, generator, batch), where x and grad are a part
# of the batch. Raises FloatingPointError where the batch's are not finite, if the host knows.
Sampler = Callable[..., Candidates]

# Added to every weight, in units of their mean: no row or column is ever impossible, so that a layer where
# most of them are silent still has candidates.
EPSILON = 1e-6


def sample_uniform(pattern: Pattern, count: int, generator: torch.Generator) -> Candidates:
    """``count`` distinct edges that are not in ``pattern`` (all if there are fewer), all sets alike likely.

    Time and memory are O(rows + cols + nnz + count).
    """
    count = min(count, inactive(pattern))
    pair = topology_of(pattern.device).draw_uniform(*_stored(pattern, count), pattern.shape, count, generator)
    return Candidates.drawn(pattern.shape, *pair)


def sample_weighted(
    pattern: Pattern, row_weights: Tensor, col_weights: Tensor, count: int, generator: torch.Generator
) -> Candidates:
    """Up to ``count`` distinct edges that are not in ``pattern``, drawn by weight; all if there are no more.

    Each is drawn with a probability proportional to ``row_weights[row] * col_weights[group of row, col]``
    among those that are neither in the pattern nor drawn yet. Rows and columns are drawn on their own,
    repeats and active edges are drawn again, and after 16 draws for each edge asked for what was found is
    returned. Time and memory are O(rows + cols + nnz + count). On a device all 16 draws are made, and what was found
    is known there alone (:class:`Candidates`).

    Args:
        pattern: of the layer.
        row_weights: (rows,), not negative.
        col_weights: (groups, cols), not negative; rows are split evenly into the groups.
        count: candidates asked for.
        generator: a CPU generator, of which one number is taken, or one of the pattern's device.

    Raises:
        FloatingPointError: if a weight is not finite; on a device ``finite`` of the candidates says so.
    """
    if inactive(pattern) <= count:
        return sample_uniform(pattern, count, generator)
    weights = (side.detach().to(pattern.device) for side in (row_weights, col_weights))
    drawn = topology_of(pattern.device).draw_weighted(
        *_stored(pattern, count), pattern.shape, *weights, EPSILON, count, generator
    )
    return Candidates.drawn(pattern.shape, *drawn)


def _stored(pattern: Pattern, count: int) -> tuple[Tensor, Tensor]:
    """The stored pair, with pointers that can count ``count`` edges."""
    ccol = pattern.ccol_indices
    return ccol.to(torch.promote_types(ccol.dtype, pointer_dtype(count))), pattern.row_indices


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
) -> Candidates:
    """Every candidate equally likely."""
    return sample_uniform(layer.pattern, count, generator)


def grabo(
    layer: SparseLayer,
    x: Tensor,
    grad: Tensor,
    count: int,
    generator: torch.Generator,
    batch: GlobalBatch = WHOLE_BATCH,
) -> Candidates:
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
) -> Candidates:
    """By a random estimate of each weight's gradient, from sums of the batch under the same random signs."""
    f, g = sketched_sums(layer, x, grad, generator, batch)
    return sample_weighted(layer.pattern, g, f, count, generator)


SAMPLERS: dict[str, Sampler] = {"uniform": uniform, "grabo": grabo, "graest": graest}
