"""TinyImageNet-200 as it is distributed: a zip, or its folder, of 64x64 JPEG files in 200 classes."""

from __future__ import annotations

import io
import os
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sparsekern.data.images import ImageSet
from sparsekern.data.pictures import pillow, read_rgb
from sparsekern.data.sources import Distribution, Source, open_source

DISTRIBUTION = Distribution(
    "TinyImageNet", "tiny-imagenet-200.zip", "tiny-imagenet-200", "http://cs231n.stanford.edu/tiny-imagenet-200.zip"
)
MEAN, DEVIATION = (0.4802, 0.4481, 0.3975), (0.2770, 0.2691, 0.2821)
PIXELS = 64


def load_tiny_imagenet(root: Path) -> ImageSet:
    """The set in `root` as bytes (N, 3, 64, 64); its validation images, which have labels, are the test images.

    Classes are the wnids in alphabetical order. Training images come in the order of their numbers, one of each class
    in turn, so that the first ones are of all classes alike.

    Raises ImportError without Pillow; FileNotFoundError or DataError, saying where to get the set and where to put it.
    """
    pillow()
    source = open_source(root, DISTRIBUTION)
    try:
        label_of = {wnid: label for label, wnid in enumerate(sorted(read_text(source, "wnids.txt").split()))}
        if not label_of:
            raise ValueError("wnids.txt names no class")
        train_images, train_labels = decode(source, training_files(source, label_of))
        test_images, test_labels = decode(source, validation_files(source, label_of))
    except (ValueError, OSError) as error:
        raise DISTRIBUTION.damaged(source.path, error) from error
    return ImageSet(
        name="tiny-imagenet",
        train_images=train_images,
        train_labels=train_labels,
        test_images=test_images,
        test_labels=test_labels,
        classes=len(label_of),
        mean=MEAN,
        deviation=DEVIATION,
    )


def read_text(source: Source, name: str) -> str:
    return read(source, name).decode()


def read(source: Source, name: str) -> bytes:
    try:
        return source.read(name)
    except KeyError:
        raise ValueError(f"{name} is missing") from None


def training_files(source: Source, label_of: dict[str, int]) -> list[tuple[str, int]]:
    """(name, label) of train/WNID/images/WNID_NUMBER.JPEG."""
    of_class: dict[str, list[str]] = defaultdict(list)
    for name in source.names():
        match name.split("/"):
            case ["train", wnid, "images", _]:
                of_class[wnid].append(name)
    if of_class.keys() != label_of.keys():
        odd = min(of_class.keys() ^ label_of.keys())
        raise ValueError(f"class {odd} is {'in wnids.txt' if odd in label_of else 'a folder of train'} alone")
    ranked = [
        (rank, wnid, name)
        for wnid, names in of_class.items()
        for rank, name in enumerate(sorted(names, key=lambda name: (len(name), name)))
    ]
    return [(name, label_of[wnid]) for _, wnid, name in sorted(ranked)]


def validation_files(source: Source, label_of: dict[str, int]) -> list[tuple[str, int]]:
    """(name, label) of val/images, as val_annotations.txt has them: file, wnid and a box, between tabs."""
    files = []
    for line in read_text(source, "val/val_annotations.txt").splitlines():
        file, _, rest = line.partition("\t")
        wnid = rest.split("\t")[0]
        if wnid not in label_of:
            raise ValueError(f"val/val_annotations.txt has class {wnid!r} for {file!r}, which wnids.txt has not")
        files.append((f"val/images/{file}", label_of[wnid]))
    if not files:
        raise ValueError("val/val_annotations.txt names no image")
    return files


def decode(source: Source, files: Sequence[tuple[str, int]]) -> tuple[Tensor, Tensor]:
    """(images (N, 3, 64, 64) uint8, labels (N,) int64)."""
    images = torch.empty(len(files), 3, PIXELS, PIXELS, dtype=torch.uint8)

    def fill(index: int) -> None:
        name, _ = files[index]
        content = read(source, name)
        try:
            picture = read_rgb(io.BytesIO(content))
        except ValueError as error:
            raise ValueError(f"{name} {error}") from error
        if picture.size != (PIXELS, PIXELS):
            raise ValueError(f"{name} has {picture.size[0]}x{picture.size[1]} pixels; expected {PIXELS}x{PIXELS}")
        images[index] = torch.from_numpy(np.array(picture)).permute(2, 0, 1)

    # Pillow decodes without the interpreter's lock.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for _ in pool.map(fill, range(len(files)), chunksize=256):
            pass
    return images, torch.tensor([label for _, label in files])
