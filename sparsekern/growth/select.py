"""The largest and smallest of a layer's values."""

from torch import Tensor

from sparsekern.backends.choice import topology_of
from sparsekern.backends.topology.numbers import Number


def mark_by_magnitude(values: Tensor, count: Number, *, largest: bool) -> Tensor:
    """Marks (of the topology of the values' device) of the ``count`` largest or smallest absolute values.

    Of equal ones the lower position is taken. A NaN counts as smaller than any number. Time is O(size); on others than
    the CPU, a sort's.

    Args:
        values: (size,) of any floating dtype.
        count: in [0, size].
        largest: which end.
    """
    marks: Tensor = topology_of(values.device).mark_by_magnitude(values, count, largest=largest)
    return marks


def select_by_magnitude(values: Tensor, count: int, *, largest: bool) -> Tensor:
    """The positions that :func:`mark_by_magnitude` marks, (count,) int64, ascending."""
    positions: Tensor = topology_of(values.device).select_by_magnitude(values, count, largest=largest)
    return positions


def all_finite(values: Tensor, valid: Tensor | None = None) -> Number:
    """Whether ``values``, of any floating dtype, hold neither infinities nor NaNs.

    Args:
        valid: bool, of the values' shape: only those are looked at. None: all.
    """
    finite: Number = topology_of(values.device).all_finite(values, valid)
    return finite
