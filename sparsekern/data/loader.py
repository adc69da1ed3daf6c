"""Shuffled, augmented batches of an in-memory set, in an order that can be saved and resumed at any batch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(images: Tensor, offsets: Tensor, reach: int, fill: float) -> Tensor:
    """Moves each image by its own offset; what comes in at the edge is `fill`.

    This is the random crop of an image padded by `reach`. images (B, C, H, W); offsets (B, 2) int64 rows and columns
    in [0, 2*reach], `reach` being no move.
    """
    batch, channels, height, width = images.shape
    padded = F.pad(images, (reach,) * 4, value=fill)
    device = images.device
    rows = offsets[:, 0, None] + torch.arange(height, device=device)
    columns = offsets[:, 1, None] + torch.arange(width, device=device)
    return padded[
        torch.arange(batch, device=device)[:, None, None, None],
        torch.arange(channels, device=device)[None, :, None, None],
        rows[:, None, :, None],
        columns[:, None, None, :],
    ]


class EpochOrder:
    """The order in which batches take the samples, and how far it has come.

    Each epoch is a fresh permutation; the samples left over by the last whole batch are dropped from that epoch.
    All randomness comes from one generator on the CPU, whose state, with the order and the position, is the
    state_dict.
    """

    def __init__(self, count: int, batch_size: int, *, seed: int) -> None:
        if not 1 <= batch_size <= count:
            raise ValueError(f"batch_size must be from 1 to the {count} samples there are, got {batch_size}")
        self.count, self.batch_size = count, batch_size
        self.generator = torch.Generator().manual_seed(seed)
        self.order, self.position = self.draw_order(), 0
        self.part = slice(None)

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return self.count // self.batch_size

    def draw_order(self) -> Tensor:
        return torch.randperm(self.count, generator=self.generator)

    def chosen(self, position: int) -> Tensor:
        """(batch_size,) int64: the samples of this epoch's batch at `position`."""
        return self.order[position * self.batch_size : (position + 1) * self.batch_size]

    def take_part(self, number: int, parts: int) -> None:
        """From now on, of each batch the part `number` of so many alone; the order and all draws stay the whole's.

        Raises ValueError if a part would be empty.
        """
        if self.batch_size < parts:
            raise ValueError(f"batch_size must be at least {parts}, one for each process, got {self.batch_size}")
        short, longer = divmod(self.batch_size, parts)
        start = number * short + min(number, longer)
        self.part = slice(start, start + short + (number < longer))

    def begin_epoch(self) -> None:
        self.order, self.position = self.draw_order(), 0

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["order"]) != self.count:
            raise ValueError(
                f"the saved order is of {len(state['order'])} samples, but the training set has {self.count}"
            )
        self.order, self.position = state["order"].cpu(), state["position"]
        self.generator.set_state(state["generator"].cpu())


class BatchLoader(EpochOrder):
    """Iterating yields the batches that are left of this epoch, then draws the next epoch's order.

    Training images are moved by up to `shift` pixels each way, mirrored left to right with probability 1/2 where
    `flip` is set, and then go through `prepare`.
    """

    def __init__(
        self,
        images: Tensor,
        labels: Tensor,
        batch_size: int,
        *,
        seed: int,
        shift: int = 0,
        fill: float = 0.0,
        flip: bool = False,
        prepare: Callable[[Tensor], Tensor] = lambda images: images,
    ) -> None:
        if shift < 0:
            raise ValueError(f"shift must not be negative, got {shift}")
        super().__init__(len(images), batch_size, seed=seed)
        self.images, self.labels = images, labels
        self.shift, self.fill, self.flip, self.prepare = shift, fill, flip, prepare

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.position < len(self):
            chosen = self.chosen(self.position)[self.part].to(self.images.device)
            self.position += 1
            yield self.prepare(self.augment(self.images[chosen])), self.labels[chosen]
        self.begin_epoch()

    def augment(self, images: Tensor) -> Tensor:
        if self.shift:
            offsets = torch.randint(2 * self.shift + 1, (self.batch_size, 2), generator=self.generator)[self.part]
            images = shifted(images, offsets.to(images.device), self.shift, self.fill)
        if self.flip:
            mirrored = torch.rand(self.batch_size, generator=self.generator)[self.part] < 0.5
            images = torch.where(mirrored.to(images.device).view(-1, 1, 1, 1), images.flip(3), images)
        return images

    def peek(self) -> Tensor:
        """One batch of prepared training images, for measurements; nothing of the order is used up."""
        return self.prepare(self.images[: self.batch_size])
