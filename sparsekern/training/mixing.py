"""mixup (Zhang et al. 2018) and CutMix (Yun et al. 2019), by torchvision."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from sparsekern.data.seeds import drawing_from, hashed_seed
from sparsekern.data.vision import torchvision
from sparsekern.training.config import DataConfig

Mixing = Callable[[Tensor, Tensor, int], tuple[Tensor, Tensor]]


def build_mixing(config: DataConfig, classes: int, seed: int) -> Mixing | None:
    """A function of images (B, C, H, W), labels (B,) int64 and the step, which with `seed` decides what is mixed.

    It returns mixed images and each class's share in them, (B, classes). Images of a batch are mixed in pairs, by
    mixup's blend or CutMix's rectangle; with both, either half of the time. None where neither is asked for.

    Raises ImportError without torchvision.
    """
    if not config.mixup and not config.cutmix:
        return None
    transforms = torchvision("mixup and cutmix are done by").transforms.v2
    mixings = [
        mixing(alpha=alpha, num_classes=classes)
        for mixing, alpha in ((transforms.MixUp, config.mixup), (transforms.CutMix, config.cutmix))
        if alpha
    ]
    mixing = mixings[0] if len(mixings) == 1 else transforms.RandomChoice(mixings)

    def mixed(images: Tensor, labels: Tensor, step: int) -> tuple[Tensor, Tensor]:
        with drawing_from(hashed_seed(seed, "mixing", step)):
            images, shares = mixing(images, labels)
        return images, shares.to(images.dtype)

    return mixed
