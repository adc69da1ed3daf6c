"""Batch normalization of images with a residual and a ReLU behind it: operators, derivatives, and the function."""

from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.autograd import Function

from sparsekern.backends import cpu, reference
from sparsekern.backends._reference_linear import accumulation_dtype
from sparsekern.backends._reference_norm import moments, output_format
from sparsekern.ops.checks import FLOAT_DTYPES
from sparsekern.ops.schemas import LIBRARY

_AFFINE = "Tensor? weight, Tensor? bias"
_STATISTICS = "Tensor mean, Tensor var"
SCHEMAS = {
    # y, and the mean and the variance (of all elements, not of a sample) of each channel.
    "batch_norm": f"(Tensor x, Tensor? residual, {_AFFINE}, float eps, bool relu) -> (Tensor, Tensor, Tensor)",
    "batch_norm_inference": f"(Tensor x, Tensor? residual, {_AFFINE}, {_STATISTICS}, float eps, bool relu) -> Tensor",
    # y is the result that a ReLU made; without one, and where no residual was added, None will do.
    "batch_norm_backward": (
        f"(Tensor grad, Tensor x, Tensor? y, {_AFFINE}, {_STATISTICS}, float eps, bool relu, bool batch_statistics, "
        "bool need_x, bool need_residual) -> (Tensor, Tensor, Tensor, Tensor)"
    ),
}
for _name, _schema in SCHEMAS.items():
    LIBRARY.define(_name + _schema)


def _check_images(name: str, tensor: Tensor | None, x: Tensor) -> None:
    if tensor is None:
        return
    if tensor.shape != x.shape:
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected the input's, {tuple(x.shape)}")
    if tensor.dtype != x.dtype:
        raise TypeError(f"{name} has dtype {tensor.dtype}; expected the input's, {x.dtype}")
    _check_device(name, tensor, x)


def _check_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device} and the input on {x.device}; expected one device")


def _check(x: Tensor, residual: Tensor | None, **channels: Tensor | None) -> None:
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"input has dtype {x.dtype}; expected one of float32, float64, bfloat16, float16")
    if x.dim() != 4:
        raise ValueError(f"input has {x.dim()} dimensions; expected 4, (N, C, H, W)")
    _check_images("residual", residual, x)
    for name, values in channels.items():
        if values is None:
            continue
        if values.dim() != 1 or values.shape[0] != x.shape[1]:
            raise ValueError(f"{name} has shape {tuple(values.shape)}; expected ({x.shape[1]},), the input's channels")
        if values.dtype not in (x.dtype, accumulation_dtype(x.dtype)):
            allowed = " or ".join(str(dtype) for dtype in {x.dtype: 0, accumulation_dtype(x.dtype): 0})
            raise TypeError(f"{name} has dtype {values.dtype}; with input of dtype {x.dtype} expected {allowed}")
        _check_device(name, values, x)


def _check_backward(
    grad: Tensor, x: Tensor, y: Tensor | None, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor
) -> None:
    _check(x, None, weight=weight, bias=bias, mean=mean, var=var)
    _check_images("grad", grad, x)
    _check_images("y", y, x)


def _register(backend: ModuleType, key: str) -> None:
    def batch_norm(x, residual, weight, bias, eps, relu):  # type: ignore[no-untyped-def]
        _check(x, residual, weight=weight, bias=bias)
        return backend.batch_norm(x, residual, weight, bias, eps, relu)

    def batch_norm_inference(x, residual, weight, bias, mean, var, eps, relu):  # type: ignore[no-untyped-def]
        _check(x, residual, weight=weight, bias=bias, mean=mean, var=var)
        return backend.batch_norm_inference(x, residual, weight, bias, mean, var, eps, relu)

    def batch_norm_backward(grad, x, y, weight, bias, mean, var, *options):  # type: ignore[no-untyped-def]
        _check_backward(grad, x, y, weight, bias, mean, var)
        return backend.batch_norm_backward(grad, x, y, weight, bias, mean, var, *options)

    for implementation in (batch_norm, batch_norm_inference, batch_norm_backward):
        LIBRARY.impl(implementation.__name__, implementation, key)


_register(cpu, "CPU")
_register(reference, "CUDA")


def _images_like(x: Tensor) -> Tensor:
    return torch.empty_like(x, memory_format=output_format(x))


@torch.library.register_fake("sparsekern::batch_norm", lib=LIBRARY)
def _fake(x, residual, weight, bias, eps, relu):  # type: ignore[no-untyped-def]
    _check(x, residual, weight=weight, bias=bias)
    wide = accumulation_dtype(x.dtype)
    return _images_like(x), x.new_empty(x.shape[1], dtype=wide), x.new_empty(x.shape[1], dtype=wide)


