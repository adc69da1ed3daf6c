"""The ghost phase: how far it has come, and what the ghosts are at each step of it."""

from __future__ import annotations

import math
from typing import Any

import torch


def beta_at(step: int, steps: int, beta: float = 1.0) -> float:
    """``beta / (1 - step / steps)``, infinite from ``steps`` on: 1 / beta, the width of the kink, shrinks linearly."""
    return beta * steps / (steps - step) if step < steps else math.inf


def coefficient_at(step: int, steps: int) -> float:
    """``(1 + cos(pi * step / steps)) / 2``, 0 from ``steps`` on."""
    return (1 + math.cos(math.pi * step / steps)) / 2 if step < steps else 0.0


class Phase:
    """What all ghosts of a model share. Copies of the model share it too: a copy's ghosts fade with the model's.

    Attributes:
        steps: length of the phase, in optimizer steps.
        start: beta at step 0.
        step: steps done.
        over: whether the phase has ended: whatever ghost is still called, by a copy, then computes the plain function.
        beta, coefficient: of the step to come; tensors, which torch.compile does not take for constants.
    """

    def __init__(self, steps: int, start: float) -> None:
        self.steps = steps
        self.start = start
        self.over = False
        self.move_to(0)

    def move_to(self, step: int) -> None:
        self.step = step
        self.beta = torch.tensor(beta_at(step, self.steps, self.start), dtype=torch.float64, device="cpu")
        self.coefficient = torch.tensor(coefficient_at(step, self.steps), dtype=torch.float64, device="cpu")

    def __deepcopy__(self, memo: dict[int, Any]) -> Phase:
        return self
