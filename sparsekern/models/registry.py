"""The networks by the name that `--model` takes."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn

from sparsekern.models.mlp import MLP
from sparsekern.models.mobilenet import MobileNetV1, MobileNetV2
from sparsekern.models.resnet import cifar_resnet, resnet18, resnet34, resnet50
from sparsekern.models.simple_vit import SimpleViT
from sparsekern.models.vgg import VGG16
from sparsekern.models.vit import ViT, vit_b, vit_s, vit_ti

# Each is called with (channels, size, classes, **options).
MODELS: dict[str, Callable[..., nn.Module]] = {
    "mlp": MLP,
    "resnet": cifar_resnet,
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "vgg16": VGG16,
    "mobilenetv1": MobileNetV1,
    "mobilenetv2": MobileNetV2,
    "vit": ViT,
    "simple-vit": SimpleViT,
    "vit-ti": vit_ti,
    "vit-s": vit_s,
    "vit-b": vit_b,
}


def make_model(name: str, channels: int, size: int, classes: int, **options: Any) -> nn.Module:
    """The dense network of this name for images (channels, size, size), initialised from torch's global generator.

    Under `with torch.device("meta"):` it takes no memory, and `sparsify(model, ..., device="cpu")` builds it sparse.

    Args:
        name: a key of `MODELS`.
        options: the network's own keywords.

    Raises:
        ValueError: an unknown name, or sizes or options that the network does not have.
    """
    if name not in MODELS:
        raise ValueError(f"model must be one of {', '.join(MODELS)}, got {name!r}")
    return MODELS[name](channels, size, classes, **options)
