"""The layers that are measured one by one."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Shape:
    """A dense layer and its input.

    The edges of a large layer, in several libraries and at several sparsities at a time, would not fit into an
    ordinary machine's memory: of one that `is_large` one sparsity is measured at a time, and none below `lowest`, in
    percent.
    """

    batch: int
    make: Callable[[], nn.Linear | nn.Conv2d]
    size: int = 1  # pixels a side of a convolution's input
    lowest: float = 0.0
    is_large: bool = False

    def with_batch(self, batch: int) -> Shape:
        return replace(self, batch=batch)

    @property
    def name(self) -> str:
        with torch.device("meta"):
            layer = self.make()
        if isinstance(layer, nn.Linear):
            return f"linear {layer.in_features}->{layer.out_features}, {self.batch} tokens"
        kernel, stride = layer.kernel_size[0], layer.stride[0]
        stride_name = f" stride {stride}" if stride > 1 else ""
        ends = f"{layer.in_channels}->{layer.out_channels}"
        return f"conv {kernel}x{kernel}{stride_name} {ends}, {self.batch} images of {self.size}x{self.size}"

    def sample(self, layer: nn.Linear | nn.Conv2d) -> Tensor:
        """A fresh random input."""
        if isinstance(layer, nn.Linear):
            return torch.randn(self.batch, layer.in_features)
        return torch.randn(self.batch, layer.in_channels, self.size, self.size)


def linear(batch: int, inputs: int, outputs: int, **more: Any) -> Shape:
    return Shape(batch, lambda: nn.Linear(inputs, outputs), **more)


def conv(batch: int, inputs: int, size: int, outputs: int, kernel: int = 3, stride: int = 1) -> Shape:
    return Shape(batch, lambda: nn.Conv2d(inputs, outputs, kernel, stride, padding=kernel // 2), size)


SHAPES = (
    linear(2048, 768, 3072),
    linear(2048, 3072, 768),
    linear(2048, 768, 768),
    linear(256, 4096, 4096),
    linear(64, 16384, 16384, lowest=80, is_large=True),
    conv(64, 64, 32, 64),
    conv(64, 128, 16, 128),
    conv(64, 256, 8, 256),
    conv(64, 128, 16, 256, stride=2),
    conv(32, 256, 14, 1024, kernel=1),
)
