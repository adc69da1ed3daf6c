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
from sparsekern.models import ResNet, ViT

CLASSES, SIZE = 10, 32


@dataclass(frozen=True)
class Network:
    """A dense network for images of 3x32x32 in 10 classes, as users write it, with its usual optimizer.

    `fast` changes it, in place, into the fastest dense network that computes the same; `ours` makes the same network
    of this library's models, whose norms, activations and attention are fused.
    """

    make: Callable[[], nn.Module]
    ours: Callable[[], nn.Module]
    optimizer: Callable[[nn.Module], Optimizer]
    fast: Callable[[nn.Module], nn.Module]
    fast_name: str

    def batch(self, size: int, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Random (images, labels)."""
        images = torch.randn(size, 3, SIZE, SIZE, generator=generator)
        return images, torch.randint(CLASSES, (size,), generator=generator)

    def in_our_modules(self, dense: nn.Module) -> nn.Module:
        """The library's model with the parameters and buffers of `dense`, which come in the same order."""
        model = self.ours()
        with torch.no_grad():
            for mine, theirs in ((model.parameters(), dense.parameters()), (model.buffers(), dense.buffers())):
                for to, given in zip(mine, theirs, strict=True):
                    to.copy_(given)
        return model


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


class Attention(nn.Module):
    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(width, 3 * width)
        self.projection = nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, tokens, width = x.shape
        query, key, value = self.qkv(x).view(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(query, key, value)
        return self.projection(mixed.transpose(1, 2).reshape(batch, tokens, width))


class Layer(nn.Module):
    """Attention and a GELU network, each behind its layer norm and residual."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(width)
        self.attention = Attention(width, heads)
        self.norm2 = nn.LayerNorm(width)
        self.expand = nn.Linear(width, 4 * width)
        self.contract = nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.attention(self.norm1(x))
        return x + self.contract(F.gelu(self.expand(self.norm2(x))))


class Vit(nn.Module):
    """64 patches of 4x4 pixels and a class token, 6 blocks of width 384 with 6 heads."""

    width, depth, heads, patch = 384, 6, 6, 4

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, self.width, self.patch, stride=self.patch)
        self.cls = nn.Parameter(torch.zeros(1, 1, self.width))
        self.position = nn.Parameter(0.02 * torch.randn(1, (SIZE // self.patch) ** 2 + 1, self.width))
        self.blocks = nn.Sequential(*(Layer(self.width, self.heads) for _ in range(self.depth)))
        self.norm = nn.LayerNorm(self.width)
        self.head = nn.Linear(self.width, CLASSES)

    def forward(self, images: Tensor) -> Tensor:
        patches = self.embed(images).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.cls.expand(len(patches), -1, -1), patches], dim=1) + self.position
        return self.head(self.norm(self.blocks(tokens)[:, 0]))


def our_vit() -> nn.Module:
    return ViT(3, SIZE, CLASSES, width=Vit.width, depth=Vit.depth, heads=Vit.heads, patch=Vit.patch, pooling="cls")


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
        ResNet.cifar18,
        lambda model: SGD(model.parameters(), lr=0.01, momentum=0.9, weight_decay=5e-4),
        channels_last,
        "dense, channels last",
    ),
    "ViT": Network(Vit, our_vit, lambda model: AdamW(model.parameters(), lr=1e-4), onednn, "dense, oneDNN linears"),
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
