"""The largest and smallest of a layer's values."""

import torch
from torch import Tensor

from sparsekern import _C


def select_by_magnitude(values: Tensor, count: int, *, largest: bool) -> Tensor:
    """Positions of the ``count`` largest or smallest absolute values, ascending; ties by the lower position.

    Time is O(size). A NaN counts as smaller than any number.

    Args:
        values: (size,) of any floating dtype.
        count: in [0, size].
        largest: which end.
    """
    wide = values.dtype == torch.float64
    values_on_cpu = values.to(device="cpu", dtype=torch.float64 if wide else torch.float32).contiguous()
    positions = torch.empty(count, dtype=torch.int64, device="cpu")
    _C.select_by_magnitude(values_on_cpu.data_ptr(), values.numel(), count, largest, positions.data_ptr(), wide)
    return positions.to(values.device)


def all_finite(values: Tensor) -> bool:
    """Whether ``values``, of any floating dtype, hold neither infinities nor NaNs."""
    if values.device.type != "cpu" or values.dtype not in (torch.float32, torch.float64) or not values.is_contiguous():
        return bool(values.isfinite().all())
    return bool(_C.all_finite(values.data_ptr(), values.numel(), values.dtype == torch.float64))
