"""Dense torch: its default, and what else may be faster; the best of them is the one to beat."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.libraries.candidate import Candidate


def layers(dense: nn.Linear | nn.Conv2d, mask: Tensor, dtype: torch.dtype | None = None) -> list[Candidate]:
    """The default first; in the layer's own dtype, or another."""
    dtype = dense.weight.dtype if dtype is None else dtype
    weight = nn.Parameter((dense.weight * mask).detach().to(dtype))
    bias = nn.Parameter(dense.bias.detach().to(dtype, copy=True))

    def edge_grad() -> Tensor:
        return weight.grad[mask]

    if isinstance(dense, nn.Linear):
        return [
            Candidate("F.linear", lambda x: F.linear(x, weight, bias), [weight, bias], edge_grad),
            Candidate("oneDNN linear", lambda x: onednn_linear(x, weight, bias), [weight, bias], edge_grad),
        ]
    options = (dense.stride, dense.padding, dense.dilation, dense.groups)
    last = nn.Parameter(weight.detach().to(memory_format=torch.channels_last))
    return [
        Candidate("F.conv2d NCHW", lambda x: F.conv2d(x, weight, bias, *options), [weight, bias], edge_grad),
        Candidate(
            "F.conv2d NHWC",
            lambda x: F.conv2d(x, last, bias, *options),
            [last, bias],
            lambda: last.grad[mask],
            torch.channels_last,
        ),
    ]


def onednn_linear(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """F.linear whose three products all run in oneDNN, which on some processors beats torch's BLAS."""
    return _OneDnnLinear.apply(x, weight, bias)


class _OneDnnLinear(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        product = torch.ops.mkldnn._linear_pointwise
        rows, columns = grad.flatten(0, -2), x.flatten(0, -2)
        dx = product(grad, weight.t(), None, "none", [], "")
        dw = product(rows.t(), columns.t(), None, "none", [], "")
        return dx, dw, rows.sum(0)
