"""A pattern's arrays in plain torch: checked, transposed, and as sorted keys ``col * n_rows + row``."""

import torch
from torch import Tensor

from sparsekern.backends.topology.numbers import read

Arrays = tuple[Tensor, Tensor, Tensor, Tensor, Tensor]

# No key: above all, since a matrix has at most 2**62 places.
NO_KEY = 2**63 - 1


def _first(bad: Tensor) -> Tensor:
    """The first place where ``bad`` (n,), n where there is none."""
    size = bad.numel()
    if size == 0:
        return torch.zeros((), dtype=torch.int64, device=bad.device)
    return torch.arange(size, device=bad.device).masked_fill_(~bad, size).amin()


def _owners(pointers: Tensor, nnz: int) -> Tensor:
    """The column (row) (nnz,) int64 of each entry of a good CSC (CSR) pair: as many as end at the entry or before."""
    ends = pointers[1:].long()
    ended = torch.zeros(nnz + 1, dtype=torch.int64, device=pointers.device)
    ended.index_add_(0, ends, torch.ones_like(ends))
    return ended[:-1].cumsum(0)


def check_compressed(pointers: Tensor, indices: Tensor, n_minor: int) -> tuple[str, int]:
    nnz, device = indices.numel(), indices.device
    decreasing = _first(pointers.diff() < 0)
    starts = torch.zeros(nnz + 1, dtype=torch.bool, device=device)
    starts.index_fill_(0, pointers.long().clamp(0, nnz), True)
    before = indices.roll(1)  # the first is asked about none: a column starts there
    outside = (indices < 0) | (indices >= n_minor)
    k = _first(outside | (~starts[:-1] & (indices <= before)))
    at = k.clamp(max=max(0, nnz - 1)).view(1)
    if nnz:
        is_outside, is_repeated = outside.index_select(0, at), indices.index_select(0, at) == before.index_select(0, at)
    else:
        is_outside = is_repeated = starts[:1]
    first, last, row, place, is_range, is_duplicate = read(
        [pointers[0], pointers[-1], decreasing, k, is_outside[0], is_repeated[0]]
    )
    if first != 0:
        return "pointer_start", 0
    if row < pointers.numel() - 1:
        return "pointer_order", row + 1
    if last != nnz:
        return "pointer_end", pointers.numel() - 1
    if place == nnz:
        return "", -1
    return "range" if is_range else "duplicate" if is_duplicate else "order", place


def check_transpose(arrays: Arrays) -> int:
    ccol, row, crow, col, permutation = arrays
    nnz = row.numel()
    if nnz == 0:
        return -1
    slots = permutation.long()
    inside = slots.clamp(0, nnz - 1)
    columns = col.long()
    good = (
        (slots == inside)
        & (row.index_select(0, inside).long() == _owners(crow, nnz))
        & (slots >= ccol.index_select(0, columns))
        & (slots < ccol.index_select(0, columns + 1))
    )
    (place,) = read([_first(~good)])
    return place if place < nnz else -1


def transpose(pointer: Tensor, index: Tensor, n_minor: int) -> tuple[Tensor, Tensor, Tensor]:
    by_minor, order = index.sort(stable=True)
    minors = torch.arange(n_minor + 1, dtype=index.dtype, device=index.device)
    owners = _owners(pointer, index.numel()).to(index.dtype)
    return (
        torch.searchsorted(by_minor, minors).to(pointer.dtype),
        owners.index_select(0, order),
        order.to(pointer.dtype),
    )


def stored_keys(ccol: Tensor, row: Tensor, shape: tuple[int, int]) -> Tensor:
    """(nnz,) int64 keys of a good CSC pair, ascending."""
    return _owners(ccol, row.numel()).mul_(shape[0]).add_(row)


def sorted_keys(rows: Tensor, cols: Tensor, shape: tuple[int, int]) -> tuple[Tensor, int]:
    bad = (rows < 0) | (rows >= shape[0]) | (cols < 0) | (cols >= shape[1])
    (place,) = read([_first(bad)])
    return (cols * shape[0] + rows).sort().values, place if place < rows.numel() else -1


def unpack_keys(keys: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    rows, cols = shape
    starts = torch.arange(cols + 1, device=keys.device).mul_(rows)
    return torch.searchsorted(keys, starts).to(dtype), keys.remainder(max(1, rows)).int()


def unpack_checked(keys: Tensor, shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, Tensor, int]:
    (place,) = read([_first(keys.diff() == 0)])
    return *unpack_keys(keys, shape, dtype), place + 1 if place + 1 < keys.numel() else -1


def contains(keys: Tensor, asked: Tensor) -> Tensor:
    """Which of ``asked`` (n,) are among the sorted ``keys``: (n,) bool."""
    if keys.numel() == 0:
        return torch.zeros_like(asked, dtype=torch.bool)
    places = torch.searchsorted(keys, asked).clamp_(max=keys.numel() - 1)
    return keys.index_select(0, places) == asked


def absent(keys: Tensor, which: Tensor) -> Tensor:
    """The ``which``-th (from 0) of the numbers 0, 1, ... that are not among sorted, distinct ``keys`` (NO_KEY aside).

    Before keys[j] lie keys[j] - j such numbers.
    """
    before = keys - torch.arange(keys.numel(), device=keys.device)  # falls where all is NO_KEY, far above any number
    return which + torch.searchsorted(before, which, right=True)


def first_present(ccol: Tensor, row: Tensor, shape: tuple[int, int], keys: Tensor) -> int:
    (place,) = read([_first(contains(stored_keys(ccol, row, shape), keys))])
    return place if place < keys.numel() else -1


def same_edges(one: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    ccol, row = ((mine == theirs.to(mine.device)).all() for mine, theirs in zip(one, other, strict=True))
    return ccol & row
