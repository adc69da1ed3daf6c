"""The products under autograd.

A layer's product is linear in the input x and in the values w, so that with an output gradient g

    T(g, x, w) = sum over the edges k of w[k] <g[row_k], x[col_k]>

holds all of it: the output is dT/dg, the input gradient dT/dx, the gradient of the values dT/dw, and the
derivatives of these are these again. Hence four Functions that call one another differentiate any number of
times. Each serves linear (``geometry`` None) and conv2d (``geometry`` the operator's last five arguments).
"""

from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sparsekern.ops import direct

Geometry = tuple[tuple[int, int], tuple[int, int], tuple[int, int], tuple[int, int], int]


def _apply(function: type[Function], *args: Any) -> Any:
    """Calls a product inside a backward pass: under autograd only where its own derivative may be asked for.

    torch.compile does not differentiate twice, and cannot trace a Function applied in another's backward.
    """
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        return function.apply(*args)
    return function.forward(*args)


# Gradients of geometry and the five index tensors.
_NO_GRADS = (None,) * 6


def _input_size(x: Tensor, geometry: Geometry | None) -> tuple[int, int] | None:
    return None if geometry is None else (x.shape[2], x.shape[3])


def _bias_grad(grad: Tensor, dtype: torch.dtype) -> Tensor:
    """The sum over everything but the outputs."""
    return grad.sum([dim for dim in range(grad.dim()) if dim != 1], dtype=dtype)


class Multiply(Function):
    """y = dT/dg + bias, of (x, w, bias or None, geometry, *topology)."""

    @classmethod
    def apply_plain(cls, *args: Any) -> Any:
        """``apply`` with every argument given, outside of torch.func's transforms: without binding them by name."""
        return super(Function, cls).apply(*args)  # type: ignore[misc]

    @staticmethod
    def forward(x: Tensor, w: Tensor, bias: Tensor | None, geometry: Geometry | None, *topology: Tensor) -> Tensor:
        if geometry is None:
            return direct.linear(x, w, bias, *topology)
        return direct.conv2d(x, w, bias, *topology, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        x, w, bias, geometry, *topology = inputs
        ctx.geometry = geometry
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.save_for_backward(x, w, *topology)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, w, *topology = ctx.saved_tensors
        geometry = ctx.geometry
        need_x, need_w, need_bias = ctx.needs_input_grad[:3]
        bias_dtype = ctx.bias_dtype if need_bias else None
        dx = dw = dbias = None
        if need_x and need_w:
            dx, dw, dbias = _apply(MultiplyBackward, grad, x, w, bias_dtype, geometry, *topology)
            return dx, dw, dbias if need_bias else None, *_NO_GRADS
        if need_x:
            dx = _apply(InputGrad, grad, w, _input_size(x, geometry), geometry, *topology)
        elif need_w:
            dw = _apply(WeightGrad, grad, x, w.dtype, geometry, *topology)
        if need_bias:
            dbias = _bias_grad(grad, ctx.bias_dtype)
        return dx, dw, dbias, *_NO_GRADS


class MultiplyBackward(Function):
    """(dT/dx, dT/dw, the bias's gradient) in one pass, of (g, x, w, the bias's dtype or None, geometry, *topology)."""

    @staticmethod
    def forward(
        grad: Tensor,
        x: Tensor,
        w: Tensor,
        bias_dtype: torch.dtype | None,
        geometry: Geometry | None,
        *topology: Tensor,
    ) -> tuple[Tensor, Tensor, Tensor]:
        if geometry is None:
            return direct.linear_backward(grad, x, w, *topology[:2], bias_dtype=bias_dtype)
        return direct.conv2d_backward(grad, x, w, *topology[:2], *geometry, bias_dtype=bias_dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        grad, x, w, bias_dtype, geometry, *topology = inputs
        ctx.bias_dtype, ctx.geometry = bias_dtype, geometry
        ctx.save_for_backward(grad, x, w, *topology)

    @staticmethod
    def backward(ctx: Any, along_x: Tensor, along_w: Tensor, along_bias: Tensor) -> tuple[Any, ...]:
        grad, x, w, *topology = ctx.saved_tensors
        geometry = ctx.geometry
        dgrad = dx = dw = None
        if ctx.needs_input_grad[0]:
            dgrad = _apply(Multiply, along_x, w, None, geometry, *topology)
            dgrad = dgrad + _apply(Multiply, x, along_w, None, geometry, *topology)
            if ctx.bias_dtype is not None:
                dgrad = dgrad + along_bias.to(grad.dtype).view(1, -1, *[1] * (grad.dim() - 2))
        if ctx.needs_input_grad[1]:
            dx = _apply(InputGrad, grad, along_w, _input_size(x, geometry), geometry, *topology)
        if ctx.needs_input_grad[2]:
            dw = _apply(WeightGrad, grad, along_x, w.dtype, geometry, *topology)
        return dgrad, dx, dw, None, *_NO_GRADS


class InputGrad(Function):
    """dT/dx, of (g, w, the images' (height, width) or None, geometry, *topology)."""

    @staticmethod
    def forward(
        grad: Tensor,
        w: Tensor,
        input_size: tuple[int, int] | None,
        geometry: Geometry | None,
        *topology: Tensor,
    ) -> Tensor:
        if geometry is None:
            return direct.linear_input_grad(grad, w, *topology[:2])
        return direct.conv2d_input_grad(grad, w, *topology[:2], input_size, *geometry)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, w, _, geometry, *topology = inputs
        ctx.geometry = geometry
        ctx.save_for_backward(grad, w, *topology)

    @staticmethod
    def backward(ctx: Any, along: Tensor) -> tuple[Any, ...]:
        grad, w, *topology = ctx.saved_tensors
        dgrad = dw = None
        if ctx.needs_input_grad[0]:
            dgrad = _apply(Multiply, along, w, None, ctx.geometry, *topology)
        if ctx.needs_input_grad[1]:
            dw = _apply(WeightGrad, grad, along, w.dtype, ctx.geometry, *topology)
        return dgrad, dw, None, *_NO_GRADS


class WeightGrad(Function):
    """dT/dw, of (g, x, the result's dtype, geometry, *topology)."""

    @staticmethod
    def forward(grad: Tensor, x: Tensor, dtype: torch.dtype, geometry: Geometry | None, *topology: Tensor) -> Tensor:
        if geometry is None:
            return direct.linear_weight_grad(grad, x, *topology[:2], dtype=dtype)
        return direct.conv2d_weight_grad(grad, x, *topology[:2], *geometry, dtype=dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        grad, x, _, geometry, *topology = inputs
        ctx.geometry = geometry
        ctx.save_for_backward(grad, x, *topology)

    @staticmethod
    def backward(ctx: Any, along: Tensor) -> tuple[Any, ...]:
        grad, x, *topology = ctx.saved_tensors
        dgrad = dx = None
        if ctx.needs_input_grad[0]:
            dgrad = _apply(Multiply, x, along, None, ctx.geometry, *topology)
        if ctx.needs_input_grad[1]:
            dx = _apply(InputGrad, grad, along, _input_size(x, ctx.geometry), ctx.geometry, *topology)
        return dgrad, dx, None, *_NO_GRADS
