"""The layers that are measured on a GPU, and one of them at one sparsity with all that its results are checked by."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.shapes import Shape, conv, linear
from sparsekern.pattern import Pattern

PRODUCTS = ("forward", "input gradient", "weight gradient")

# The most telling first. The last one's dense weight is a gibibyte in float32: not below 90%.
LINEAR = (
    linear(8192, 4096, 4096),
    linear(1024, 4096, 4096),
    linear(8192, 768, 3072),
    linear(8192, 3072, 768),
    linear(8192, 1024, 4096),
    linear(1024, 16384, 16384, lowest=90, is_large=True),
)
CONVOLUTIONS = (
    conv(64, 256, 14, 256),
    conv(64, 64, 56, 64),
    conv(64, 128, 28, 128),
    conv(64, 512, 7, 512),
)
SMOKE_LINEAR = (linear(16, 32, 24), linear(8, 40, 40, lowest=90, is_large=True))
SMOKE_CONVOLUTIONS = (conv(2, 4, 6, 8),)


def dense_layer(shape: Shape, device: torch.device) -> nn.Linear | nn.Conv2d:
    with torch.device(device):
        return shape.make()


def draw(shape: Shape, layer: nn.Linear | nn.Conv2d, device: torch.device) -> tuple[Tensor, Tensor]:
    """A fresh input and a fresh gradient of the output, float32, by token as layers are given them."""
    with torch.device(device), torch.no_grad():
        x = shape.sample(layer)
        return x, torch.randn(output_shape(layer, x))


def output_shape(layer: nn.Linear | nn.Conv2d, x: Tensor) -> torch.Size:
    with torch.no_grad():
        empty = torch.empty(x.shape, device="meta")
        if isinstance(layer, nn.Linear):
            return torch.Size((*x.shape[:-1], layer.out_features))
        weight = torch.empty(layer.weight.shape, device="meta")
        return F.conv2d(empty, weight, None, layer.stride, layer.padding, layer.dilation, layer.groups).shape


class DenseProducts:
    """The three products of a dense layer, each by itself, of any dtype."""

    def __init__(self, layer: nn.Linear | nn.Conv2d) -> None:
        self._conv: tuple[Any, ...] | None = None
        if isinstance(layer, nn.Conv2d):
            self._conv = layer.stride, layer.padding, layer.dilation, layer.groups

    def forward(self, x: Tensor, w: Tensor, bias: Tensor | None) -> Tensor:
        return F.linear(x, w, bias) if self._conv is None else F.conv2d(x, w, bias, *self._conv)

    def input_grad(self, grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return grad @ w if self._conv is None else self._backward(grad, x, w, 0)

    def weight_grad(self, grad: Tensor, x: Tensor, w: Tensor) -> Tensor:
        return grad.t() @ x if self._conv is None else self._backward(grad, x, w, 1)

    def _backward(self, grad: Tensor, x: Tensor, w: Tensor, which: int) -> Tensor:
        stride, padding, dilation, groups = self._conv
        wanted = [index == which for index in range(3)]
        results = torch.ops.aten.convolution_backward(
            grad, x, w, None, stride, padding, dilation, False, [0, 0], groups, wanted
        )
        return results[which]


@dataclass(frozen=True)
class Problem:
    """A dense layer in float32 and which of its weights stay; a sparsity of None: all."""

    shape: Shape
    layer: nn.Linear | nn.Conv2d
    sparsity: float | None
    mask: Tensor
    pattern: Pattern | None

    @classmethod
    def of(cls, shape: Shape, layer: nn.Linear | nn.Conv2d, sparsity: float | None) -> Problem:
        weight = layer.weight
        if sparsity is None:
            return cls(shape, layer, None, torch.ones_like(weight, dtype=torch.bool), None)
        mask = torch.rand(weight.shape, device=weight.device) < 1 - sparsity / 100
        return cls(shape, layer, sparsity, mask, Pattern.from_mask(mask.flatten(1)))

    @property
    def edges(self) -> int:
        return self.mask.numel() if self.pattern is None else self.pattern.nnz

    @torch.no_grad()
    def expected(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output, input gradient and the weight's gradient at the edges (row-major) of these very values, float64."""
        products, wide, wide_grad = DenseProducts(self.layer), x.double(), grad.double()
        w = self.layer.weight.double() * self.mask
        y = products.forward(wide, w, self.layer.bias.double())
        dw = products.weight_grad(wide_grad, wide, w)
        return y, products.input_grad(wide_grad, wide, w), dw[self.mask]
