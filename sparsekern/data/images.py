"""An image classification set that fits in memory."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor

from sparsekern.data.loader import BatchLoader

Split = Literal["dev", "test"]


def normalised(images: Tensor, mean: tuple[float, ...], deviation: tuple[float, ...], dtype: torch.dtype) -> Tensor:
    """Bytes (B, channels, H, W) as values of `dtype`; mean and deviation a channel, of pixels in [0, 1]."""
    shape = (1, len(mean), 1, 1)
    middle = torch.tensor(mean, dtype=dtype, device=images.device).mul_(255).view(shape)
    scale = torch.tensor(deviation, dtype=dtype, device=images.device).mul_(255).view(shape)
    return images.to(dtype).sub_(middle).div_(scale)


def check_held_out(count: int, available: int) -> None:
    if not 0 <= count < available:
        raise ValueError(f"held_out must be from 0 to less than the {available} training images, got {count}")


@dataclass(frozen=True)
class ImageSet:
    """Images (N, channels, size, size): normalised values, or bytes that become so batch by batch; labels (N,) int64.

    `mean` and `deviation`, of each channel's pixels in [0, 1], are there for bytes only. `background` is the value of
    an empty pixel, as the images are kept, used where augmentation shifts an image's edge in. The dev set is what
    `hold_out` took from the training images.
    """

    name: str
    train_images: Tensor
    train_labels: Tensor
    test_images: Tensor
    test_labels: Tensor
    classes: int
    background: float = 0.0
    mean: tuple[float, ...] = ()
    deviation: tuple[float, ...] = ()
    dev_images: Tensor | None = None
    dev_labels: Tensor | None = None
    dtype: torch.dtype = torch.float32

    @property
    def channels(self) -> int:
        return self.train_images.shape[1]

    @property
    def size(self) -> int:
        return self.train_images.shape[-1]

    @property
    def has_dev(self) -> bool:
        return self.dev_images is not None

    def to(self, device: torch.device, dtype: torch.dtype) -> ImageSet:
        """All tensors on `device`; values, and what bytes become, as `dtype`."""
        moved = {}
        for split in ("train", "test", "dev"):
            images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
            if images is not None:
                moved[f"{split}_images"] = images.to(device, dtype if images.is_floating_point() else images.dtype)
                moved[f"{split}_labels"] = labels.to(device)
        return replace(self, dtype=dtype, **moved)

    def hold_out(self, count: int) -> ImageSet:
        """The first `count` training images taken out, as the dev set. Raises ValueError if none would be left."""
        check_held_out(count, len(self.train_images))
        if count == 0:
            return self
        return replace(
            self,
            train_images=self.train_images[count:],
            train_labels=self.train_labels[count:],
            dev_images=self.train_images[:count],
            dev_labels=self.train_labels[:count],
        )

    def prepare(self, images: Tensor) -> Tensor:
        """What a network is given."""
        return images if images.is_floating_point() else normalised(images, self.mean, self.deviation, self.dtype)

    def train_loader(self, batch_size: int, *, seed: int, shift: int, flip: bool) -> BatchLoader:
        return BatchLoader(
            self.train_images,
            self.train_labels,
            batch_size,
            seed=seed,
            shift=shift,
            fill=self.background,
            flip=flip,
            prepare=self.prepare,
        )

    def batches(self, split: Split, size: int, first: int = 0, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The dev or test set in order, `size` images at a time; of these, from `first` on every `step`th."""
        images, labels = getattr(self, f"{split}_images"), getattr(self, f"{split}_labels")
        for some, theirs in list(zip(images.split(size), labels.split(size), strict=True))[first::step]:
            yield self.prepare(some), theirs
