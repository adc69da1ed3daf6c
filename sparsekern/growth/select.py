"""The largest and smallest of a layer's values."""

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.marks import marked_positions, new_marks


def mark_by_magnitude(values: Tensor, count: int, *, largest: bool) -> Tensor:
    """Marks (see ``sparsekern.marks``) of the ``count`` largest or smallest absolute values.

    Of equal ones the lower position is taken. Time is O(size). A NaN counts as smaller than any number.

    Args:
        values: (size,) of any floating dtype.
        count: in [0, size].
        largest: which end.
    """
    wide = values.dtype == torch.float64
    values_on_cpu = values.to(device="cpu", dtype=torch.float64 if wide else torch.float32).contiguous()
    marks = new_marks(values.numel())
    _C.select_by_magnitude(values_on_cpu.data_ptr(), values.numel(), count, largest, marks.data_ptr(), wide)
    return marks


def select_by_magnitude(values: Tensor, count: int, *, largest: bool) -> Tensor:
    """The positions that :func:`mark_by_magnitude` marks, ascending."""
    marks = mark_by_magnitude(values, count, largest=largest)
    return marked_positions(marks, values.numel(), count).to(values.device)


def all_finite(values: Tensor) -> bool:
    """Whether ``values``, of any floating dtype, hold neither infinities nor NaNs."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64) or not values.is_contiguous():
        return bool(values.isfinite().all())
    return bool(_C.all_finite(values.data_ptr(), values.numel(), values.dtype == torch.float64))
