"""GELU (Hendrycks & Gimpel 2016, https://arxiv.org/abs/1606.08415): operators, derivatives, and the function."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sparsekern.backends import cpu, reference
from sparsekern.ops.checks import FLOAT_DTYPES
from sparsekern.ops.schemas import LIBRARY

LIBRARY.define("gelu(Tensor x, bool tanh) -> Tensor")
LIBRARY.define("gelu_backward(Tensor grad, Tensor x, bool tanh) -> Tensor")


def _check(x: Tensor, grad: Tensor | None = None) -> None:
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"input has dtype {x.dtype}; expected one of float32, float64, bfloat16, float16")
    if grad is not None and (grad.shape != x.shape or grad.dtype != x.dtype or grad.device != x.device):
        raise ValueError(
            f"grad has shape {tuple(grad.shape)} and dtype {grad.dtype} on {grad.device}; "
            f"expected the input's, {tuple(x.shape)} and {x.dtype} on {x.device}"
        )


def _register(backend: ModuleType, key: str) -> None:
    def gelu(x: Tensor, tanh: bool) -> Tensor:
        _check(x)
        return backend.gelu(x, tanh)

    def gelu_backward(grad: Tensor, x: Tensor, tanh: bool) -> Tensor:
        _check(x, grad)
        return backend.gelu_backward(grad, x, tanh)

    LIBRARY.impl("gelu", gelu, key)
    LIBRARY.impl("gelu_backward", gelu_backward, key)


_register(cpu, "CPU")
_register(reference, "CUDA")


@torch.library.register_fake("sparsekern::gelu", lib=LIBRARY)
def _fake(x, tanh):  # type: ignore[no-untyped-def]
    _check(x)
    return torch.empty_like(x)


@torch.library.register_fake("sparsekern::gelu_backward", lib=LIBRARY)
def _fake_backward(grad, x, tanh):  # type: ignore[no-untyped-def]
    _check(x, grad)
    return torch.empty_like(x)


class Gelu(Function):
    """GELU of (x, tanh). Backward computes the gate again from x: nothing more is held."""

    @staticmethod
    def forward(x: Tensor, tanh: bool) -> Tensor:
        return torch.ops.sparsekern.gelu(x, tanh)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, bool], output: Tensor) -> None:
        x, ctx.tanh = inputs
        ctx.save_for_backward(x)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        (x,) = ctx.saved_tensors
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():
            return reference.gelu_backward(grad, x, ctx.tanh), None  # a derivative of this may be asked for
        return torch.ops.sparsekern.gelu_backward(grad, x, ctx.tanh), None


def gelu(input: Tensor, tanh: bool = False) -> Tensor:
    """``input`` times the normal distribution function at it; ``tanh`` approximates, as torch's GELU can.

    Args:
        input: any shape and strides, float32, float64, bfloat16 or float16.
        tanh: ``input (1 + tanh(sqrt(2 / pi) (input + 0.044715 input^3))) / 2`` instead.

    Returns:
        The same shape and dtype. In float32 the relative error is below 1e-6, in the left tail too, where torch's
        own, an absolute error of about 1e-7, is all of the result.

    Raises:
        TypeError: if the dtype is another.
    """
    return Gelu.apply(input, tanh) if torch.is_grad_enabled() else Gelu.forward(input, tanh)
