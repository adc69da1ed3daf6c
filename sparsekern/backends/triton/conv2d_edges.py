"""A convolution's edges as its input's gradient reads them."""

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from sparsekern.backends.kept import KeptOnDevice
from sparsekern.backends.triton.images import Geometry
from sparsekern.backends.triton.layout import index_dtype


class ByChannel(NamedTuple):
    """Edges by the channel of the input and, within it, by phase: the residues of y and x that they contribute to."""

    phases: tuple[int, int]
    pointers: Tensor  # (channels * phases + 1,)
    indices: Tensor  # (nnz,), (channel of the output) * taps + tap, int16 or int32
    order: Tensor | None  # (nnz,) int32, the edges' numbers as stored; None where they are stored in this order


_kept: KeptOnDevice[dict[tuple[object, ...], ByChannel]] = KeptOnDevice()


def by_channel(
    ccol: Tensor, row: Tensor, out_channels: int, input_size: Sequence[int], geometry: Geometry
) -> ByChannel:
    """The edges by channel and phase; kept while the indices live.

    With stride s, pixel y of the input is under tap r of output pixel (y + padding - r * dilation) / s, where that is
    whole: for the taps of one residue of y modulo s. Without stride and groups the stored order is this one already.
    """
    phases = min(geometry.stride[0], input_size[0]), min(geometry.stride[1], input_size[1])
    key = out_channels, phases, *(tuple(pair) for pair in geometry[:4]), geometry.groups
    known = _kept.get(ccol, row)
    if known is None or key not in known:
        # One geometry at a time: a layer has one.
        known = {key: _sorted(ccol, row, out_channels, phases, geometry)}
        _kept.put(known, ccol, row)
    return known[key]


def _sorted(ccol: Tensor, row: Tensor, out_channels: int, phases: tuple[int, int], geometry: Geometry) -> ByChannel:
    taps, groups = geometry.taps, geometry.groups
    group_channels = (ccol.numel() - 1) // taps
    numbers = torch.arange(row.numel(), dtype=ccol.dtype, device=ccol.device)
    column = torch.searchsorted(ccol, numbers, right=True) - 1
    tap = column % taps
    indices = (row * taps + tap).to(index_dtype(out_channels * taps))
    if groups == 1 and phases == (1, 1) == tuple(geometry.stride):
        return ByChannel(phases, ccol[::taps].contiguous(), indices, None)
    places = tap // geometry.kernel_size[1], tap % geometry.kernel_size[1]
    key = row.long() // (out_channels // groups) * group_channels + column // taps
    reached = torch.ones_like(key, dtype=torch.bool)
    for place, step, pad, dilation, count in zip(places, *geometry[1:4], phases, strict=True):
        phase = (place * dilation - pad) % step
        key, reached = key * count + phase, reached & (phase < count)
    rows = group_channels * groups * phases[0] * phases[1]
    key, order = torch.where(reached, key, rows).sort(stable=True)
    pointers = torch.searchsorted(key, torch.arange(rows + 1, device=key.device)).to(ccol.dtype)
    return ByChannel(phases, pointers, indices[order], order.int())
