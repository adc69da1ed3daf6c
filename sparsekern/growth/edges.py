"""Values that follow their edges when a layer's topology changes."""

from typing import Any

import torch
from torch import Tensor
from torch.optim import Optimizer

from sparsekern.backends.choice import topology_of
from sparsekern.backends.topology.writes import Writes


class Move:
    """Where each slot's value comes from after an exchange of edges.

    Args:
        pruned: marks (of the topology of the pattern's device) of the slots whose edges went.
        grown: marks of the slots that new edges have now, from ``Pattern.exchange``.
        writes: has the values written later, but for a pattern of the extension; None: at once.
    """

    def __init__(self, pruned: Tensor, grown: Tensor, writes: Writes | None = None) -> None:
        self._pruned = pruned
        self._grown = grown
        self._writes = writes

    @torch.no_grad()
    def __call__(self, values: Tensor) -> None:
        """Moves ``values`` (nnz,) in place, on any device: kept edges keep theirs, grown edges get 0."""
        writes = Writes() if self._writes is None else self._writes
        topology_of(self._pruned.device).move_values(self._pruned, self._grown, values, writes)
        if self._writes is None:
            writes.write()


def move_parameter(move: Move, parameter: Tensor, optimizer: Optimizer | None) -> None:
    """Moves a parameter, its gradient and every state tensor of its shape that the optimizer keeps for it."""
    move(parameter)
    if parameter.grad is not None:
        move(parameter.grad)
    for state in _states(optimizer):
        for key, item in state.get(parameter, {}).items():
            if key != "step":  # a counter, also where there is only one edge
                _move_state(move, item, parameter.shape)


def _states(optimizer: Optimizer | None) -> list[Any]:
    """Where the optimizer keeps state: ZeroRedundancyOptimizer has a rank's share of it in another inside, `optim`."""
    if optimizer is None:
        return []
    inner = getattr(optimizer, "optim", None)
    return [optimizer.state, inner.state] if isinstance(inner, Optimizer) else [optimizer.state]


def unwrapped(optimizer: Optimizer) -> Optimizer:
    """The optimizer inside of a wrapper that shares its state, as accelerate's and Lightning's do."""
    inner = getattr(optimizer, "optimizer", None)
    if isinstance(inner, Optimizer) and getattr(optimizer, "state", None) is inner.state:
        return unwrapped(inner)
    return optimizer


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