@torch.library.register_fake("sparsekern::batch_norm_inference", lib=LIBRARY)
def _fake_inference(x, residual, weight, bias, mean, var, eps, relu):  # type: ignore[no-untyped-def]
    _check(x, residual, weight=weight, bias=bias, mean=mean, var=var)
    return _images_like(x)


@torch.library.register_fake("sparsekern::batch_norm_backward", lib=LIBRARY)
def _fake_backward(  # type: ignore[no-untyped-def]
    grad, x, y, weight, bias, mean, var, eps, relu, batch_statistics, need_x, need_residual
):
    _check_backward(grad, x, y, weight, bias, mean, var)
    images = [_images_like(x) if need else x.new_empty(0) for need in (need_x, need_residual)]
    wide = accumulation_dtype(x.dtype)
    return *images, x.new_empty(x.shape[1], dtype=wide), x.new_empty(x.shape[1], dtype=wide)


def _save(ctx: Any, inputs: tuple[Any, ...], results: tuple[Tensor, ...], batch_statistics: bool) -> None:
    x, residual, weight, bias, *_, eps, relu = inputs
    y, mean, var = results
    ctx.eps, ctx.relu, ctx.batch_statistics = eps, relu, batch_statistics
    # Without a residual, where the ReLU let pass is computed again from x: nothing more is held.
    ctx.save_for_backward(x, y if relu and residual is not None else None, weight, bias, mean, var)


def _backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The gradients of x, residual, weight and bias."""
    x, y, weight, bias, mean, var = ctx.saved_tensors
    need_x, need_residual, need_weight, need_bias = ctx.needs_input_grad[:4]
    need_masked = need_residual and ctx.relu
    options = (ctx.eps, ctx.relu, ctx.batch_statistics, need_x, need_masked)
    if torch.is_grad_enabled() and not torch.compiler.is_compiling():
        # A derivative of this one may be asked for: the twin has it, by way of the statistics too.
        if ctx.batch_statistics:
            mean, var = moments(x)
        results = reference.batch_norm_backward(grad, x, y, weight, bias, mean, var, *options)
    else:
        results = torch.ops.sparsekern.batch_norm_backward(grad, x, y, weight, bias, mean, var, *options)
    dx, dresidual, dweight, dbias = results
    return (
        dx if need_x else None,
        (dresidual if ctx.relu else grad) if need_residual else None,
        dweight.to(weight.dtype) if need_weight else None,
        dbias.to(bias.dtype) if need_bias else None,
    )


class BatchNorm(Function):
    """(y, mean, variance), of (x, residual or None, weight or None, bias or None, eps, relu)."""

    @staticmethod
    def forward(
        x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        return torch.ops.sparsekern.batch_norm(x, residual, weight, bias, eps, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
        ctx.mark_non_differentiable(*output[1:])
        _save(ctx, inputs, output, batch_statistics=True)

    @staticmethod
    def backward(ctx: Any, grad: Tensor, *_: Tensor) -> tuple[Any, ...]:
        return *_backward(ctx, grad), None, None


class BatchNormInference(Function):
    """y with given statistics, of (x, residual or None, weight or None, bias or None, mean, variance, eps, relu)."""

    @staticmethod
    def forward(
        x: Tensor,
        residual: Tensor | None,
        weight: Tensor | None,
        bias: Tensor | None,
        mean: Tensor,
        var: Tensor,
        eps: float,
        relu: bool,
    ) -> Tensor:
        return torch.ops.sparsekern.batch_norm_inference(x, residual, weight, bias, mean, var, eps, relu)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        _save(ctx, inputs, (output, *inputs[4:6]), batch_statistics=False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        return *_backward(ctx, grad), None, None, None, None


def batch_norm(
    input: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    relu: bool,
    statistics: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """``relu(weight (input - mean) / sqrt(variance + eps) + bias + residual)``, channel by channel, and the statistics.

    Args:
        input: (N, C, H, W), float32, float64, bfloat16 or float16, any strides.
        residual: None, or of the input's shape and dtype.
        weight, bias: (C,) or None for ones and zeros, of the input's dtype, or float32 with a half input.
        eps: added to the variance.
        relu: clamps what is negative in the end.
        statistics: the mean and the variance to normalize with, (C,) each, dtypes as for ``weight``; None takes the
            input's own, over N, H and W.

    Returns:
        The result, of the input's shape and dtype, and the mean and the variance (of all elements, not of a sample)
        that were used: the input's own ones (C,) in float32, or float64 for a float64 input. No gradient flows
        through these.

    Raises:
        ValueError, TypeError: naming the argument whose shape, dtype or device is wrong.
    """
    if statistics is None:
        whole = BatchNorm.apply if torch.is_grad_enabled() else BatchNorm.forward
        return whole(input, residual, weight, bias, eps, relu)
    given = BatchNormInference.apply if torch.is_grad_enabled() else BatchNormInference.forward
    return given(input, residual, weight, bias, *statistics, eps, relu), *statistics
