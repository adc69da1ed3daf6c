"""Residual networks (He et al. 2015, "Deep Residual Learning for Image Recognition", arXiv 1512.03385)."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.models.convnet import STEMS, ConvNet, stem_for
from sparsekern.nn import BatchNorm2d


def conv1x1(in_channels: int, out_channels: int, stride: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, 1, stride=stride, bias=False)


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
    return nn.Sequential(conv1x1(in_channels, out_channels, stride), BatchNorm2d(out_channels))


SHORTCUTS = {"A": PaddedShortcut, "B": projection_shortcut}


def make_shortcut(in_channels: int, out_channels: int, stride: int, option: str) -> nn.Module:
    """The identity where the block keeps the shape, else the option's."""
    unchanged = stride == 1 and in_channels == out_channels
    return nn.Identity() if unchanged else SHORTCUTS[option](in_channels, out_channels, stride)


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
    """Two 3x3 convolutions with batch norm around a shortcut. (B, in, H, W) -> (B, width, H/stride, W/stride)."""

    expansion = 1

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        self.conv1 = conv3x3(in_channels, width, stride)
        self.norm1 = BatchNorm2d(width, activation="relu")
        self.conv2 = conv3x3(width, width)
        self.norm2 = BatchNorm2d(width, activation="relu")
        self.shortcut = make_shortcut(in_channels, width, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm1(self.conv1(x))
        return self.norm2(self.conv2(hidden), self.shortcut(x))


class Bottleneck(nn.Module):
    """1x1, 3x3 and 1x1 convolutions to 4 * `width` channels. (B, in, H, W) -> (B, 4 * width, H/stride, W/stride).

    The stride is the 3x3 convolution's, as in torchvision's networks, not the first 1x1's as in the paper.
    """

    expansion = 4

    def __init__(self, in_channels: int, width: int, stride: int, shortcut: str) -> None:
        super().__init__()
        out_channels = self.expansion * width
        self.conv1 = conv1x1(in_channels, width)
        self.norm1 = BatchNorm2d(width, activation="relu")
        self.conv2 = conv3x3(width, width, stride)
        self.norm2 = BatchNorm2d(width, activation="relu")
        self.conv3 = conv1x1(width, out_channels)
        self.norm3 = BatchNorm2d(out_channels, activation="relu")
        self.shortcut = make_shortcut(in_channels, out_channels, stride, shortcut)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.norm2(self.conv2(self.norm1(self.conv1(x))))
        return self.norm3(self.conv3(hidden), self.shortcut(x))


class ResNet(ConvNet):
    """A stem of `width` channels, stages of blocks at width, 2*width, 4*width, ..., mean pooling, a linear head.

    There are three stages of n basic blocks for a `depth` of 6n+2 layers (8, 14, 20, ... 56, 104, 110; 20 where nothing
    is said), or as many as `stages` has numbers of blocks. All stages but the first begin with stride 2. `stem` is
    "cifar", a 3x3 convolution, or "imagenet", a 7x7 one of stride 2 and 3x3 max pooling of stride 2.
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
        stem: str = "cifar",
        block: type[BasicBlock] | type[Bottleneck] = BasicBlock,
    ) -> None:
        super().__init__()
        if shortcut not in SHORTCUTS:
            raise ValueError(f"shortcut must be one of {sorted(SHORTCUTS)}, got {shortcut!r}")
        if stem not in STEMS:
            raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")
        large = stem == "imagenet"
        self.stem = (
            nn.Conv2d(channels, width, 7, stride=2, padding=3, bias=False) if large else conv3x3(channels, width)
        )
        self.norm = BatchNorm2d(width, activation="relu")
        self.pool = nn.MaxPool2d(3, stride=2, padding=1) if large else nn.Identity()
        blocks: list[nn.Module] = []
        in_channels = width
        for stage, count in enumerate(blocks_by_stage(depth, stages)):
            for number in range(count):
                stride = 2 if stage > 0 and number == 0 else 1
                blocks.append(block(in_channels, width << stage, stride, shortcut))
                in_channels = block.expansion * width << stage
        self.blocks = nn.Sequential(*blocks)
        self.head = nn.Linear(in_channels, classes)
        self.reset_convolutions()

    @classmethod
    def cifar18(cls, channels: int = 3, classes: int = 10) -> ResNet:
        """ResNet-18 with a stem for small images: four stages of two blocks, 64 to 512 channels, projections."""
        return cls(channels, classes, width=64, stages=(2, 2, 2, 2), shortcut="B")

    def forward(self, images: Tensor) -> Tensor:
        hidden = self.pool(self.norm(self.stem(images)))
        return self.head(self.blocks(hidden).mean(dim=(2, 3)))


def cifar_resnet(
    channels: int, size: int, classes: int, *, width: int = 16, depth: int | None = None, shortcut: str = "A"
) -> ResNet:
    """The networks of 6n+2 layers for CIFAR (section 4.2 of the paper). They take images of any size."""
    return ResNet(channels, classes, width=width, depth=depth, shortcut=shortcut)


def resnet18(
    channels: int, size: int, classes: int, *, width: int = 64, stem: str | None = None, shortcut: str = "B"
) -> ResNet:
    """ResNet-18; `stem` by default "cifar" up to 64 pixels and "imagenet" above."""
    return ResNet(channels, classes, width=width, stages=(2, 2, 2, 2), shortcut=shortcut, stem=stem_for(size, stem))


def resnet34(
    channels: int, size: int, classes: int, *, width: int = 64, stem: str | None = None, shortcut: str = "B"
) -> ResNet:
    """ResNet-34; `stem` by default "cifar" up to 64 pixels and "imagenet" above."""
    return ResNet(channels, classes, width=width, stages=(3, 4, 6, 3), shortcut=shortcut, stem=stem_for(size, stem))


def resnet50(
    channels: int, size: int, classes: int, *, width: int = 64, stem: str | None = None, shortcut: str = "B"
) -> ResNet:
    """ResNet-50, of bottleneck blocks; `stem` by default "cifar" up to 64 pixels and "imagenet" above."""
    stages = (3, 4, 6, 3)
    stem = stem_for(size, stem)
    return ResNet(channels, classes, width=width, stages=stages, shortcut=shortcut, stem=stem, block=Bottleneck)
