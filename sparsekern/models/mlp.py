"""A multi-layer perceptron on flattened images."""

from __future__ import annotations

import itertools

from torch import Tensor, nn


class MLP(nn.Module):
    """`depth` hidden layers of `width` units with ReLU, then a linear head.

    Input (B, channels, size, size), output (B, classes).
    """

    def __init__(self, channels: int, size: int, classes: int, *, width: int = 512, depth: int = 3) -> None:
        super().__init__()
        if depth < 1:
            raise ValueError(f"depth must be at least 1 hidden layer, got {depth}")
        widths = [channels * size * size, *[width] * depth]
        self.hidden = nn.ModuleList(nn.Linear(a, b) for a, b in itertools.pairwise(widths))
        self.activation = nn.ReLU()
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = images.flatten(1)
        for layer in self.hidden:
            hidden = self.activation(layer(hidden))
        return self.head(hidden)
