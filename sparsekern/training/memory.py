"""What training holds in memory, counted exactly, beside what its dense twin would hold."""

from __future__ import annotations

from dataclasses import dataclass, fields

from torch import Tensor, nn
from torch.optim import Optimizer

from sparsekern.nn import SparseLayer


@dataclass
class MemoryUse:
    """Bytes that live from step to step; activations and a step's scratch come on top."""

    weights: int = 0
    indices: int = 0
    other_parameters: int = 0
    buffers: int = 0
    gradients: int = 0
    optimizer_state: int = 0
    average: int = 0
    origins: int = 0

    @property
    def total(self) -> int:
        return sum(getattr(self, each.name) for each in fields(self))

    def add_parameter(self, parameter: nn.Parameter, is_weight: bool, numel: int, optimizer: Optimizer) -> None:
        """Counts a parameter as if it had `numel` elements, with its gradient and the optimizer's state of it."""
        size = numel * parameter.element_size()
        if is_weight:
            self.weights += size
        else:
            self.other_parameters += size
        if parameter.requires_grad:
            self.gradients += size
        for state in optimizer.state.get(parameter, {}).values():
            if isinstance(state, Tensor):
                is_per_element = state.shape == parameter.shape
                self.optimizer_state += numel * state.element_size() if is_per_element else state.nbytes


def measure_memory(
    model: nn.Module, optimizer: Optimizer, average: nn.Module | None = None
) -> tuple[MemoryUse, MemoryUse]:
    """(this model, its dense twin with the same dtypes and the same optimizer), with a moving average where given."""
    sparse, dense = MemoryUse(), MemoryUse()
    counted: set[nn.Parameter] = set()
    for module in model.modules():
        is_layer = isinstance(module, (SparseLayer, nn.Linear, nn.Conv2d))
        for name, parameter in module.named_parameters(recurse=False):
            if parameter in counted:
                continue
            counted.add(parameter)
            is_weight = is_layer and name == "weight"
            dense_numel = dense_size(module, name, parameter)
            sparse.add_parameter(parameter, is_weight, parameter.numel(), optimizer)
            dense.add_parameter(parameter, is_weight, dense_numel, optimizer)
        size = sum(buffer.nbytes for buffer in module.buffers(recurse=False))
        if isinstance(module, SparseLayer):
            sparse.indices += size
        else:
            sparse.buffers += size
            dense.buffers += size
    if average is not None:
        sparse.average, dense.average = measure_average(average)
    return sparse, dense


def dense_size(module: nn.Module, name: str, parameter: nn.Parameter) -> int:
    """Elements that a parameter would have in the dense twin."""
    if isinstance(module, SparseLayer) and name == "weight":
        rows, columns = module.matrix_shape
        return rows * columns
    return parameter.numel()


def measure_average(average: nn.Module) -> tuple[int, int]:
    """Bytes of a moving average, indices and all, and those of its dense twin's."""
    sparse, dense = 0, 0
    for module in average.modules():
        for name, parameter in module.named_parameters(recurse=False):
            sparse += parameter.nbytes
            dense += dense_size(module, name, parameter) * parameter.element_size()
        size = sum(buffer.nbytes for buffer in module.buffers(recurse=False))
        sparse += size
        dense += 0 if isinstance(module, SparseLayer) else size
    return sparse, dense
