"""Plain torch twins of the elementwise kernels: any device; differentiable, which second derivatives make use of."""

import math

import torch
from torch import Tensor

from sparsekern.backends._reference_linear import accumulation_dtype


def _gate(x: Tensor, tanh: bool) -> tuple[Tensor, Tensor]:
    """s(x) and s'(x), GELU being x s(x)."""
    if tanh:
        value = torch.sigmoid(math.sqrt(8 / math.pi) * (x + 0.044715 * x * x * x))
        slope = value * (1 - value)
        inner = math.sqrt(8 / math.pi) * (1 + 3 * 0.044715 * x * x)
        return value, torch.where(slope == 0, 0, slope * inner)
    return 0.5 * torch.erfc(-math.sqrt(0.5) * x), (-0.5 * x * x).exp() / math.sqrt(2 * math.pi)


def gelu(x: Tensor, tanh: bool) -> Tensor:
    """x times the normal distribution function at x, or its approximation by tanh, in x's dtype."""
    wide = x.to(accumulation_dtype(x.dtype))
    return (wide * _gate(wide, tanh)[0]).to(x.dtype)


def gelu_backward(grad: Tensor, x: Tensor, tanh: bool) -> Tensor:
    """grad times GELU's derivative at x, in x's dtype."""
    wide = x.to(accumulation_dtype(x.dtype))
    value, slope = _gate(wide, tanh)
    return (grad.to(wide.dtype) * (value + wide * slope)).to(x.dtype)
