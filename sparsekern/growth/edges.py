"""Values that follow their edges when a layer's topology changes."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer


class Move:
    """Where each slot's value comes from after a replacement of edges.

    Args:
        source: (nnz,) int64, from ``Pattern.replace_edges``: each slot's old slot, -1 for a grown edge.
    """

    def __init__(self, source: Tensor) -> None:
        self._grown = (source < 0).nonzero().view(-1)
        self._source = source.clamp(min=0)

    @torch.no_grad()
    def __call__(self, values: Tensor) -> None:
        """Moves ``values`` (nnz,) in place: kept edges keep theirs, grown edges get 0."""
        moved = values.detach().index_select(0, self._source.to(values.device))
        moved.index_fill_(0, self._grown.to(values.device), 0)
        values.copy_(moved)


def move_parameter(move: Move, parameter: Tensor, optimizer: Optimizer | None) -> None:
    """Moves a parameter, its gradient and every state tensor of its shape that the optimizer keeps for it."""
    move(parameter)
    if parameter.grad is not None:
        move(parameter.grad)
    if optimizer is not None:
        for key, state in optimizer.state.get(parameter, {}).items():
            if key != "step":  # a counter, also where there is only one edge
                _move_state(move, state, parameter.shape)


def _move_state(move: Move, state: Any, shape: torch.Size) -> None:
    if isinstance(state, Tensor):
        if state.shape == shape:
            move(state)
    elif isinstance(state, dict):
        for item in state.values():
            _move_state(move, item, shape)
    elif isinstance(state, list | tuple):
        for item in state:
            _move_state(move, item, shape)
