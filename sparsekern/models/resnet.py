"""CIFAR-style residual networks (He et al. 2015, "Deep Residual Learning for Image Recognition", section 4.2)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.nn import BatchNorm2d


def conv3x3(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 3, stride=stride, padding=1, bias=False)


class PaddedShortcut(nn.Module):
    """Option A: every stride-th pixel, the missing channels filled with zeros. No parameters."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__()
        self.missing, self.stride = out_channels - in_channels, stride

    def forward(self, x: Tensor) -> Tensor:
        before = self.missing // 2
        return F.pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, before, self.missing - before))


def projection_shortcut(in_channels: int, out_channels: int, stride: int) -> nn.Module:
    """Option B: a strided 1x1 convolution and its norm."""
    convolution = nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)
    return nn.Sequential(convolution, BatchNorm2d(out_channels))


SHORTCUTS = {"A": PaddedShortcut, "B": projection_shortcut}


def blocks_by_stage(depth: int | None, stages: Sequence[int] | None) -> Sequence[int]:
    """Blocks of each stage. Raises ValueError for sizes that there are not, and where both are given."""
    if stages is not None:
        if depth is not None:
            raise ValueError(f"depth is {depth} and stages {tuple(stages)}; expected one of the two")
        if not stages or min(stages) < 1:
            raise ValueError(f"stages must be one number of blocks or more, each at least 1, got {tuple(stages)}")
        return stages
    depth = 20 if depth is None else depth
    if depth < 8 or (depth - 2) % 6:
        raise ValueError(f"depth of a ResNet must be 6n+2 (8, 14, 20, 26, ...), got {depth}")
    return ((depth - 2) // 6,) * 3


class BasicBlock(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut. (B, in, H, W) -> (B, out, H/stride, W/stride)."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, out_channels, stride)
        self.norm1 = BatchNorm2d(out_channels, activation="relu")
        self.conv2 = conv3x3(out_channels, out_channels)
        self.norm2 = BatchNorm2d(out_channels, activation="relu")
        unchanged = stride == 1 and in_channels == out_channels
        self.shortcut = nn.Identity() if unchanged else SHORTCUTS[shortcut](in_channels, out_channels, stride)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(hidden), self.shortcut(x))


class ResNet(nn.Module):
    """A 3x3 stem of `width` channels, stages of blocks at width, 2*width, 4*width, ..., mean pooling, a linear head.

    There are three stages of n blocks for a `depth` of 6n+2 layers (8, 14, 20, ... 56, 110; 20 where nothing is said),
    or as many as `stages` has numbers of blocks. All stages but the first begin with stride 2.
    Input (B, channels, H, W), output (B, classes).
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        *,
        width: int = 16,
        depth: int | None = None,
        stages: Sequence[int] | None = None,
        shortcut: str = "A",
    ) -> None:
        super().__init__()
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be one of {sorted(SHORTCUTS)}, got {shortcut!r}")
        self.stem = conv3x3(channels, width)
        self.norm = BatchNorm2d(width, activation="relu")
        blocks: list[nn.Module] = []
        in_channels = width
        for stage, count in enumerate(blocks_by_stage(depth, stages)):
            out_channels = width << stage
            for block in range(count):
                stride = 2 if stage > 0 and block == 0 else 1
                blocks.append(BasicBlock(in_channels, out_channels, stride, shortcut))
                in_channels = out_channels
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(in_channels, classes)
        self.reset_convolutions()

    @classmethod
    def cifar18(cls, channels: int = 3, classes: int = 10) -> ResNet:
        """ResNet-18 with a stem for small images: four stages of two blocks, 64 to 512 channels, projections."""
        return cls(channels, classes, width=64, stages=(2, 2, 2, 2), shortcut="B")

    def reset_convolutions(self) -> None:
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.norm(self.stem(images))
        return self.head(self.blocks(hidden).mean(dim=(2, 3)))
