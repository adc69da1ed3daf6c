"""Shuffled, shifted batches of an in-memory set, in an order that can be saved and resumed at any batch."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor


def shifted(images: Tensor, offsets: Tensor, reach: int, fill: float) -> Tensor:
    """Moves each image by its own offset; what comes in at the edge is `fill`.

    images (B, C, H, W); offsets (B, 2) int64 rows and columns in [0, 2*reach], `reach` being no move.
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


class BatchLoader:
    """Iterating yields the batches that are left of this epoch, then draws the next epoch's order.

    Each epoch is a fresh permutation; the samples left over by the last whole batch are dropped from that epoch.
    Training images are moved by up to `shift` pixels each way. All randomness comes from one generator on the CPU,
    whose state, with the order and the position, is the state_dict.
    """

    def __init__(
        self, images: Tensor, labels: Tensor, batch_size: int, *, seed: int, shift: int = 0, fill: float = 0.0
    ) -> None:
        if not 1 <= batch_size <= len(images):
            raise ValueError(f"batch_size must be from 1 to the {len(images)} samples there are, got {batch_size}")
        if shift < 0:
            raise ValueError(f"shift must not be negative, got {shift}")
        self.images, self.labels, self.batch_size = images, labels, batch_size
        self.shift, self.fill = shift, fill
        self.generator = torch.Generator().manual_seed(seed)
        self.order, self.position = self.draw_order(), 0

    def __len__(self) -> int:
        """Batches in a whole epoch."""
        return len(self.images) // self.batch_size

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        while self.position < len(self):
            start = self.position * self.batch_size
            self.position += 1
            chosen = self.order[start : start + self.batch_size].to(self.images.device)
            yield self.augment(self.images[chosen]), self.labels[chosen]
        self.order, self.position = self.draw_order(), 0

    def draw_order(self) -> Tensor:
        return torch.randperm(len(self.images), generator=self.generator)

    def augment(self, images: Tensor) -> Tensor:
        if self.shift == 0:
            return images
        offsets = torch.randint(2 * self.shift + 1, (len(images), 2), generator=self.generator)
        return shifted(images, offsets.to(images.device), self.shift, self.fill)

    def state_dict(self) -> dict[str, Any]:
        return {"order": self.order, "position": self.position, "generator": self.generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        if len(state["order"]) != len(self.images):
            raise ValueError(
                f"the saved order is of {len(state['order'])} samples, but the training set has {len(self.images)}"
            )
        self.order, self.position = state["order"].cpu(), state["position"]
        self.generator.set_state(state["generator"].cpu())
