"""One library's way of doing one layer."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass
class Candidate:
    """One library's layer.

    `forward` runs under autograd; `parameters` get gradients; `edge_grad()` is the weight's gradient after a
    backward, at the mask's edges in row-major order. `layout` is the memory format that inputs come in. `library`
    is what its several ways have in common.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    parameters: list[Tensor]
    edge_grad: Callable[[], Tensor]
    layout: torch.memory_format = torch.contiguous_format
    library: str = ""

    def __post_init__(self) -> None:
        self.library = self.library or self.name

    def laid_out(self, tensor: Tensor) -> Tensor:
        """A copy in this candidate's memory format."""
        return tensor.clone(memory_format=self.layout if tensor.dim() == 4 else torch.contiguous_format)

    def forget_gradients(self) -> None:
        for parameter in self.parameters:
            parameter.grad = None

    def prepare_step(self, x: Tensor, grad: Tensor) -> Callable[[], object]:
        """The training step on copies of these, ready to be timed."""
        own_x, own_grad = self.laid_out(x).requires_grad_(), self.laid_out(grad)
        self.forget_gradients()
        return lambda: self.forward(own_x).backward(own_grad)

    def results(self, x: Tensor, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Output, input gradient, and weight gradient at the edges."""
        self.forget_gradients()
        own_x = self.laid_out(x).requires_grad_()
        y = self.forward(own_x)
        y.backward(self.laid_out(grad))
        results = y.detach(), own_x.grad, self.edge_grad().detach().clone()
        self.forget_gradients()
        return results


def largest_error(actual: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> float:
    """The largest difference as a share of the largest expected element of the same tensor; inf for nan."""
    errors = [((a.float() - b).abs().max() / b.abs().max()).item() for a, b in zip(actual, expected, strict=True)]
    return max(error if error == error else float("inf") for error in errors)
