"""VGG-16 with batch norm (Simonyan and Zisserman 2015, arXiv 1409.1556, configuration D)."""

from __future__ import annotations

from torch import Tensor, nn

from sparsekern.models.convnet import ConvNet, stem_for
from sparsekern.nn import BatchNorm2d

STAGES = ((1, 2), (2, 2), (4, 3), (8, 3), (8, 3))  # (channels over the first stage's, convolutions)
HIDDEN = {"cifar": 512, "imagenet": 4096}
POOLED = {"cifar": 1, "imagenet": 7}  # pixels a side that the fully connected layers see


class VGG16(ConvNet):
    """Thirteen 3x3 convolutions in five stages of `width` to 8 * `width` channels, then three linear layers.

    `width` is 64, and 16 in the GSE paper's VGG-16/4. `hidden` units in each of the two hidden linear layers, by
    default 4096 behind 7x7 pixels in the "imagenet" form and 512 behind one pixel in the "cifar" form; with 0 there is
    one linear layer in all, as in ToST's network. Max pooling ends each stage while there are 2 pixels to pool.
    Input (B, channels, size, size), output (B, classes).
    """

    def __init__(
        self,
        channels: int,
        size: int,
        classes: int,
        *,
        width: int = 64,
        hidden: int | None = None,
        stem: str | None = None,
    ) -> None:
        super().__init__()
        stem = stem_for(size, stem)
        hidden = HIDDEN[stem] if hidden is None else hidden
        if hidden < 0:
            raise ValueError(f"hidden must be a number of units, or 0 for a single linear layer, got {hidden}")
        layers: list[nn.Module] = []
        for factor, convolutions in STAGES:
            for _ in range(convolutions):
                layers += [
                    nn.Conv2d(channels, factor * width, 3, padding=1),
                    BatchNorm2d(factor * width, activation="relu"),
                ]
                channels = factor * width
            if size > 1:
                layers.append(nn.MaxPool2d(2))
                size //= 2
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(POOLED[stem])
        inputs = channels * POOLED[stem] ** 2
        self.classifier = nn.Sequential(
            *([] if hidden == 0 else _hidden_layer(inputs, hidden) + _hidden_layer(hidden, hidden)),
            nn.Linear(hidden or inputs, classes),
        )
        self.reset_convolutions()

    def forward(self, images: Tensor) -> Tensor:
        return self.classifier(self.pool(self.features(images)).flatten(1))


def _hidden_layer(inputs: int, outputs: int) -> list[nn.Module]:
    return [nn.Linear(inputs, outputs), nn.ReLU(), nn.Dropout(0.5)]
