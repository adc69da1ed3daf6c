"""The conv2d products. Arguments were checked by the operators; signatures are those of the reference.

The input's gradient is a convolution of the output's, by the edges of the input's channels: the kernel of forward.
Nothing is unfolded: an edge reads its channel where its place in the kernel shifts it to.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern.backends import reference
from sparsekern.backends._reference_linear import accumulation_dtype
from sparsekern.backends.gpu import on_device_of
from sparsekern.backends.triton.conv2d_edges import by_channel
from sparsekern.backends.triton.device import serves
from sparsekern.backends.triton.images import Geometry, Images, pixels_apart
from sparsekern.backends.triton.layout import by_token, narrow, room


def _serves(x: Tensor) -> bool:
    return serves("conv2d", x.dtype, x.device)


def _as_lines(x: Tensor, geometry: Geometry) -> Tensor:
    """The images (N, C, H, W) of a pointwise convolution as (N, C, 1, H * W): no line then ends before a tile does."""
    return x.flatten(2).unsqueeze(2) if geometry.pointwise else x


def _made(batch: int, channels: int, size: Sequence[int], like: Images) -> Images:
    """Uninitialised images in the layout of others."""
    if like.by_pixel:
        return Images.of_data(room(batch, (channels, *size), like.data), True)
    return Images.of_data(like.data.new_empty(batch, channels, *size), False)


def _finished(y: Images, batch: int) -> Tensor:
    return by_token(y.data, batch) if y.by_pixel else y.data


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
    geometry = Geometry(kernel_size, stride, padding, dilation, groups)
    if not _serves(x):
        return reference.conv2d(x, w, bias, ccol, row, crow, col, perm, *geometry)
    from sparsekern.backends.triton.conv2d_gather import conv2d_gather

    batch, out_channels, output_size = x.shape[0], crow.numel() - 1, geometry.output_size(x.shape[2:])
    with on_device_of(x):
        lines = _as_lines(x, geometry)
        size = geometry.output_size(lines.shape[2:])
        images = Images.of(lines, pixels_apart(batch, size))
        y = _made(batch, out_channels, size, images)
        # Once here, or each tile would gather the values again, one at a time.
        by_row = w.index_select(0, perm)
        columns = narrow(col, ccol.numel() - 1)
        conv2d_gather(y, images, by_row, crow, columns, None if bias is None else bias.contiguous(), geometry)
        return _finished(y, batch).view(batch, out_channels, *output_size)


def _input_grad(
    grad: Images, batch: int, w: Tensor, ccol: Tensor, row: Tensor, input_size: Sequence[int], geometry: Geometry
) -> Tensor:
    from sparsekern.backends.triton.conv2d_gather import conv2d_gather

    channels = (ccol.numel() - 1) // geometry.taps * geometry.groups
    size = (1, input_size[0] * input_size[1]) if geometry.pointwise else input_size
    edges = by_channel(ccol, row, grad.channels, size, geometry)
    values = w.contiguous() if edges.order is None else w.index_select(0, edges.order)
    dx = _made(batch, channels, size, grad)
    conv2d_gather(dx, grad, values, edges.pointers, edges.indices, None, geometry, edges.phases)
    return _finished(dx, batch).view(batch, channels, *input_size)


def _weight_grad(grad: Images, x: Images, ccol: Tensor, row: Tensor, geometry: Geometry, dtype: torch.dtype) -> Tensor:
    from sparsekern.backends.triton.conv2d_sampled import conv2d_sampled

    return conv2d_sampled(grad, x, ccol, row, geometry, dtype)


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
    geometry = Geometry(kernel_size, stride, padding, dilation, groups)
    if not _serves(grad):
        return reference.conv2d_input_grad(grad, w, ccol, row, input_size, *geometry)
    with on_device_of(grad):
        lines = _as_lines(grad, geometry)
        images = Images.of(lines, pixels_apart(grad.shape[0], lines.shape[2:]))
        return _input_grad(images, grad.shape[0], w, ccol, row, input_size, geometry)


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
    """The weight gradient at the edges of any pattern: dw (nnz,) in dtype, by default float32."""
    geometry = Geometry(kernel_size, stride, padding, dilation, groups)
    if not _serves(x):
        return reference.conv2d_weight_grad(grad, x, ccol, row, *geometry, dtype=dtype)
    with on_device_of(x):
        lines, x_lines = _as_lines(grad, geometry), _as_lines(x, geometry)
        by_pixel = pixels_apart(grad.shape[0], lines.shape[2:])
        operands = Images.of(lines, by_pixel), Images.of(x_lines, by_pixel)
        return _weight_grad(*operands, ccol, row, geometry, dtype or torch.float32)


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
    geometry = Geometry(kernel_size, stride, padding, dilation, groups)
    if not _serves(x):
        return reference.conv2d_backward(grad, x, w, ccol, row, *geometry, bias_dtype)
    with on_device_of(x):
        lines, x_lines = _as_lines(grad, geometry), _as_lines(x, geometry)
        images = Images.of(lines, pixels_apart(grad.shape[0], lines.shape[2:]))
        dx = _input_grad(images, grad.shape[0], w, ccol, row, x.shape[2:], geometry)
        dw = _weight_grad(images, Images.of(x_lines, images.by_pixel), ccol, row, geometry, w.dtype)
        if bias_dtype is None:
            return dx, dw, grad.new_empty(0)
        return dx, dw, grad.sum((0, 2, 3), dtype=accumulation_dtype(grad.dtype)).to(bias_dtype)
