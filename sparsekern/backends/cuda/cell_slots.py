"""Slots of edges that a plan has dealt to chunks and cells of a tile: a sparse matrix whose columns are cells."""

import torch
from torch import Tensor

from sparsekern.backends.cuda.slots import GROUP, MOST_MINORS, Layout, layout

BLOCK = 8  # rows that share a list of groups


def most_slot_groups(nnz: int, rows: int, chunks: int) -> int:
    """Groups that so many edges take at most, in as many chunks of a matrix of so many rows."""
    return nnz // GROUP + min(nnz, rows // BLOCK * chunks)


def cell_slots(row: Tensor, chunk: Tensor, cell: Tensor, rows: int, chunks: int) -> Layout:
    """The layout of edges at (row, chunk, cell), each (nnz,) int64, no two the same. rows: a multiple of 16."""
    columns = chunks * MOST_MINORS
    keys, order = (row * columns + chunk * MOST_MINORS + cell).sort()
    starts = torch.searchsorted(keys, torch.arange(rows + 1, device=keys.device) * columns)
    return layout(starts.int(), (keys % columns).int(), order.int(), columns, MOST_MINORS, 1)


def edges_of_slots(made: Layout) -> Tensor:
    """The edge (room,) int32 of each slot, -1 where there is none, of the room behind the last group as well."""
    slots = torch.arange(made.edges.numel(), device=made.edges.device)
    return made.edges.masked_fill(slots >= made.pointers[-1] * GROUP, -1)
