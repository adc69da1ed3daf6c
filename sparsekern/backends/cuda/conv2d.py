"""The products of a sparse conv2d. Signatures are those of the reference, arguments have been checked."""

from collections.abc import Sequence
from types import ModuleType

import torch
from torch import Tensor

from sparsekern.backends._reference_linear import accumulation_dtype
from sparsekern.backends.cuda.products import Operand, inner_plan, inner_products, sum_plan, sums
from sparsekern.backends.cuda.served import other, serves
from sparsekern.backends.cuda.tiles import Shape


def _shape(
    batch: int,
    channels: int,
    size: Sequence[int],
    out_channels: int,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Shape:
    axes = zip(size, kernel_size, stride, padding, dilation, strict=True)
    height, width = ((n + 2 * pad - dil * (k - 1) - 1) // step + 1 for n, k, step, pad, dil in axes)
    kernel, step, pad, dil = ((pair[0], pair[1]) for pair in (kernel_size, stride, padding, dilation))
    sizes = (size[0], size[1]), out_channels, (height, width)
    return Shape(batch, channels, *sizes, kernel, step, pad, dil, groups)


def _has_kernel(x: Tensor) -> bool:
    return serves("conv2d", x.dtype, x.device)


def _other(x: Tensor) -> ModuleType:
    return other("conv2d", x.dtype, x.device)


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
    geometry = kernel_size, stride, padding, dilation, groups
    out_channels = crow.numel() - 1
    if _has_kernel(x):
        shape = _shape(x.shape[0], x.shape[1], x.shape[2:], out_channels, *geometry)
        if shape.batch == 0 or out_channels == 0:
            return x.new_empty(shape.batch, out_channels, *shape.out_size)
        operand = Operand(x)
        plan = sum_plan(shape, False, row, operand)
        if plan is not None:
            return sums(plan, operand, w, bias, ccol, row)
    return _other(x).conv2d(x, w, bias, ccol, row, crow, col, perm, *geometry)


def _input_grad(shape: Shape, grad: Operand, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor | None:
    if shape.batch == 0 or shape.channels == 0:
        return grad.x.new_empty(shape.batch, shape.channels, *shape.size)
    plan = sum_plan(shape, True, row, grad)
    return None if plan is None else sums(plan, grad, w, None, ccol, row)


def _weight_grad(shape: Shape, grad: Operand, x: Operand, ccol: Tensor, row: Tensor) -> Tensor | None:
    if shape.batch == 0 or row.numel() == 0:
        return torch.zeros(row.numel(), dtype=torch.float32, device=row.device)
    plan = inner_plan(shape, row, x, grad)
    return None if plan is None else inner_products(plan, x, grad, ccol, row)


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
    geometry = kernel_size, stride, padding, dilation, groups
    dx = dw = None
    if _has_kernel(x):
        shape = _shape(x.shape[0], x.shape[1], x.shape[2:], grad.shape[1], *geometry)
        grads = Operand(grad)
        dx = _input_grad(shape, grads, w, ccol, row)
        dw = _weight_grad(shape, grads, Operand(x), ccol, row)
    if dx is None:
        dx = _other(x).conv2d_input_grad(grad, w, ccol, row, x.shape[2:], *geometry)
    if dw is None:
        dw = _other(x).conv2d_weight_grad(grad, x, ccol, row, *geometry)
    if bias_dtype is None:
        return dx, dw.to(w.dtype), x.new_empty(0)
    return dx, dw.to(w.dtype), grad.sum((0, 2, 3), dtype=accumulation_dtype(grad.dtype)).to(bias_dtype)


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
    geometry = kernel_size, stride, padding, dilation, groups
    if _has_kernel(grad):
        channels = (ccol.numel() - 1) // (kernel_size[0] * kernel_size[1]) * groups
        shape = _shape(grad.shape[0], channels, input_size, grad.shape[1], *geometry)
        dx = _input_grad(shape, Operand(grad), w, ccol, row)
        if dx is not None:
            return dx
    return _other(grad).conv2d_input_grad(grad, w, ccol, row, input_size, *geometry)


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
    geometry = kernel_size, stride, padding, dilation, groups
    if _has_kernel(x):
        shape = _shape(x.shape[0], x.shape[1], x.shape[2:], grad.shape[1], *geometry)
        dw = _weight_grad(shape, Operand(grad), Operand(x), ccol, row)
        if dw is not None:
            return dw.to(dtype or accumulation_dtype(x.dtype))
    return _other(x).conv2d_weight_grad(grad, x, ccol, row, *geometry, dtype)
