"""The networks that are measured whole, and how each is made sparse."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, AdamW, Optimizer

import sparsekern
from benchmarks.libraries.dense import onednn_linear
from sparsekern.models import ViT

CLASSES, SIZE = 10, 32


@dataclass(frozen=True)
class Network:
    """A dense network for images of 3x32x32 in 10 classes, as users write it, with its usual optimizer.

    `fast` changes it, in place, into the fastest dense network that computes the same.
    """

    make: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    fast: Callable[[nn.Module], nn.Module]
    fast_name: str

    def batch(self, size: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random (images, labels)."""
        images = torch.randn(size, 3, SIZE, SIZE, generator=generator)
        return images, torch.randint(CLASSES, (size,), generator=generator)


def make_sparse(model: nn.Module, density: float) -> nn.Module:
    """The network as a user of this library would have it, in place."""
    sparsekern.sparsify(model, density=density)
    return model


class Block(nn.Module):
    """Two 3x3 convolutions with batch norm around a shortcut, which is projected where the shape changes."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, padding=1, bias=False)
        self.norm1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, padding=1, bias=False)
        self.norm2 = nn.BatchNorm2d(outputs)
        projected = stride > 1 or inputs != outputs
        self.shortcut = (
            nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))
            if projected
            else nn.Identity()
        )

    def forward(self, x: Tensor) -> Tensor:
        hidden = F.relu(self.norm1(self.conv1(x)))
        return F.relu(self.norm2(self.conv2(hidden)) + self.shortcut(x))


def resnet18() -> nn.Module:
    """ResNet-18 as it is trained on CIFAR: a 3x3 stem, no pooling before the last."""
    blocks = []
    inputs = 64
    for outputs, stride in ((64, 1), (64, 1), (128, 2), (128, 1), (256, 2), (256, 1), (512, 2), (512, 1)):
        blocks.append(Block(inputs, outputs, stride))
        inputs = outputs
    stem = [nn.Conv2d(3, 64, 3, padding=1, bias=False), nn.BatchNorm2d(64), nn.ReLU()]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, CLASSES))


def vit() -> nn.Module:
    """64 patches of 4x4 pixels and a class token, 6 blocks of width 384 with 6 heads."""
    return ViT(3, SIZE, CLASSES, width=384, depth=6, heads=6, patch=4, pooling="cls")


def channels_last(model: nn.Module) -> nn.Module:
    return model.to(memory_format=torch.channels_last)


class OneDnnLinear(nn.Linear):
    """nn.Linear whose products run in oneDNN."""

    def forward(self, x: Tensor) -> Tensor:
        return onednn_linear(x, self.weight, self.bias)


def onednn(model: nn.Module) -> nn.Module:
    for module in model.modules():
        if type(module) is nn.Linear:
            module.__class__ = OneDnnLinear
    return model


NETWORKS = {
    "ResNet-18": Network(
        resnet18,
        lambda model: SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4),
        channels_last,
        "dense, channels last",
    ),
    "ViT": Network(vit, lambda model: AdamW(model.parameters(), lr=1e-4), onednn, "dense, oneDNN linears"),
}


def chosen(name: str) -> dict[str, Network]:
    """The networks whose name contains this.

    Raises:
        ValueError: none does.
    """
    found = {key: network for key, network in NETWORKS.items() if name.lower() in key.lower()}
    if not found:
        raise ValueError(f"--network is {name!r}, which no network's name contains: {', '.join(NETWORKS)}")
    return found
