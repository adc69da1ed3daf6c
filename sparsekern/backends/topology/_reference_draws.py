"""Random sets of places in plain torch, with sizes that are known beforehand.

What is not drawn yet when a fixed number of draws is over is made up for: by places that no chance decided where that
has a probability below 1e-18, else by places that are marked as not drawn.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern.backends.topology._reference_arrays import NO_KEY, absent, contains, stored_keys, unpack_keys
from sparsekern.backends.topology.seed import generator_on

_ROUNDS = 8  # of draws by weight
_DRAWS_PER_EDGE = 16
_MORE_DRAWS = 512  # a round

# Weights are rounded to shares of this: running sums of integers do not depend on how a device cuts them up.
_WHOLE = 2.0**60


def distinct_below(bound: int, count: int, generator: torch.Generator | None) -> Tensor:
    """``count`` distinct keys below ``bound``, (count,) int64, sorted, on the generator's device (None: the CPU).

    All sets of them are alike likely, but for bound / 2**64 of a key's probability, by which torch.randint is uneven.
    """
    device = torch.device("cpu") if generator is None else generator.device
    return _distinct_below(bound, count, device, generator)


def _distinct_below(bound: int, count: int, device: torch.device, generator: torch.Generator | None) -> Tensor:
    if count > bound // 2:
        every = torch.arange(count, device=device)
        return every if count == bound else absent(_distinct_below(bound, bound - count, device, generator), every)
    # The first so many different ones of independent draws. Of that number of draws the mean is this, and the standard
    # deviation at most sqrt(count).
    mean = -bound * math.log1p(-count / bound) if count else 0.0
    draws = math.ceil(mean + 10 * math.sqrt(count) + 32)
    keys = torch.randint(max(1, bound), (draws,), generator=generator, dtype=torch.int64, device=device)
    return _filled(*_added(*_nothing(count, device), keys, keys[:0]))[0]


def _nothing(count: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """Room for ``count`` keys, and 0 for how many there are."""
    return torch.full((count,), NO_KEY, device=device), torch.zeros((), dtype=torch.int64, device=device)


def _added(found: Tensor, number: Tensor, draws: Tensor, taken: Tensor) -> tuple[Tensor, Tensor]:
    """The keys found so far and, as long as there is room, those of the draws that are new, in the draws' order.

    Args:
        found: (count,) sorted keys, NO_KEY from ``number`` on.
        number: how many different keys were drawn, for which there may not have been room.
        draws: (n,) keys.
        taken: sorted keys that are never new.

    Returns:
        found and number after the draws.
    """
    count = found.numel()
    keys, order = draws.sort(stable=True)
    new = ~contains(taken, keys) & ~contains(found, keys)
    new[1:] &= keys[1:] != keys[:-1]
    rank = torch.empty_like(new).scatter_(0, order, new).cumsum(0).add_(number)
    keys.masked_fill_(~new | (rank.index_select(0, order) > count), NO_KEY)
    return torch.cat([found, keys]).sort().values[:count], rank[-1]


def _filled(found: Tensor, number: Tensor) -> tuple[Tensor, Tensor]:
    """Distinct, sorted keys in the place of NO_KEY too, the lowest that are not found; and which of all were found."""
    places = torch.arange(found.numel(), device=found.device)
    filler = absent(found, (places - number).clamp_(min=0))
    keys, order = torch.where(places < number, found, filler).sort()
    return keys, order < number


def draw_uniform(
    ccol: Tensor, row: Tensor, shape: tuple[int, int], count: int, generator: torch.Generator
) -> tuple[Tensor, Tensor]:
    inactive = shape[0] * shape[1] - row.numel()
    which = _distinct_below(inactive, count, row.device, generator_on(row.device, generator))
    return unpack_keys(absent(stored_keys(ccol, row, shape), which), shape, ccol.dtype)


def draw_weighted(
    ccol: Tensor,
    row: Tensor,
    shape: tuple[int, int],
    row_weights: Tensor,
    col_weights: Tensor,
    epsilon: float,
    count: int,
    generator: torch.Generator,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | bool]:
    """As the extension's, in ``_ROUNDS`` rounds of draws for all that are asked for, whether or not they are needed."""
    generator = generator_on(row.device, generator)
    rows, rows_finite = _lifted(row_weights, epsilon)
    cols, cols_finite = _lifted(col_weights, epsilon)
    weights = _EdgeWeights(rows, cols)
    active = stored_keys(ccol, row, shape)
    # Some more, so that a small layer does not give up after a few unlucky draws.
    draws = math.ceil(_DRAWS_PER_EDGE * count / _ROUNDS) + min(sum(shape), _MORE_DRAWS)
    found, number = _nothing(count, row.device)
    for _ in range(_ROUNDS):
        found, number = _added(found, number, weights.draw(draws, generator), active)
    keys, drawn = _filled(found, number)
    return *unpack_keys(keys, shape, ccol.dtype), drawn, rows_finite & cols_finite


def _lifted(weights: Tensor, epsilon: float) -> tuple[Tensor, Tensor]:
    """float64 weights with ``epsilon`` times their mean added, all alike where all are 0; and whether they are finite.

    All are alike too where they are not finite: nothing is then drawn in the end.
    """
    weights = weights.double()
    mean = weights.mean()
    finite = mean.isfinite()
    least = torch.where(mean > 0, epsilon * mean, 1.0)
    return torch.where(finite, weights + least, 1.0), finite


def _cumulative(weights: Tensor) -> Tensor:
    """(n,) int64: running sums of the weights' shares of 2**60, the same on every run."""
    return (weights / weights.sum()).mul_(_WHOLE).round_().long().cumsum(0)


class _EdgeWeights:
    """A matrix whose place (row, col) weighs row_weights[row] * col_weights[group of row, col].

    Args:
        row_weights: (rows,) float64, above 0.
        col_weights: (groups, cols) float64, above 0; rows are split evenly into the groups.
    """

    def __init__(self, row_weights: Tensor, col_weights: Tensor) -> None:
        groups, self._cols = col_weights.shape
        self._rows = row_weights.numel()
        self._group_rows = self._rows // groups
        of_group = row_weights.reshape(groups, -1).sum(1)
        self._cells = _cumulative((col_weights * of_group.unsqueeze(1)).flatten())
        self._by_row = _cumulative(row_weights)
        ends = self._by_row[self._group_rows - 1 :: self._group_rows]
        self._starts = torch.cat([ends.new_zeros(1), ends[:-1]])
        self._sizes = ends - self._starts

    def draw(self, count: int, generator: torch.Generator) -> Tensor:
        """(count,) int64 keys, drawn independently."""
        which, where = torch.rand(2, count, generator=generator, dtype=torch.float64, device=self._cells.device)
        cell = torch.searchsorted(self._cells, _scaled(which, self._cells[-1]), right=True)
        group = cell.div(self._cols, rounding_mode="floor")
        in_group = _scaled(where, self._sizes.index_select(0, group))
        row = torch.searchsorted(self._by_row, in_group + self._starts.index_select(0, group), right=True)
        return (cell - group * self._cols) * self._rows + row


def _scaled(unit: Tensor, size: Tensor) -> Tensor:
    """int64 in [0, size) from float64 in [0, 1): a product with a number below 1 is rounded to less than the size."""
    return (unit * size).long()


def signs(size: Sequence[int], device: torch.device, generator: torch.Generator) -> Tensor:
    drawn = torch.randint(2, size, generator=generator_on(device, generator), dtype=torch.int8, device=device)
    return drawn.mul_(2).sub_(1)
