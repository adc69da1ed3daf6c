"""Edges dealt to lists, each of which begins at a multiple of some number of places: on the device, without waiting."""

from typing import NamedTuple

import torch
from torch import Tensor


class Lists(NamedTuple):
    """Edges by list."""

    begins: Tensor  # (lists + 1,) int64: the first group of each list and the end of the last
    sizes: Tensor  # (lists,) int64: its edges
    order: Tensor  # (nnz,) int64: edges by list, within one as they are stored
    places: Tensor  # (nnz,) int64: where each of these lies

    def place(self, values: Tensor, room: int, empty: int, dtype: torch.dtype) -> Tensor:
        """(room,) of dtype: the value of the edge at each place, ``empty`` where there is none. values: (nnz,)."""
        placed = torch.full((room,), empty, dtype=dtype, device=values.device)
        return placed.index_copy_(0, self.places, values.index_select(0, self.order).to(dtype))

    def sources(self, room: int) -> Tensor:
        """(room,) int32: the edge at each place, -1 where there is none."""
        placed = torch.full((room,), -1, dtype=torch.int32, device=self.order.device)
        return placed.index_copy_(0, self.places, self.order.int())


def most_groups(nnz: int, lists: int, size: int) -> int:
    """Groups of ``size`` places that so many edges in so many lists take at most."""
    return min(nnz, nnz // size + lists)


def deal(keys: Tensor, lists: int, size: int) -> Lists:
    """Deals edges to lists by ``keys``, (nnz,) int64 below ``lists``. Lists begin at groups of ``size`` places."""
    in_order, order = keys.sort(stable=True)
    starts = torch.searchsorted(in_order, torch.arange(lists + 1, device=keys.device))
    sizes = starts.diff()
    begins = torch.zeros(lists + 1, dtype=torch.int64, device=keys.device)
    torch.cumsum((sizes + size - 1).div_(size, rounding_mode="floor"), 0, out=begins[1:])
    within = torch.arange(keys.numel(), device=keys.device) - starts.index_select(0, in_order)
    return Lists(begins, sizes, order, begins.index_select(0, in_order) * size + within)
