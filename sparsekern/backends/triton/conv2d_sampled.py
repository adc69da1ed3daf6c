"""Products of a convolution's output gradient and input at the edges of a pattern: the gradient of the values."""

import torch
import triton
import triton.language as tl
from torch import Tensor

from sparsekern.backends.triton.images import Geometry, Images, tile
from sparsekern.backends.triton.layout import edge_tile, gathered, power_of_two
from sparsekern.backends.triton.sddmm import columns_of

# As in conv2d_gather.
_SIZES = ["nnz", "columns", "halvings", "high", "low", "x_height", "x_width", "group_rows", "group_channels"]
_SIZES += ["dilation_y", "dilation_x"]


@triton.jit(do_not_specialize=_SIZES)
def conv2d_sampled_kernel(  # type: ignore[no-untyped-def]
    out,
    grad,
    x,
    pointers,
    row_indices,
    nnz,
    columns,
    halvings,
    high,
    low,
    inner,
    x_height,
    x_width,
    grad_image,
    grad_channel,
    grad_row,
    grad_column,
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
    BORDERS: tl.constexpr,
    BY_PIXEL: tl.constexpr,
    EDGES: tl.constexpr,
    LOW: tl.constexpr,
    INNER: tl.constexpr,
):
    """out[k] = the sum over images and pixels of grad[row_k] x[channel_k, shifted by k], for EDGES adjacent k."""
    edge = tl.program_id(0).to(tl.int64) * EDGES + tl.arange(0, EDGES)
    known = edge < nnz
    column = columns_of(edge, known, pointers, columns, halvings).to(tl.int32)
    row = tl.load(row_indices + edge, mask=known, other=0).to(tl.int32)
    channel = row // group_rows * group_channels + column // TAPS
    shift_y = column % TAPS // KERNEL_WIDTH * dilation_y - pad_y
    shift_x = column % KERNEL_WIDTH * dilation_x - pad_x
    source = channel.to(tl.int64) * x_channel
    source += shift_y.to(tl.int64) * x_row + shift_x.to(tl.int64) * x_column
    grad_at = grad + (row.to(tl.int64) * grad_channel)[:, None, None]
    x_at = x + source[:, None, None]
    sums = tl.zeros((EDGES, LOW, INNER), tl.float32)
    for at in range(high):
        for first_low in range(0, low, LOW):
            for first_inner in range(0, inner, INNER):
                lows = (first_low + tl.arange(0, LOW))[None, :, None]
                inners = (first_inner + tl.arange(0, INNER))[None, None, :]
                image = inners if BY_PIXEL else at
                y = at if BY_PIXEL else lows
                z = lows if BY_PIXEL else inners
                images, ys, zs = tl.cast(image, tl.int64), tl.cast(y, tl.int64), tl.cast(z, tl.int64)
                wanted = known[:, None, None] & (lows < low) & (inners < inner)
                grad_pixel = images * grad_image + ys * grad_row + zs * grad_column
                g = tl.load(grad_at + grad_pixel, mask=wanted, other=0.0)
                if BORDERS:
                    from_y = y * STRIDE_Y + shift_y[:, None, None]
                    from_x = z * STRIDE_X + shift_x[:, None, None]
                    wanted = wanted & (from_y >= 0) & (from_y < x_height) & (from_x >= 0) & (from_x < x_width)
                x_pixel = images * x_image + ys * (STRIDE_Y * x_row) + zs * (STRIDE_X * x_column)
                part = tl.load(x_at + x_pixel, mask=wanted, other=0.0)
                sums += g.to(tl.float32) * part.to(tl.float32)
    total = tl.sum(tl.sum(sums, axis=2), axis=1)
    tl.store(out + edge, total.to(out.dtype.element_ty), mask=known)


def conv2d_sampled(
    grad: Images, x: Images, ccol: Tensor, row: Tensor, geometry: Geometry, dtype: torch.dtype
) -> Tensor:
    """The gradient of the values at the edges of a CSC pattern: (nnz,), dtype.

    Sums are float32. All programs have as many edges, so columns may be as unequal as they like.

    Args:
        grad, x: of one layout.
        ccol: (columns + 1,).
        row: (nnz,), contiguous.
    """
    nnz, columns = row.numel(), ccol.numel() - 1
    out = torch.empty(nnz, dtype=dtype, device=row.device)
    if nnz == 0:
        return out
    high, low, inner = (*grad.size, grad.batch) if grad.by_pixel else (grad.batch, *grad.size)
    elements = gathered(x.data, x.wide(geometry) and grad.wide(geometry))
    edges, pixels, warps = edge_tile(elements, power_of_two(low) * power_of_two(inner), nnz)
    lows, inners = tile(low, inner, pixels)
    conv2d_sampled_kernel[(triton.cdiv(nnz, edges),)](
        out,
        grad.data,
        x.data,
        ccol,
        row,
        nnz,
        columns,
        columns.bit_length(),
        high,
        low,
        inner,
        *x.size,
        *grad.strides,
        *x.strides,
        *geometry.padding,
        *geometry.dilation,
        grad.channels // geometry.groups,
        x.channels // geometry.groups,
        TAPS=geometry.taps,
        KERNEL_WIDTH=geometry.kernel_size[1],
        STRIDE_Y=geometry.stride[0],
        STRIDE_X=geometry.stride[1],
        BORDERS=max(geometry.padding) > 0,
        BY_PIXEL=grad.by_pixel,
        EDGES=edges,
        LOW=lows,
        INNER=inners,
        num_warps=warps,
        num_stages=1,  # as in spmm
    )
    return out
