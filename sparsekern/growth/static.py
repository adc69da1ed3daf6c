"""A topology that stays."""

from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from sparsekern.growth.base import Growth
from sparsekern.growth.ranks import Group


class Static(Growth):
    """Changes nothing: the baseline, with :class:`Growth`'s interface."""

    def __init__(
        self,
        model: nn.Module,
        optimizer: Optimizer,
        *,
        alpha: float = 0.2,
        interval: int = 1000,
        end: int = 0,
        exclude: Sequence[str] = (),
        followers: Sequence[nn.Module] = (),
        generator: torch.Generator | None = None,
        process_group: Group = None,
    ) -> None:
        super().__init__(
            model,
            optimizer,
            alpha=alpha,
            interval=interval,
            end=end,
            exclude=exclude,
            followers=followers,
            generator=generator,
            process_group=process_group,
        )

    def share(self, step: int) -> float:
        return 0.0
