"""Edges chosen, exchanged and followed by their values, in plain torch. Marks are a bool for each value."""

import torch
from torch import Tensor

from sparsekern.backends.topology._reference_arrays import NO_KEY, Arrays, stored_keys, transpose, unpack_keys
from sparsekern.backends.topology.numbers import Number
from sparsekern.backends.topology.writes import Writes


def mark_positions(positions: Tensor, size: int) -> Tensor:
    return torch.zeros(size, dtype=torch.bool, device=positions.device).index_fill_(0, positions, True)


def _by_magnitude(values: Tensor, largest: bool) -> Tensor:
    """The positions in the order in which they are taken: a NaN as the smallest, of equal ones the first."""
    magnitudes = values.to(torch.promote_types(values.dtype, torch.float32)).abs()
    return magnitudes.masked_fill_(magnitudes.isnan(), -1).sort(stable=True, descending=largest).indices


def mark_by_magnitude(values: Tensor, count: Number, *, largest: bool) -> Tensor:
    order = _by_magnitude(values, largest)
    taken = torch.arange(values.numel(), device=values.device) < count
    return torch.empty_like(taken).scatter_(0, order, taken)


def select_by_magnitude(values: Tensor, count: int, *, largest: bool) -> Tensor:
    return _by_magnitude(values, largest)[:count].sort().values


def mark_candidates(row: Tensor, valid: Tensor | None, scores: Tensor | None, count: Number) -> Tensor:
    if scores is not None:
        # A NaN is taken last, and as many as are asked for have a number.
        return mark_by_magnitude(
            scores if valid is None else scores.masked_fill(~valid, torch.nan), count, largest=True
        )
    if valid is None:
        return torch.arange(row.numel(), device=row.device) < count
    return valid & (valid.cumsum(0) <= count)


def all_finite(values: Tensor, valid: Tensor | None = None) -> Tensor:
    finite = values.isfinite()
    return (finite if valid is None else finite.logical_or_(~valid)).all()


def exchange(
    arrays: Arrays,
    pruned: Tensor,
    candidates: tuple[Tensor, Tensor],
    chosen: Tensor,
    count: Number,
    writes: Writes,
) -> Tensor:
    ccol, row, crow, _, _ = arrays
    nnz, shape = row.numel(), (crow.numel() - 1, ccol.numel() - 1)
    stay = stored_keys(ccol, row, shape).masked_fill_(pruned, NO_KEY)
    come = stored_keys(*candidates, shape).masked_fill_(~chosen, NO_KEY)
    keys, places = torch.cat([stay, come]).sort()
    new_ccol, new_row = unpack_keys(keys[:nnz], shape, ccol.dtype)
    contents = (new_ccol, new_row, *transpose(new_ccol, new_row, shape[0]))
    for array, content in zip(arrays, contents, strict=True):
        writes.put(array, content)
    return places[:nnz] >= nnz


def sources(pruned: Tensor, grown: Tensor, size: int) -> Tensor:
    slots = torch.arange(size, device=pruned.device)
    # The kept edges stay in order: the j-th of them has the j-th slot that is not pruned, and later not grown.
    kept = torch.empty(size + 1, dtype=torch.int64, device=pruned.device)
    kept.scatter_(0, ((~pruned).cumsum(0) - 1).masked_fill_(pruned, size), slots)
    place = ((~grown).cumsum(0) - 1).clamp_(min=0)
    return kept.index_select(0, place).masked_fill_(grown, -1)


def move_values(pruned: Tensor, grown: Tensor, values: Tensor, writes: Writes) -> None:
    source = sources(pruned, grown, values.numel()).to(values.device)
    moved = values.detach().index_select(0, source.clamp(min=0)).masked_fill_(source < 0, 0)
    writes.put(values, moved)
