"""Differentiable products with a sparse weight, as plain functions."""

import math

import torch
from torch import Tensor

from sparsekern.backends import choice
from sparsekern.ops import direct
from sparsekern.ops.autograd import Geometry, Multiply
from sparsekern.pattern import Pattern


def _autocast(x: Tensor) -> Tensor:
    """Under autocast the activations become its dtype; float32 values stay as they are (the kernels take both)."""
    device = x.device.type
    if x.dtype == torch.float32 and device != "meta" and torch.is_autocast_enabled(device):
        return x.to(torch.get_autocast_dtype(device))
    return x


def _multiply(
    x: Tensor, weight: Tensor, bias: Tensor | None, geometry: Geometry | None, pattern: Pattern, plain: bool
) -> Tensor:
    operands = (x, weight, bias, geometry, *pattern.tensors())
    # Without gradients the operator alone: half the cost of a small product.
    if not torch.is_grad_enabled():
        return Multiply.forward(*operands)
    return Multiply.apply_plain(*operands) if plain else Multiply.apply(*operands)


def linear(input: Tensor, weight: Tensor, pattern: Pattern, bias: Tensor | None = None) -> Tensor:
    """``input @ W.T + bias`` for the sparse W (out, in) whose edge k has the value ``weight[k]``.

    Args:
        input: (..., in), float32, float64, bfloat16 or float16, any strides.
        weight: (nnz,), of the input's dtype, or float32 with a half input.
        pattern: the topology of W, of shape (out, in).
        bias: (out,) or None, dtypes as for ``weight``.

    Returns:
        (..., out) of the input's dtype (under autocast: autocast's).

    Raises:
        ValueError, TypeError: naming the argument whose shape, dtype, device or index contents are wrong.
    """
    y = None if torch.compiler.is_compiling() else choice.linear_direct(input, weight, bias, *pattern.tensors())
    return linear_checked(input, weight, pattern, bias) if y is None else y


def linear_checked(input: Tensor, weight: Tensor, pattern: Pattern, bias: Tensor | None) -> Tensor:
    """:func:`linear`, after its short way has been tried."""
    plain = direct.is_plain()
    rows, columns = pattern.shape
    if input.dim() < 1 or input.shape[-1] != columns:
        raise ValueError(f"input has shape {tuple(input.shape)}; expected (..., {columns}), {columns} input features")
    x = input if plain else _autocast(input)
    matrix = x if x.dim() == 2 else x.reshape(math.prod(x.shape[:-1]), columns)
    y = _multiply(matrix, weight, bias, None, pattern, plain)
    return y if x.dim() == 2 else y.reshape(*x.shape[:-1], rows)


def conv2d(
    input: Tensor,
    weight: Tensor,
    pattern: Pattern,
    geometry: Geometry,
    bias: Tensor | None = None,
) -> Tensor:
    """2-D cross-correlation with a sparse filter bank whose edge k has the value ``weight[k]``.

    Args:
        input: (N, C, H, W) or (C, H, W), float32, float64, bfloat16 or float16, any strides.
        weight: (nnz,), of the input's dtype, or float32 with a half input.
        pattern: the topology, of shape (out_channels, C // groups * kh * kw); column (c * kh + r) * kw + s is
            position (r, s) of the kernel on channel c of the group.
        geometry: kernel_size, stride, padding (zeros) and dilation, two integers each, and groups.
        bias: (out_channels,) or None, dtypes as for ``weight``.

    Returns:
        (N, out_channels, H', W') or (out_channels, H', W') of the input's dtype (under autocast: autocast's).

    Raises:
        ValueError, TypeError: naming the argument whose shape, dtype, device or index contents are wrong.
    """
    if input.dim() not in (3, 4):
        raise ValueError(f"input has shape {tuple(input.shape)}; expected (N, C, H, W) or (C, H, W)")
    plain = direct.is_plain()
    x = input if plain else _autocast(input)
    if x.dim() == 3:
        return _multiply(x.unsqueeze(0), weight, bias, geometry, pattern, plain).squeeze(0)
    return _multiply(x, weight, bias, geometry, pattern, plain)
