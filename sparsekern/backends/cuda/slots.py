"""Sparse matrices as tensor cores take them: a slot for each nonzero (the format is csrc/cuda/slots.h's).

A layout follows from the indices and is kept as long as they live; the values are packed into it at each product.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekern.backends.cuda.extension import kernels, queue_of
from sparsekern.backends.kept import KeptOnDevice

DTYPE_CODES = {torch.float32: 0, torch.bfloat16: 2, torch.float16: 3}
GROUP = 16
# Groups that one block of the values' gradient works on: a chunk of its layout is filled up to a multiple.
GROUPS_A_BLOCK = 512
MOST_MINORS = 8192


@dataclass(frozen=True)
class Layout:
    """Where the edges of a sparse matrix are among the slots.

    Attributes:
        cut: how it is cut, as the kernels take it.
        chunk: minors of a chunk.
        order: (sets, minors) int16, the order in which minors lie in their chunk, see csrc/cuda/minor_order.h; None: as
            they come.
        most_groups: the groups there is room for, at least as many as there are; those are counted on the device alone.
        pointers, places, edges, lists: see csrc/cuda/slots.h.
    """

    cut: Any
    chunk: int
    order: Tensor | None
    most_groups: int
    pointers: Tensor
    places: Tensor
    edges: Tensor
    lists: Tensor

    @property
    def groups(self) -> int:
        """The address of the number of groups, int32 on the device."""
        return self.pointers.data_ptr() + 4 * (self.pointers.numel() - 1)

    @property
    def order_address(self) -> int:
        return 0 if self.order is None else self.order.data_ptr()


_kept: KeptOnDevice[dict[tuple[int, int, int], Layout]] = KeptOnDevice()


def layout(
    pointers: Tensor,
    minors: Tensor,
    permutation: Tensor | None,
    size: int,
    chunk: int,
    filled: int,
    set_blocks: int = 0,
) -> Layout:
    """The layout of a compressed matrix with ``size`` minors, made where none is kept; nothing waits for the device.

    Args:
        pointers: (majors + 1,), int32 or int64.
        minors: (nnz,) int32, ascending within each major.
        permutation: (nnz,), as the pointers: the edge at each place; None: the place itself.
        chunk: minors of a chunk.
        filled: where there are several chunks, each one's groups are made a multiple of this.
        set_blocks: blocks of 8 majors that have an order of the minors together: an even number, or at least as many
            as there are; 0: minors lie as they come.
    """
    tensors = [tensor for tensor in (pointers, permutation, minors) if tensor is not None]
    known = _kept.get(*tensors)
    if known is None:
        known = {}
        _kept.put(known, *tensors)
    key = chunk, filled if size > chunk else 1, set_blocks
    if key not in known:
        known[key] = _made(pointers, minors, permutation, size, *key)
    return known[key]


def _orders(pointers: Tensor, minors: Tensor, cut: Any) -> tuple[Tensor, Tensor]:
    """The minors' order in their chunks and their places in it, each (sets, minors) int16."""
    by_minor, edges = minors.sort(stable=True)
    majors = torch.searchsorted(pointers[1:], edges.to(pointers.dtype), right=True, out_int32=True)
    every = torch.arange(cut.minors + 1, dtype=minors.dtype, device=minors.device)
    starts = torch.searchsorted(by_minor, every, out_int32=True)
    order, places = torch.empty(2, cut.sets, cut.minors, dtype=torch.int16, device=minors.device)
    addresses = (tensor.data_ptr() for tensor in (starts, majors))
    kernels().order_minors(queue_of(minors), *addresses, cut, order.data_ptr(), places.data_ptr())
    return order, places


def _made(
    pointers: Tensor,
    minors: Tensor,
    permutation: Tensor | None,
    size: int,
    chunk: int,
    filled: int,
    set_blocks: int,
) -> Layout:
    module, queue, device = kernels(), queue_of(minors), minors.device
    majors, nnz = pointers.numel() - 1, minors.numel()
    pointers, minors = pointers.contiguous(), minors.int().contiguous()
    permutation = None if permutation is None else permutation.to(pointers.dtype).contiguous()
    matrix = module.Compressed(
        pointers.data_ptr(),
        minors.data_ptr(),
        0 if permutation is None else permutation.data_ptr(),
        pointers.dtype == torch.int64,
        majors,
    )
    cut = module.Cut(majors, size, chunk, set_blocks)
    order, in_chunk = _orders(pointers, minors, cut) if set_blocks else (None, None)
    counts = torch.empty(cut.chunks, cut.blocks + 1, dtype=torch.int32, device=device)
    module.count_groups(queue, matrix, cut, counts.data_ptr())
    if filled > 1:
        counts[:, -1] = (-counts.sum(1)) % filled
    starts = torch.zeros(counts.numel() + 1, dtype=torch.int32, device=device)
    torch.cumsum(counts.view(-1), 0, dtype=torch.int32, out=starts[1:])
    # Each list that has edges ends in a group that may be all but empty.
    most_groups = nnz // GROUP + min(cut.chunks * cut.blocks, nnz) + cut.chunks * (filled - 1)
    made = Layout(
        cut,
        chunk,
        order,
        most_groups,
        starts,
        torch.empty(most_groups * GROUP, dtype=torch.int16, device=device),
        torch.empty(most_groups * GROUP, dtype=torch.int32, device=device),
        torch.empty(most_groups, dtype=torch.int32, device=device),
    )
    addresses = (tensor.data_ptr() for tensor in (made.pointers, made.places, made.edges, made.lists))
    module.fill_layout(queue, matrix, cut, 0 if in_chunk is None else in_chunk.data_ptr(), *addresses)
    return made


def packed(made: Layout, values: Tensor, dtype: torch.dtype) -> Tensor:
    """The slots (int32, one more group than the layout's) with the values (nnz,) of its edges, rounded to ``dtype``.

    The last group is never used, but read: kernels ask for a group ahead of the one they work on.
    """
    slots = torch.empty((made.most_groups + 1) * GROUP, dtype=torch.int32, device=values.device)
    values = values.contiguous()
    kernels().pack_slots(
        queue_of(values),
        made.groups,
        made.most_groups,
        made.places.data_ptr(),
        made.edges.data_ptr(),
        values.data_ptr(),
        DTYPE_CODES[values.dtype],
        DTYPE_CODES[dtype],
        slots.data_ptr(),
    )
    return slots
