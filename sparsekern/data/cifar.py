"""CIFAR-10 and CIFAR-100 (Krizhevsky 2009) as they are distributed: pickled batches of 32x32 colour images."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsekern.data.images import ImageSet
from sparsekern.data.sources import Distribution, Source, open_source
from sparsekern.data.unpickle import unpickle

SITE = "https://www.cs.toronto.edu/~kriz/cifar.html"
PIXELS = 32


@dataclass(frozen=True)
class Cifar:
    """One of the two sets; mean and deviation are those of the training pixels, a channel."""

    name: str
    classes: int
    labels: str
    train_files: tuple[str, ...]
    test_file: str
    mean: tuple[float, float, float]
    deviation: tuple[float, float, float]
    distribution: Distribution


CIFAR10 = Cifar(
    name="cifar10",
    classes=10,
    labels="labels",
    train_files=tuple(f"data_batch_{number}" for number in range(1, 6)),
    test_file="test_batch",
    mean=(0.4914, 0.4822, 0.4465),
    deviation=(0.2470, 0.2435, 0.2616),
    distribution=Distribution("CIFAR-10", "cifar-10-python.tar.gz", "cifar-10-batches-py", SITE),
)
CIFAR100 = Cifar(
    name="cifar100",
    classes=100,
    labels="fine_labels",
    train_files=("train",),
    test_file="test",
    mean=(0.5071, 0.4865, 0.4409),
    deviation=(0.2673, 0.2564, 0.2762),
    distribution=Distribution("CIFAR-100", "cifar-100-python.tar.gz", "cifar-100-python", SITE),
)


def load_cifar(kind: Cifar, root: Path) -> ImageSet:
    """The set in `root`, from its archive or its extracted folder, as bytes (N, 3, 32, 32) in the files' order.

    Raises FileNotFoundError or DataError, saying where to get the set and where to put it.
    """
    source = open_source(root, kind.distribution)
    train = [read_batch(kind, source, name) for name in kind.train_files]
    test_images, test_labels = read_batch(kind, source, kind.test_file)
    return ImageSet(
        name=kind.name,
        train_images=torch.cat([images for images, _ in train]),
        train_labels=torch.cat([labels for _, labels in train]),
        test_images=test_images,
        test_labels=test_labels,
        classes=kind.classes,
        mean=kind.mean,
        deviation=kind.deviation,
    )


def read_batch(kind: Cifar, source: Source, name: str) -> tuple[Tensor, Tensor]:
    """(images (N, 3, 32, 32) uint8, labels (N,) int64) of one pickled file."""
    try:
        return batch_tensors(unpickle(source.read(name)), kind)
    except KeyError as error:
        raise kind.distribution.damaged(source.path, f"{name} is missing") from error
    except (ValueError, OSError) as error:
        raise kind.distribution.damaged(source.path, f"{name}: {error}") from error


def batch_tensors(batch: object, kind: Cifar) -> tuple[Tensor, Tensor]:
    """Raises ValueError for what is no batch of this set."""
    if not isinstance(batch, dict) or not {"data", kind.labels} <= batch.keys():
        raise ValueError(f"it holds no 'data' and {kind.labels!r}")
    data = batch["data"]
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.shape[1:] != (3 * PIXELS * PIXELS,):
        raise ValueError(f"its data is not an array of bytes, {3 * PIXELS * PIXELS} an image")
    labels = np.asarray(batch[kind.labels])
    if labels.shape != (len(data),) or (len(labels) and labels.dtype.kind not in "iu"):
        raise ValueError(f"it has {len(data)} images, but not as many whole numbers as labels")
    if len(labels) and not 0 <= labels.min() <= labels.max() < kind.classes:
        raise ValueError(f"its labels go from {labels.min()} to {labels.max()}; there are {kind.classes} classes")
    images = torch.from_numpy(data.copy()).view(-1, 3, PIXELS, PIXELS)
    return images, torch.from_numpy(labels.astype(np.int64))
