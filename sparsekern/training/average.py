"""A moving average of a network's weights while it trains, which is what is tested."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim.swa_utils import get_ema_multi_avg_fn

from sparsekern.nn import SparseLayer


class WeightAverage:
    """After each step, average = decay * average + (1 - decay) * value, for parameters and norm statistics.

    The first update takes the values as they are. Edges do not average: `model`, a network of the trained one's kind,
    is to follow the topology (`followers` of a growth), whose updates move the averages of kept edges to their new
    places and start those of grown edges at 0. torch's AveragedModel would average or copy the indices at each step.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"decay must be above 0 and below 1, got {decay!r}")
        self.model = copy.deepcopy(model).requires_grad_(False).eval()
        self.blend = get_ema_multi_avg_fn(decay)
        self.updates = 0

    @torch.no_grad()
    def update(self, model: nn.Module) -> None:
        mine, theirs = values(self.model), values(model)
        blended = [place for place, value in enumerate(mine) if value.is_floating_point() and self.updates > 0]
        for place in set(range(len(mine))).difference(blended):
            mine[place].copy_(theirs[place])
        if blended:
            self.blend([mine[place] for place in blended], [theirs[place] for place in blended], self.updates)
        self.updates += 1

    def state_dict(self) -> dict[str, Any]:
        return {"model": self.model.state_dict(), "updates": self.updates}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.model.load_state_dict(state["model"])
        self.updates = int(state["updates"])


def values(model: nn.Module) -> list[Tensor]:
    """Parameters and buffers, but for sparse layers' indices; in the same order for networks of one kind."""
    found: list[Tensor] = []
    for module in model.modules():
        found += [each.detach() for each in module.parameters(recurse=False)]
        if not isinstance(module, SparseLayer):
            found += module.buffers(recurse=False)
    return found
