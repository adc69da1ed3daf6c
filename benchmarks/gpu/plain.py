"""The networks in plain torch, as users of a GPU write them: what dense is, and what is made sparse."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.nets import Layer


class ViT(nn.Module):
    """Patches of 16x16 pixels and a class token, blocks with scaled_dot_product_attention; by default ViT-B/16."""

    patch = 16

    def __init__(
        self, size: int = 224, width: int = 768, depth: int = 12, heads: int = 12, classes: int = 1000
    ) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, width, self.patch, stride=self.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (size // self.patch) ** 2 + 1, width))
        self.blocks = nn.Sequential(*(Layer(width, heads) for _ in range(depth)))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, classes)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(patches), -1, -1), patches], dim=1) + self.position
        return self.head(self.norm(self.blocks(tokens))[:, 0])


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions with batch norm around a shortcut, which is projected where the shape changes."""

    def __init__(self, inputs: int, width: int, stride: int) -> None:
        super().__init__()
        outputs = 4 * width
        self.reduce, self.norm1 = nn.Conv2d(inputs, width, 1, bias=False), nn.BatchNorm2d(width)
        self.conv, self.norm2 = nn.Conv2d(width, width, 3, stride, padding=1, bias=False), nn.BatchNorm2d(width)
        self.expand, self.norm3 = nn.Conv2d(width, outputs, 1, bias=False), nn.BatchNorm2d(outputs)
        self.shortcut: nn.Module = nn.Identity()
        if stride > 1 or inputs != outputs:
            self.shortcut = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm2(self.conv(F.relu(self.norm1(self.reduce(x))))))
        return F.relu(self.norm3(self.expand(hidden)) + self.shortcut(x))


class ResNet(nn.Module):
    """By default ResNet-50 (the stride of a stage is in its first block's 3x3 convolution)."""

    def __init__(self, blocks: tuple[int, ...] = (3, 4, 6, 3), width: int = 64, classes: int = 1000) -> None:
        super().__init__()
        self.stem, self.norm = nn.Conv2d(3, width, 7, 2, padding=3, bias=False), nn.BatchNorm2d(width)
        stages, inputs = [], width
        for stage, count in enumerate(blocks):
            for index in range(count):
                stages.append(Bottleneck(inputs, width << stage, stride=2 if stage and not index else 1))
                inputs = 4 * (width << stage)
        self.stages = nn.Sequential(*stages)
        self.head = nn.Linear(inputs, classes)

    def forward(self, images: Tensor) -> Tensor:
        hidden = F.max_pool2d(F.relu(self.norm(self.stem(images))), 3, stride=2, padding=1)
        return self.head(self.stages(hidden).mean((2, 3)))
