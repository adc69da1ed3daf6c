"""Whole updates on a device that is not there: `python tests/absent_device.py METHOD ...`, in a process of its own.

Its tensors have no contents: an operator whose result the host reads, or whose sizes depend on contents, raises. Writes
how many transfers to the host were made before an update's end and with it, how many operators were seen, and what
became of each layer.
"""

import json
import sys

import torch
from no_wait import NoWait
from test_device_updates import images, momentum, network
from test_growth import METHODS
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.optim.swa_utils import AveragedModel
from torch.utils.backend_registration import _setup_privateuseone_for_python_backend

from sparsekern.backends.topology import _reference_draws, numbers
from sparsekern.growth import find_sparse_layers
from sparsekern.nn import SparseLayer
from sparsekern.pattern import _remember_all

DEVICE = "privateuseone"


def move(module):
    """Puts tensors of the device in the place of the module's."""

    def moved(tensor):
        return torch.empty(tensor.shape, dtype=tensor.dtype, device=DEVICE)

    for part in module.modules():
        for name, parameter in part._parameters.items():
            part._parameters[name] = nn.Parameter(moved(parameter))
        for name, buffer in part._buffers.items():
            part._buffers[name] = moved(buffer)
        if isinstance(part, SparseLayer):
            _remember_all(part.pattern.tensors())


def run(method):
    transfers = []

    def transferred(values):
        assert values.device.type == DEVICE
        transfers.append(values.numel())
        return [1] * values.numel()

    numbers.transferred = transferred
    model, shapes = network(), {}
    for layer in find_sparse_layers(model).values():
        layer.watcher = lambda layer, x, grad: shapes.update({layer: (x.shape, grad.shape)})
    model(images()).square().mean().backward()
    average = AveragedModel(model)
    # The seeds of draws would have no contents either.
    _reference_draws.generator_on = lambda device, generator: generator
    fake = FakeTensorMode()
    with fake:
        move(model)
        move(average)
    optimizer = momentum(model)
    growth = METHODS[method](model, optimizer, interval=1, end=100)
    # Whether it has the same edges, no one can say.
    growth.followers.append(find_sparse_layers(average))
    with fake, NoWait(DEVICE) as watched:
        # What backward does of an update; autograd itself asks for the device.
        for parameter in model.parameters():
            parameter.grad = torch.empty_like(parameter)
        for layer in reversed(growth.layers.values()):
            if growth.needs_backward:
                layer.watcher(layer, *(torch.empty(shape, device=DEVICE) for shape in shapes[layer]))
        optimizer.step()
        before = len(transfers)
        updates = growth.step()
    return {
        "transfers": (before, len(transfers)),
        "operators": watched.operators,
        "layers": [(update.layer, update.replaced, update.skipped) for update in updates],
    }


if __name__ == "__main__":
    _setup_privateuseone_for_python_backend()
    torch.privateuseone.get_amp_supported_dtype = list  # autocast asks
    print(json.dumps({method: run(method) for method in sys.argv[1:]}))
