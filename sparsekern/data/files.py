"""An image classification set that is read from its files as it is used, by worker processes."""

from __future__ import annotations

import os
import signal
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from sparsekern.data.images import Split, check_held_out, normalised
from sparsekern.data.loader import EpochOrder
from sparsekern.data.pictures import read_rgb
from sparsekern.data.seeds import drawing_from, hashed_seed
from sparsekern.data.sources import DataError

Samples = Sequence[tuple[str, int]]
Transform = Callable[[Any], Any]
# A sample's place in its set, and the seed of its augmentation; None for none.
Key = tuple[int, int | None]


def leave_signals_to_main(worker: int) -> None:
    """Schedulers and terminals send a signal to all processes of a job, and it is the main one that acts on it.

    It would fail if its workers were gone. One more SIGTERM ends a worker, as torch does with one that hangs.
    """
    coming = 2 if dist.is_torchelastic_launched() else 1  # torchrun passes on what it is sent

    def leave(number: int, frame: FrameType | None) -> None:
        nonlocal coming
        coming -= 1
        if coming == 0:
            signal.signal(signal.SIGTERM, signal.SIG_DFL)

    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, leave)


class PictureFiles(Dataset[tuple[Tensor, int]]):
    """Bytes (3, size, size) and label of the picture that a key names."""

    def __init__(self, samples: Samples, steps: Sequence[Transform]) -> None:
        self.samples, self.steps = samples, steps

    def __len__(self) -> int:
        return len(self.samples)

    def __getitem__(self, key: Key) -> tuple[Tensor, int]:
        index, seed = key
        path, label = self.samples[index]
        try:
            picture = read_rgb(Path(path))
        except ValueError as error:
            raise DataError(f"{path} {error}") from error
        if seed is None:
            return self.transformed(picture), label
        with drawing_from(seed):  # the transforms draw from torch's own generator
            return self.transformed(picture), label

    def transformed(self, picture: Any) -> Tensor:
        for step in self.steps:
            picture = step(picture)
        return picture


class KeyOrder(EpochOrder):
    """An order of keys, and the sampler of a DataLoader: iterating yields the batches that are left of the epoch."""

    def __init__(self, count: int, batch_size: int, *, seed: int) -> None:
        super().__init__(count, batch_size, seed=seed)
        self.epoch_seed = self.draw_seed()

    def draw_seed(self) -> int:
        return int(torch.randint(2**62, (), generator=self.generator))

    def begin_epoch(self) -> None:
        super().begin_epoch()
        self.epoch_seed = self.draw_seed()

    def __iter__(self) -> Iterator[list[Key]]:
        for position in range(self.position, len(self)):
            # Of one image in one epoch: neither the worker that reads it nor its place in the order matters.
            yield [(index, hashed_seed(self.epoch_seed, index)) for index in self.chosen(position)[self.part].tolist()]

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() | {"epoch_seed": self.epoch_seed}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        super().load_state_dict(state)
        self.epoch_seed = state["epoch_seed"]


class FileLoader:
    """As `BatchLoader`, from files: `workers` processes read ahead, 0 for none, with the same images either way."""

    def __init__(
        self,
        images: PictureFiles,
        batch_size: int,
        *,
        seed: int,
        workers: int,
        prepare: Callable[[Tensor], Tensor],
        device: torch.device,
    ) -> None:
        self.images, self.prepare, self.device = images, prepare, device
        # No part of this loader, or a cycle of references would keep the workers from an orderly end.
        self.keys = KeyOrder(len(images), batch_size, seed=seed)
        self.batches = DataLoader(
            images,
            batch_sampler=self.keys,
            num_workers=workers,
            persistent_workers=workers > 0,
            worker_init_fn=leave_signals_to_main,
            pin_memory=device.type == "cuda",
            generator=torch.Generator(),  # or each start would draw from the run's own
        )

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.keys)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if self.keys.position < len(self):
            for images, labels in self.batches:
                self.keys.position += 1
                yield self.prepare(images), labels.to(self.device, non_blocking=True)
        self.keys.begin_epoch()

    def state_dict(self) -> dict[str, Any]:
        return self.keys.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.keys.load_state_dict(state)

    def take_part(self, number: int, parts: int) -> None:
        """As `EpochOrder.take_part`, from the next iteration on."""
        self.keys.take_part(number, parts)

    def peek(self) -> Tensor:
        """One batch of prepared training images, for measurements; nothing of the order is used up."""
        return self.prepare(torch.stack([self.images[index, 0][0] for index in range(self.keys.batch_size)]))


