"""Slots, csrc/cuda/slots.h, of edges that a plan has dealt to chunks and cells of a tile."""

from typing import NamedTuple

import torch
from torch import Tensor

from sparsekern.backends._cpu_linear import DTYPE_CODES
from sparsekern.backends.cuda.axes import ceil_div
from sparsekern.backends.cuda.extension import kernels
from sparsekern.backends.cuda.lists import most_groups
from sparsekern.backends.cuda.tiles import queue_of

GROUP = 16
BLOCK = 8


class SlotLayout(NamedTuple):
    pointers: Tensor  # (chunks * (blocks + 1) + 1,) int32
    places: Tensor  # (groups * 16,) int16
    edges: Tensor  # (groups * 16,) int32: the edge of each slot, -1 where there is none
    lists: Tensor  # (groups,) int32

    def pack(self, w: Tensor, dtype: torch.dtype) -> Tensor:
        """The slots (groups * 16,) int32 with the values w (nnz,), rounded to dtype."""
        slots = torch.empty_like(self.edges)
        kernels().pack_slots(
            queue_of(w),
            self.pointers[-1:].data_ptr(),
            self.lists.numel(),
            self.places.data_ptr(),
            self.edges.data_ptr(),
            w.data_ptr(),
            DTYPE_CODES[w.dtype],
            DTYPE_CODES[dtype],
            slots.data_ptr(),
        )
        return slots


def slot_groups(nnz: int, blocks: int, chunks: int) -> int:
    """Groups of slots that so many edges take at most."""
    return most_groups(nnz, blocks * chunks, GROUP)


def lay_slots(major: Tensor, chunk: Tensor, cell: Tensor, majors: int, chunks: int) -> SlotLayout:
    """The layout of edges at (major, chunk, cell), each (nnz,) int64, no two the same; ``majors`` is a multiple of 16."""
    device, nnz, most = major.device, major.numel(), kernels().MOST_MINORS
    minors = chunks * most
    keys, order = (major * minors + chunk * most + cell).sort()
    starts = torch.searchsorted(keys, torch.arange(majors + 1, device=device) * minors).int()
    minor, order = (keys % minors).int(), order.int()
    queue = queue_of(major)
    matrix = kernels().Compressed(starts.data_ptr(), minor.data_ptr(), order.data_ptr(), False, majors)
    cut = kernels().Cut(majors, minors, most)
    blocks = ceil_div(majors, BLOCK)
    counts = torch.empty(chunks * (blocks + 1), dtype=torch.int32, device=device)
    kernels().count_groups(queue, matrix, cut, counts.data_ptr())
    pointers = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=device)
    torch.cumsum(counts, 0, dtype=torch.int32, out=pointers[1:])
    groups = slot_groups(nnz, blocks, chunks)
    places = torch.empty(groups * GROUP, dtype=torch.int16, device=device)
    edges = torch.full((groups * GROUP,), -1, dtype=torch.int32, device=device)
    lists = torch.empty(groups, dtype=torch.int32, device=device)
    addresses = (tensor.data_ptr() for tensor in (pointers, places, edges, lists))
    kernels().fill_layout(queue, matrix, cut, *addresses)
    return SlotLayout(pointers, places, edges, lists)
