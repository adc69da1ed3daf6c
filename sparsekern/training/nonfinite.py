"""What becomes of a training step whose loss or gradients are not finite, and of weights that are not."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from sparsekern.growth.select import all_finite
from sparsekern.nn import SparseLayer

# Steps in a row. A bad image or two are skipped; a network that is lost is lost for every batch.
LIMIT = 20


class NonFinite:
    """How a run meets a step with a loss that is infinite or NaN.

    "stop": FloatingPointError, right after the step. Nothing is saved from then on, so that the last checkpoint is one
    from before it; gradients are not looked at, since a bad one makes the next step's loss so.

    "skip": the step is left out, with a warning. Parameters, optimizer state, topology and norm statistics stay as
    they were before it; the step counts in the learning rate's schedule and the order of the data. So is a step with
    a finite loss and gradients that are not, unless a GradScaler decides on those. FloatingPointError after LIMIT in a
    row. Of several processes each sees a part of the batch: they leave out a step together (`all_say`), and the
    gradient is the same on all of them.
    """

    def __init__(self, policy: str, all_say: Callable[[bool], bool] = bool) -> None:
        self.policy = policy
        self.all_say = all_say
        self.in_a_row = 0
        self.kept: list[tuple[Tensor, Tensor]] = []

    def begin(self, model: nn.Module) -> None:
        """Before the step's forward pass, which writes norm statistics."""
        if self.policy == "skip":
            self.kept = [(buffer, buffer.clone()) for buffer in statistics(model)]

    def admits_loss(self, loss: Tensor, step: int) -> bool:
        """Whether the step goes on to its backward pass; under "stop" always, and `check` has the last word."""
        return self.policy == "stop" or self.admits("loss", self.all_say(math.isfinite(loss.item())), step)

    def admits_gradients(self, parameters: Iterable[nn.Parameter], step: int, *, scaled: bool) -> bool:
        """Whether the step goes on to the optimizer. A GradScaler sees to gradients that are `scaled` itself."""
        if self.policy == "stop":
            return True
        gradients = [each.grad for each in parameters if each.grad is not None]
        return self.admits("gradient", scaled or all(map(all_finite, gradients)), step)

    def admits(self, what: str, is_finite: bool, step: int) -> bool:
        if is_finite:
            self.in_a_row = self.in_a_row if what == "loss" else 0
            return True
        self.in_a_row += 1
        self.undo()
        if self.in_a_row == LIMIT:
            raise FloatingPointError(
                f"the loss or gradient was not finite in {LIMIT} steps in a row, up to step {step}: the run diverged "
                "or its data are bad"
            )
        warnings.warn(f"step {step} is skipped: its {what} is not finite", stacklevel=4)
        return False

    def undo(self) -> None:
        for buffer, before in self.kept:
            buffer.copy_(before)

    def check(self, loss: float, step: int) -> None:
        """Raises FloatingPointError for the loss of a step that was made."""
        if not math.isfinite(loss):
            raise FloatingPointError(
                f"the training loss of step {step} is {loss}: the run diverged (a lower --lr or a warm-up may help) or "
                "its data are bad (--nonfinite skip leaves such steps out)"
            )


def statistics(model: nn.Module) -> list[Tensor]:
    """All buffers but sparse layers' indices."""
    modules = (module for module in model.modules() if not isinstance(module, SparseLayer))
    return [buffer for module in modules for buffer in module.buffers(recurse=False)]


@torch.no_grad()
def check_finite(model: nn.Module) -> None:
    """Raises FloatingPointError that names a parameter or buffer which holds an infinity or a NaN."""
    for name, value in (*model.named_parameters(), *model.named_buffers()):
        if value.is_floating_point() and not all_finite(value.detach()):
            raise FloatingPointError(f"{name} holds values that are not finite: the run diverged; it is not saved")
