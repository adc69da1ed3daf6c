"""Gathers and sums along the edges of channels: a convolution's output, and the gradient of its input."""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from sparsekern.backends.triton.images import Geometry, Images, tile
from sparsekern.backends.triton.layout import gathered, longest_first, row_tile

WARPS = 1

# No kernel of its own where such a size is 1 or a multiple of 16: networks have many. Not among them are
# those that tell whether loads may be wide: what bounds adjacent pixels or images, and the padding.
_SIZES = ["rows", "low_tiles", "inner_tiles", "y_height", "x_height", "x_width", "group_rows"]
_SIZES += ["group_channels", "dilation_y", "dilation_x"]


@triton.jit(do_not_specialize=_SIZES)
def conv2d_kernel(  # type: ignore[no-untyped-def]
    y,
    x,
    values,
    pointers,
    indices,
    bias,
    order,
    rows,
    low_tiles,
    inner_tiles,
    images,
    y_height,
    y_width,
    x_height,
    x_width,
    y_image,
    y_channel,
    y_row,
    y_column,
    x_image,
    x_channel,
    x_row,
    x_column,
    pad_y,
    pad_x,
    dilation_y,
    dilation_x,
    group_rows,
    group_channels,
    TAPS: tl.constexpr,
    KERNEL_WIDTH: tl.constexpr,
    STRIDE_Y: tl.constexpr,
    STRIDE_X: tl.constexpr,
    PHASES_Y: tl.constexpr,
    PHASES_X: tl.constexpr,
    TRANSPOSED: tl.constexpr,
    BORDERS: tl.constexpr,
    BY_PIXEL: tl.constexpr,
    EDGES: tl.constexpr,
    LOW: tl.constexpr,
    INNER: tl.constexpr,
):
    """One channel of y on one tile: bias[channel] + the sum over its edges k of values[k] x[channel_k, shifted by k].

    indices[k] is channel_k * TAPS + the tap. A channel of a TRANSPOSED product has PHASES_Y * PHASES_X rows of edges:
    pixels (y, x) are made by those of row (y % PHASES_Y, x % PHASES_X), which need no look at whether a stride divides.
    """
    # The rows of one tile are worked on together: what they gather stays in the caches.
    program = tl.program_id(0)
    row = tl.load(order + program % rows)
    inner_tile = program // rows
    low_tile = inner_tile // inner_tiles
    high = low_tile // low_tiles
    low = ((low_tile % low_tiles) * LOW + tl.arange(0, LOW))[None, :, None]
    inner = ((inner_tile % inner_tiles) * INNER + tl.arange(0, INNER))[None, None, :]
    image = inner if BY_PIXEL else high
    step_y = high if BY_PIXEL else low
    step_x = low if BY_PIXEL else inner

    channel = row // (PHASES_Y * PHASES_X)
    phase_y = row // PHASES_X % PHASES_Y
    phase_x = row % PHASES_X
    at_y = step_y * PHASES_Y + phase_y
    at_x = step_x * PHASES_X + phase_x
    inside = (at_y < y_height) & (at_x < y_width) & (image < images)
    # The pixel of x under the shift 0.
    from_y = step_y if TRANSPOSED else step_y * STRIDE_Y
    from_x = step_x if TRANSPOSED else step_x * STRIDE_X
    x_at = x + (image.to(tl.int64) * x_image + from_y.to(tl.int64) * x_row + from_x.to(tl.int64) * x_column)
    first_channel = row // group_rows * group_channels

    start = tl.load(pointers + row).to(tl.int64)
    end = tl.load(pointers + row + 1).to(tl.int64)
    sums = tl.zeros((EDGES, LOW, INNER), tl.float32)
    for first in range(start, end, EDGES):
        edge = first + tl.arange(0, EDGES)
        known = edge < end
        index = tl.load(indices + edge, mask=known, other=0).to(tl.int32)
        value = tl.load(values + edge, mask=known, other=0.0).to(tl.float32)
        tap_y = index % TAPS // KERNEL_WIDTH
        tap_x = index % KERNEL_WIDTH
        if TRANSPOSED:
            shift_y = (phase_y + pad_y - tap_y * dilation_y) // STRIDE_Y
            shift_x = (phase_x + pad_x - tap_x * dilation_x) // STRIDE_X
        else:
            shift_y = tap_y * dilation_y - pad_y
            shift_x = tap_x * dilation_x - pad_x
        source = (first_channel + index // TAPS).to(tl.int64) * x_channel
        source += shift_y.to(tl.int64) * x_row + shift_x.to(tl.int64) * x_column
        wanted = inside & known[:, None, None]
        if BORDERS:
            part_y = from_y + shift_y[:, None, None]
            part_x = from_x + shift_x[:, None, None]
            wanted = wanted & (part_y >= 0) & (part_y < x_height) & (part_x >= 0) & (part_x < x_width)
        part = tl.load(x_at + source[:, None, None], mask=wanted, other=0.0)
        sums += value[:, None, None] * part.to(tl.float32)
    total = tl.sum(sums, axis=0, keep_dims=True)
    if bias is not None:
        total += tl.load(bias + channel).to(tl.float32)
    y_at = y + channel.to(tl.int64) * y_channel
    y_at += image.to(tl.int64) * y_image + at_y.to(tl.int64) * y_row + at_x.to(tl.int64) * y_column
    tl.store(y_at, total.to(y.dtype.element_ty), mask=inside)


def conv2d_gather(
    y: Images,
    x: Images,
    values: Tensor,
    pointers: Tensor,
    indices: Tensor,
    bias: Tensor | None,
    geometry: Geometry,
    phases: Sequence[int] | None = None,
) -> None:
    """Writes the convolution of x to y, or with ``phases`` the gradient of the input, from that of the output.

    Sums are float32. A program works on one channel and up to 64 pixels, of one image or several, so a channel of many
    edges takes as long as it has edges; those start first.

    Args:
        y, x: of one layout.
        values, indices: (nnz,), contiguous, by row; an index is (channel of x) * taps + tap, of any integer dtype. The
            channels of x count from the first of the row's group, those of the output's gradient from 0.
        pointers: (channels of y * phases + 1,).
        bias: (channels of y,), contiguous, or None.
        phases: see :func:`~sparsekern.backends.triton.conv2d_edges.by_channel`.
    """
    rows = pointers.numel() - 1
    if y.data.numel() == 0:
        return
    steps = [-(-side // count) for side, count in zip(y.size, phases or (1, 1), strict=True)]
    high, low, inner = (*steps, y.batch) if y.by_pixel else (y.batch, *steps)
    elements = gathered(x.data, x.wide(geometry))
    lows, inners = tile(low, inner, row_tile(elements, low * inner)[1])
    edges, _ = row_tile(elements, lows * inners)
    low_tiles, inner_tiles = triton.cdiv(low, lows), triton.cdiv(inner, inners)
    conv2d_kernel[(rows * high * low_tiles * inner_tiles,)](
        y.data,
        x.data,
        values,
        pointers,
        indices,
        bias,
        longest_first(pointers),
        rows,
        low_tiles,
        inner_tiles,
        y.batch,
        *y.size,
        *x.size,
        *y.strides,
        *x.strides,
        *geometry.padding,
        *geometry.dilation,
        rows // geometry.groups,
        0 if phases else x.channels // geometry.groups,
        TAPS=geometry.taps,
        KERNEL_WIDTH=geometry.kernel_size[1],
        STRIDE_Y=geometry.stride[0],
        STRIDE_X=geometry.stride[1],
        PHASES_Y=phases[0] if phases else 1,
        PHASES_X=phases[1] if phases else 1,
        TRANSPOSED=phases is not None and not geometry.pointwise,  # where both ways are one, one kernel is compiled
        BORDERS=not geometry.pointwise and (phases is not None or max(geometry.padding) > 0),
        BY_PIXEL=y.by_pixel,
        EDGES=edges,
        LOW=lows,
        INNER=inners,
        num_warps=WARPS,
        num_stages=1,  # as in spmm
    )
