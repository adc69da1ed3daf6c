"""Some of a row of values, marked: a bit for each, in int64 words of 64 on the CPU."""

import torch
from torch import Tensor

from sparsekern import _C


def new_marks(size: int) -> Tensor:
    """Marks of ``size`` values, contents undefined."""
    return torch.empty((size + 63) // 64, dtype=torch.int64, device="cpu")


def mark_positions(positions: Tensor, size: int) -> Tensor:
    """Marks at ``positions``, int64 on the CPU, each in [0, size)."""
    positions = positions.contiguous()
    marks = new_marks(size)
    _C.mark_positions(positions.data_ptr(), positions.numel(), size, marks.data_ptr())
    return marks


def marked_positions(marks: Tensor, size: int, count: int) -> Tensor:
    """The ``count`` positions that are marked, int64 on the CPU, ascending."""
    positions = torch.empty(count, dtype=torch.int64, device="cpu")
    _C.marked_positions(marks.data_ptr(), size, positions.data_ptr())
    return positions


def sources(pruned: Tensor, grown: Tensor, size: int) -> Tensor:
    """(size,) int64 on the CPU: where each slot's value was before an exchange of edges, -1 for a new edge.

    Args:
        pruned: marks of the slots whose edges went.
        grown: marks of the slots that new edges have now.
        size: number of slots.
    """
    slots = torch.arange(1, size + 1, dtype=torch.int64, device="cpu")
    _C.move_values(pruned.data_ptr(), grown.data_ptr(), size, slots.data_ptr(), slots.itemsize)
    return slots.sub_(1)
