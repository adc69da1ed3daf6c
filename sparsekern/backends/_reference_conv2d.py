"""Sparse conv2d in plain torch, on any device and in any dtype: what the kernels are tested against.

A weight of shape (out_channels, channels / groups, kh, kw) is stored by its nonzeros, the edges, sorted by
column (c * kh + r) * kw + s and then by row (output channel): ccol (columns + 1,) and row (nnz,). Sums are
formed in float32, or in float64 for float64 activations. Neither a dense weight nor an unfolded input is
made: per tap (r, s), the input is seen through the strided window that the tap slides over.
"""

from collections.abc import Iterator, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from sparsekern.backends._reference_linear import accumulation_dtype, edge_columns

# Elements of a temporary product.
_CHUNK = 1 << 22


def _windows(
    padded: Tensor,
    output_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    dilation: Sequence[int],
) -> Iterator[tuple[int, Tensor]]:
    """Each tap's number and the view (N, C, OH, OW) of the padded input that it multiplies."""
    for r in range(kernel_size[0]):
        for s in range(kernel_size[1]):
            y, x = r * dilation[0], s * dilation[1]
            yield (
                r * kernel_size[1] + s,
                padded[
                    :,
                    :,
                    y : y + (output_size[0] - 1) * stride[0] + 1 : stride[0],
                    x : x + (output_size[1] - 1) * stride[1] + 1 : stride[1],
                ],
            )


def _edges_of_tap(
    tap: int, taps: int, ccol: Tensor, row: Tensor, out_channels: int, groups: int, per_edge: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Chunks of the edges of one tap: their numbers, input channels and output channels."""
    columns = edge_columns(ccol, row.numel())
    edges = torch.nonzero(columns % taps == tap).flatten()
    for chunk in edges.split(max(1, _CHUNK // max(1, per_edge))):
        out = row[chunk].long()
        group_channels = (ccol.numel() - 1) // taps
        channels = out // (out_channels // groups) * group_channels + columns[chunk] // taps
        yield chunk, channels, out


def conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    ccol: Tensor,
    row: Tensor,
    crow: Tensor,
    col: Tensor,
    perm: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The convolution of x (N, C, H, W): y (N, O, OH, OW) in x's dtype."""
    accumulate = accumulation_dtype(x.dtype)
    out_channels = crow.numel() - 1
    sizes = zip(x.shape[2:], kernel_size, stride, padding, dilation, strict=True)
    size = [(n + 2 * pad - dil * (k - 1) - 1) // step + 1 for n, k, step, pad, dil in sizes]
    padded = F.pad(x.to(accumulate), (padding[1], padding[1], padding[0], padding[0]))
    y = torch.zeros(x.shape[0], out_channels, *size, dtype=accumulate, device=x.device)
    if bias is not None:
        y += bias.to(accumulate)[:, None, None]
    taps = kernel_size[0] * kernel_size[1]
    for tap, window in _windows(padded, size, kernel_size, stride, dilation):
        per_edge = x.shape[0] * size[0] * size[1]
        for edges, channels, out in _edges_of_tap(tap, taps, ccol, row, out_channels, groups, per_edge):
            y.index_add_(1, out, window[:, channels] * w[edges].to(accumulate)[:, None, None])
    return y.to(x.dtype)


def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    ccol: Tensor,
    row: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients dx (N, C, H, W), in x's dtype, dw (nnz,), in w's, and dbias, without elements if of no dtype."""
    geometry = (kernel_size, stride, padding, dilation, groups)
    dx = conv2d_input_grad(grad, w, ccol, row, x.shape[2:], *geometry)
    dw = conv2d_weight_grad(grad, x, ccol, row, *geometry, dtype=w.dtype)
    if bias_dtype is None:
        return dx, dw, x.new_empty(0)
    return dx, dw, grad.sum((0, 2, 3), dtype=accumulation_dtype(grad.dtype)).to(bias_dtype)


def conv2d_input_grad(
    grad: Tensor,
    w: Tensor,
    ccol: Tensor,
    row: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The gradient of the input, of spatial size input_size: dx (N, C, H, W) in grad's dtype."""
    accumulate = accumulation_dtype(grad.dtype)
    taps = kernel_size[0] * kernel_size[1]
    channels = (ccol.numel() - 1) // taps * groups
    (height, width), (pad_y, pad_x) = input_size, padding
    padded = torch.zeros(
        grad.shape[0],
        channels,
        height + 2 * pad_y,
        width + 2 * pad_x,
        dtype=accumulate,
        device=grad.device,
    )
    per_edge = grad.shape[0] * grad.shape[2] * grad.shape[3]
    for tap, window in _windows(padded, grad.shape[2:], kernel_size, stride, dilation):
        for edges, ins, out in _edges_of_tap(tap, taps, ccol, row, grad.shape[1], groups, per_edge):
            product = grad[:, out].to(accumulate) * w[edges].to(accumulate)[:, None, None]
            window.index_add_(1, ins, product)
    return padded[:, :, pad_y : pad_y + height, pad_x : pad_x + width].to(grad.dtype).contiguous()


def conv2d_weight_grad(
    grad: Tensor,
    x: Tensor,
    ccol: Tensor,
    row: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The weight gradient at the edges of any pattern: dw (nnz,) in dtype, by default at least float32."""
    accumulate = accumulation_dtype(x.dtype)
    padded = F.pad(x.to(accumulate), (padding[1], padding[1], padding[0], padding[0]))
    dw = torch.zeros(row.numel(), dtype=accumulate, device=x.device)
    per_edge = grad.shape[0] * grad.shape[2] * grad.shape[3]
    taps = kernel_size[0] * kernel_size[1]
    for tap, window in _windows(padded, grad.shape[2:], kernel_size, stride, dilation):
        for edges, channels, out in _edges_of_tap(tap, taps, ccol, row, grad.shape[1], groups, per_edge):
            dw[edges] = (window[:, channels] * grad[:, out].to(accumulate)).sum((0, 2, 3))
    return dw.to(dtype or accumulate)
