"""Plain torch twins of the batch norm kernels: any device; differentiable, which second derivatives make use of."""

import torch
from torch import Tensor

from sparsekern.backends._reference_linear import accumulation_dtype

_OVER = (0, 2, 3)


def output_format(x: Tensor) -> torch.memory_format:
    """channels_last for results of an input that is laid out so, else the usual format."""
    if not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last):
        return torch.channels_last
    return torch.contiguous_format


def _by_channel(values: Tensor) -> Tensor:
    return values[:, None, None]


def moments(x: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and variance (of all elements, not of a sample) of each channel: two (C,), float32 or float64."""
    wide = x.to(accumulation_dtype(x.dtype))
    if x.numel() == 0:
        return wide.new_zeros(x.shape[1]), wide.new_zeros(x.shape[1])
    var, mean = torch.var_mean(wide, _OVER, correction=0)
    return mean, var


def _mapped(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, mean: Tensor, var: Tensor, eps: float
) -> tuple[Tensor, Tensor]:
    """The normalized input and its affine map, in the type that sums are kept in."""
    wide = mean.dtype
    normal = (x.to(wide) - _by_channel(mean)) * _by_channel((var + eps).rsqrt())
    y = normal if weight is None else normal * _by_channel(weight.to(wide))
    return normal, y if bias is None else y + _by_channel(bias.to(wide))


def batch_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    """relu(affine(x normalized with its own statistics) + residual), the mean and the variance."""
    mean, var = moments(x)
    return batch_norm_inference(x, residual, weight, bias, mean, var, eps, relu), mean, var


def batch_norm_inference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool,
) -> Tensor:
    """relu(affine(x normalized with these statistics) + residual), in x's dtype."""
    wide = accumulation_dtype(x.dtype)
    _, y = _mapped(x, weight, bias, mean.to(wide), var.to(wide), eps)
    if residual is not None:
        y = y + residual.to(wide)
    if relu:
        y = y.relu()
    return y.to(x.dtype).contiguous(memory_format=output_format(x))


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool,
    batch_statistics: bool,
    need_x: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """dx and dresidual (empty where not needed), dweight (C,), dbias (C,)."""
    wide = accumulation_dtype(x.dtype)
    mean, var = mean.to(wide), var.to(wide)
    normal, mapped = _mapped(x, weight, bias, mean, var, eps)
    passed = grad.to(wide)
    if relu:
        passed = torch.where((mapped if y is None else y) <= 0, 0, passed)
    dbias, dweight = passed.sum(_OVER), (passed * normal).sum(_OVER)
    dx = dresidual = x.new_empty(0)
    if need_x:
        scale = (var + eps).rsqrt()
        if weight is not None:
            scale = scale * weight.to(wide)
        centered = passed
        if batch_statistics and x.numel() > 0:
            count = x.numel() // x.shape[1]
            centered = passed - _by_channel(dbias / count) - normal * _by_channel(dweight / count)
        dx = (centered * _by_channel(scale)).to(x.dtype).contiguous(memory_format=output_format(x))
    if need_residual:
        dresidual = passed.to(x.dtype).contiguous(memory_format=output_format(x))
    return dx, dresidual, dweight, dbias
