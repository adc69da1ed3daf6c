"""Layouts that follow from a topology and a plan alone, kept while the topology lives and is unchanged."""

from collections.abc import Callable, Hashable
from typing import Any

from torch import Tensor

from sparsekern.backends._reference_linear import edge_columns
from sparsekern.backends.cuda.tiles import Edges, Shape
from sparsekern.backends.kept import KeptOnDevice

# Of one topology: training and evaluation, each forward and backward, and some.
_MOST = 8

_layouts: KeptOnDevice[dict[Hashable, Any]] = KeptOnDevice()


def kept_layout(ccol: Tensor, row: Tensor, plan: Hashable, make: Callable[[], Any]) -> Any:
    """What ``make`` returned for this topology and plan."""
    known = _layouts.get(ccol, row)
    if known is None:
        known = _layouts.put({}, ccol, row)
    if known is None:
        return make()
    if plan not in known:
        while len(known) >= _MOST:
            del known[next(iter(known))]
        known[plan] = make()
    return known[plan]


def edges_of(shape: Shape, ccol: Tensor, row: Tensor, back: bool) -> Edges:
    """The edges as sums over rows of W, or if ``back`` over input channels, in the order in which they are stored."""
    columns, rows = edge_columns(ccol, row.numel()), row.long()
    in_channels, out_channels = shape.channels // shape.groups, shape.out_channels // shape.groups
    channel, tap = columns // shape.taps, columns % shape.taps
    if back:
        group = rows // out_channels
        return Edges(group * in_channels + channel, rows - group * out_channels, tap)
    return Edges(rows, channel, tap)
