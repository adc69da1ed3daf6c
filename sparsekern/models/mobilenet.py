"""MobileNetV1 (Howard et al. 2017, arXiv 1704.04861) and V2 (Sandler et al. 2018, arXiv 1801.04381)."""

from __future__ import annotations

from torch import Tensor, nn

from sparsekern.models.convnet import ConvNet, stem_for
from sparsekern.nn import BatchNorm2d

STEM = 32  # channels that both papers' networks begin with

# (channels, stride) of the V1 paper's table 1.
SEPARABLE = (
    (64, 1),
    (128, 2),
    (128, 1),
    (256, 2),
    (256, 1),
    (512, 2),
    *((512, 1),) * 5,
    (1024, 2),
    (1024, 1),
)
# (expansion, channels, blocks, stride of the first) of the V2 paper's table 2.
INVERTED = (
    (1, 16, 1, 1),
    (6, 24, 2, 2),
    (6, 32, 3, 2),
    (6, 64, 4, 2),
    (6, 96, 3, 1),
    (6, 160, 3, 2),
    (6, 320, 1, 1),
)
LAST = 1280  # channels before V2's head, which narrow networks keep


def convolution(in_channels: int, out_channels: int, kernel: int, stride: int = 1, groups: int = 1) -> nn.Conv2d:
    return nn.Conv2d(in_channels, out_channels, kernel, stride, kernel // 2, groups=groups, bias=False)


def divisible(channels: float) -> int:
    """The nearest multiple of 8, one more where that would take away over a tenth (the V2 authors' rounding)."""
    rounded = max(8, int(channels + 4) // 8 * 8)
    return rounded if rounded >= 0.9 * channels else rounded + 8


class SeparableBlock(nn.Sequential):
    """A depthwise 3x3 and a pointwise convolution, each with batch norm and ReLU."""

    def __init__(self, in_channels: int, out_channels: int, stride: int) -> None:
        super().__init__(
            convolution(in_channels, in_channels, 3, stride, groups=in_channels),
            BatchNorm2d(in_channels, activation="relu"),
            convolution(in_channels, out_channels, 1),
            BatchNorm2d(out_channels, activation="relu"),
        )


class MobileNetV1(ConvNet):
    """A 3x3 stem of `width` channels (32 in the paper), 13 separable blocks, mean pooling, a linear head.

    The "cifar" form has no stride in its stem. Input (B, channels, size, size), output (B, classes).
    """

    def __init__(self, channels: int, size: int, classes: int, *, width: int = STEM, stem: str | None = None) -> None:
        super().__init__()
        stride = 1 if stem_for(size, stem) == "cifar" else 2
        layers: list[nn.Module] = [convolution(channels, width, 3, stride), BatchNorm2d(width, activation="relu")]
        in_channels = width
        for wide, stride in SEPARABLE:
            out_channels = wide * width // STEM
            layers.append(SeparableBlock(in_channels, out_channels, stride))
            in_channels = out_channels
        self.features = nn.Sequential(*layers)
        self.head = nn.Linear(in_channels, classes)
        self.reset_convolutions()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))


class InvertedResidual(nn.Module):
    """Pointwise to `expansion` times the channels, depthwise 3x3, pointwise back; ReLU6 behind the first two."""

    def __init__(self, in_channels: int, out_channels: int, stride: int, expansion: int) -> None:
        super().__init__()
        wide = expansion * in_channels
        layers: list[nn.Module] = []
        if expansion != 1:
            layers += [convolution(in_channels, wide, 1), BatchNorm2d(wide), nn.ReLU6()]
        layers += [convolution(wide, wide, 3, stride, groups=wide), BatchNorm2d(wide), nn.ReLU6()]
        self.layers = nn.Sequential(*layers, convolution(wide, out_channels, 1))
        self.norm = BatchNorm2d(out_channels)
        self.has_shortcut = stride == 1 and in_channels == out_channels

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.layers(x), x if self.has_shortcut else None)


class MobileNetV2(ConvNet):
    """A 3x3 stem of `width` channels (32 in the paper), 17 inverted residuals, a 1x1 convolution, a linear head.

    The "cifar" form has stride 1 in its stem and its second stage. Dropout of 0.2 before the head, as the paper's
    authors have it. Input (B, channels, size, size), output (B, classes).
    """

    def __init__(self, channels: int, size: int, classes: int, *, width: int = STEM, stem: str | None = None) -> None:
        super().__init__()
        small = stem_for(size, stem) == "cifar"
        scale = width / STEM
        in_channels = divisible(width)
        layers: list[nn.Module] = [
            convolution(channels, in_channels, 3, 1 if small else 2),
            BatchNorm2d(in_channels),
            nn.ReLU6(),
        ]
        for stage, (expansion, wide, blocks, first) in enumerate(INVERTED):
            out_channels = divisible(wide * scale)
            for block in range(blocks):
                stride = first if block == 0 and not (small and stage == 1) else 1
                layers.append(InvertedResidual(in_channels, out_channels, stride, expansion))
                in_channels = out_channels
        last = divisible(LAST * max(1.0, scale))
        layers += [convolution(in_channels, last, 1), BatchNorm2d(last), nn.ReLU6()]
        self.features = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Dropout(0.2), nn.Linear(last, classes))
        self.reset_convolutions()

    def forward(self, images: Tensor) -> Tensor:
        return self.head(self.features(images).mean(dim=(2, 3)))
