"""What the convolutional networks share: which form an image size asks for, and initial values."""

from __future__ import annotations

from torch import nn

STEMS = ("cifar", "imagenet")
LARGEST_CIFAR = 64  # pixels; TinyImageNet's images


def stem_for(size: int, stem: str | None) -> str:
    """The form of a network for images of `size` pixels: `stem` itself, or by default "cifar" up to 64 pixels.

    Raises ValueError for a `stem` that is neither "cifar" nor "imagenet".
    """
    if stem is None:
        return "cifar" if size <= LARGEST_CIFAR else "imagenet"
    if stem not in STEMS:
        raise ValueError(f"stem must be one of {', '.join(STEMS)}, got {stem!r}")
    return stem


class ConvNet(nn.Module):
    """A network of convolutions with batch norm and ReLU."""

    def reset_convolutions(self) -> None:
        """Draws the dense convolutions' weights by fan-out (He et al. 2015, arXiv 1502.01852, eq. 14); zero biases."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
