"""Smooth activations that become ReLU."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd import Function

from sparsekern.tost.phase import Phase


class Soft(NamedTuple):
    """``f(beta x) / beta`` for an f no farther than 1 from relu, and hence no farther than 1 / beta itself."""

    value: Callable[[Tensor, Tensor, Tensor], Tensor]  # of x, z = beta x, which may be overwritten, and beta
    slope: Callable[[Tensor], Tensor]  # f'(z), differentiable
    fused: Callable[[Tensor, Tensor], Tensor]  # (gradient, z) -> gradient f'(z) in one pass, not differentiable


def _swish(x: Tensor, z: Tensor, beta: Tensor) -> Tensor:
    return z.sigmoid_().mul_(x)


def _swish_slope(z: Tensor) -> Tensor:
    gate = z.sigmoid()
    return gate + z * (gate * (1 - gate))


def _gelu(x: Tensor, z: Tensor, beta: Tensor) -> Tensor:
    return z.mul_(-math.sqrt(0.5)).erfc_().mul_(0.5).mul_(x)


def _gelu_slope(z: Tensor) -> Tensor:
    density = torch.exp(-0.5 * z * z) * (1 / math.sqrt(2 * math.pi))
    return 0.5 * torch.erfc(z * -math.sqrt(0.5)) + z * density


def _mish(x: Tensor, z: Tensor, beta: Tensor) -> Tensor:
    return F.softplus(z).tanh_().mul_(x)


def _mish_slope(z: Tensor) -> Tensor:
    gate = F.softplus(z).tanh()
    return gate + z * (1 - gate * gate) * z.sigmoid()


def _elu(x: Tensor, z: Tensor, beta: Tensor) -> Tensor:
    return torch.where(x > 0, x, z.clamp_(max=0).expm1_() / beta)


def _elu_slope(z: Tensor) -> Tensor:
    return z.clamp(max=0).exp()


def _softplus(x: Tensor, z: Tensor, beta: Tensor) -> Tensor:
    return x.relu() + z.abs_().neg_().exp_().log1p_() / beta


def _softplus_slope(z: Tensor) -> Tensor:
    return z.sigmoid()


SOFT: dict[str, Soft] = {
    "swish": Soft(_swish, _swish_slope, torch.ops.aten.silu_backward),
    "gelu": Soft(_gelu, _gelu_slope, torch.ops.aten.gelu_backward),
    "mish": Soft(_mish, _mish_slope, torch.ops.aten.mish_backward),
    "elu": Soft(_elu, _elu_slope, lambda grad, z: torch.ops.aten.elu_backward(grad, 1, 1, 1, False, z)),
    "softplus": Soft(_softplus, _softplus_slope, lambda grad, z: grad * z.sigmoid()),
}


def _wide(x: Tensor) -> Tensor:
    return x if x.dtype == torch.float64 else x.float()


class _SoftRelu(Function):
    """f(beta x) / beta of (x, beta, name of f). Half types are rounded once; backward holds x alone."""

    @staticmethod
    def forward(x: Tensor, beta: Tensor, name: str) -> Tensor:
        wide = _wide(x)
        return SOFT[name].value(wide, wide * beta, beta).to(x.dtype)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, str], output: Tensor) -> None:
        x, beta, ctx.name = inputs
        ctx.save_for_backward(x, beta)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
        x, beta = ctx.saved_tensors
        z, wide_grad = _wide(x) * beta, _wide(grad)
        if torch.is_grad_enabled() and not torch.compiler.is_compiling():  # a derivative of this may be asked for
            dx = wide_grad * SOFT[ctx.name].slope(z)
        else:
            dx = SOFT[ctx.name].fused(wide_grad, z)
        return dx.to(x.dtype), None, None


def soft_relu(input: Tensor, beta: Tensor, name: str = "swish") -> Tensor:
    """``f(beta input) / beta``, which is relu(input) in the limit: no farther from it than 1 / beta.

    f is "swish", x sigmoid(x) (the ToST paper's, arXiv 2206.12755; Ramachandran et al. 2017), "gelu", "mish", "elu" or
    "softplus". Differentiable twice.

    Args:
        input: any shape and strides, floating point.
        beta: a positive scalar tensor, finite.
        name: of f.

    Returns:
        The input's shape and dtype; half types are computed in float32.
    """
    return _SoftRelu.apply(input, beta, name)


class SoftReLU(nn.Module):
    """In the place of an ``nn.ReLU``, or ``nn.ReLU6`` where ``ceiling`` is 6, for the time of a ghost phase.

    ReLU6 is relu(x) - relu(x - 6), and both are softened. No parameters.
    """

    def __init__(self, phase: Phase, name: str, ceiling: float | None = None, inplace: bool = False) -> None:
        super().__init__()
        self.phase, self.name, self.ceiling, self.inplace = phase, name, ceiling, inplace

    def forward(self, input: Tensor) -> Tensor:
        if self.phase.over:
            return F.relu(input, self.inplace) if self.ceiling is None else F.hardtanh(input, 0.0, self.ceiling)
        beta = self.phase.beta
        y = soft_relu(input, beta, self.name)
        return y if self.ceiling is None else y - soft_relu(input - self.ceiling, beta, self.name)

    def extra_repr(self) -> str:
        ceiling = "" if self.ceiling is None else f", ceiling={self.ceiling:g}"
        return f"{self.name}, beta={self.phase.beta.item():.4g}{ceiling}"