@dataclass(frozen=True)
class FileSet:
    """(path, label) of each image, and what is done to a picture (PIL.Image) on its way to bytes (3, size, size).

    Training images go through `augment`, and `flip` where the loader asks for it; others through `center`.
    """

    name: str
    train: Samples
    test: Samples
    classes: int
    size: int
    mean: tuple[float, ...]
    deviation: tuple[float, ...]
    augment: Transform
    flip: Transform
    center: Transform
    to_bytes: Transform
    dev: Samples = ()
    workers: int = 0
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    dtype: torch.dtype = torch.float32

    channels = 3

    @property
    def has_dev(self) -> bool:
        return len(self.dev) > 0

    def to(self, device: torch.device, dtype: torch.dtype) -> FileSet:
        """With batches on `device`, as `dtype`."""
        return replace(self, device=device, dtype=dtype)

    def with_workers(self, workers: int | None) -> FileSet:
        """By default a process a core, at most 8."""
        return replace(self, workers=min(8, os.cpu_count() or 1) if workers is None else workers)

    def hold_out(self, count: int) -> FileSet:
        """`count` training images taken out as the dev set: the first of each class, the second of each, and so on.

        Raises ValueError if none would be left.
        """
        check_held_out(count, len(self.train))
        rank: dict[int, int] = defaultdict(int)
        ranked = []
        for sample in self.train:
            ranked.append((rank[sample[1]], sample[1], sample))
            rank[sample[1]] += 1
        taken = [sample for _, _, sample in sorted(ranked)[:count]]
        paths = {path for path, _ in taken}
        return replace(self, dev=taken, train=[sample for sample in self.train if sample[0] not in paths])

    def prepare(self, images: Tensor) -> Tensor:
        """What a network is given."""
        images = images.to(self.device, non_blocking=True)
        return normalised(images, self.mean, self.deviation, self.dtype)

    def train_loader(self, batch_size: int, *, seed: int, shift: int, flip: bool) -> FileLoader:
        """Raises ValueError for a shift: the random crop moves the image already."""
        if shift:
            raise ValueError(f"shift must be 0 for {self.name}, whose images are cropped at random, got {shift}")
        steps = (self.augment, *([self.flip] if flip else []), self.to_bytes)
        return FileLoader(
            PictureFiles(self.train, steps),
            batch_size,
            seed=seed,
            workers=self.workers,
            prepare=self.prepare,
            device=self.device,
        )

    def batches(self, split: Split, size: int, first: int = 0, step: int = 1) -> Iterator[tuple[Tensor, Tensor]]:
        """The dev or test set in order, `size` images at a time; of these, from `first` on every `step`th."""
        samples = self.dev if split == "dev" else self.test
        images = PictureFiles(samples, (self.center, self.to_bytes))
        keys: list[Key] = [(index, None) for index in range(len(samples))]
        groups = [keys[start : start + size] for start in range(first * size, len(keys), step * size)]
        loader = DataLoader(
            images,
            batch_sampler=groups,
            num_workers=min(self.workers, len(groups)),
            worker_init_fn=leave_signals_to_main,
            generator=torch.Generator(),
        )
        for some, labels in loader:
            yield self.prepare(some), labels.to(self.device)
