"""One network's memory in training, counted and measured; runs in a fresh process."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks import nets, resident
from sparsekern.training.memory import measure_memory


def of_network(name: str, density: float | None, batch: int, seed: int) -> dict[str, int]:
    """Bytes of one training step's parts and its peak; density None: dense.

    The second step counts, when the optimizer's state is there. "peak" is resident memory at its most in that step
    above that after the imports: the parts, and whatever comes and goes beside them.
    """
    imports = resident.now()
    torch.manual_seed(seed)
    network = nets.NETWORKS[name]
    model = network.make()
    if density is not None:
        model = nets.make_sparse(network.in_our_modules(model), density)
    optimizer = network.optimizer(model)
    images, labels = network.batch(batch)

    def step() -> None:
        optimizer.zero_grad()
        F.cross_entropy(model(images), labels).backward()
        optimizer.step()

    step()
    resident.reset_peak()
    step()
    peak = resident.peak() - imports
    parts = asdict(measure_memory(model, optimizer)[0])
    parts["activations"] = saved_bytes(model, lambda: F.cross_entropy(model(images), labels))
    return {**parts, "peak": peak}


def saved_bytes(model: nn.Module, forward: Callable[[], Tensor]) -> int:
    """Bytes that a forward pass keeps for the backward pass, each storage once; the model's own tensors left out."""
    own = {tensor.untyped_storage().data_ptr() for tensor in (*model.parameters(), *model.buffers())}
    with _saved_storages() as saved:
        kept = forward()
        sizes = {pointer: size for pointer, size in saved.items() if pointer not in own}
    del kept
    return sum(sizes.values())


@contextmanager
def _saved_storages() -> Iterator[dict[int, int]]:
    """Bytes by address of the storages that autograd saves; they live as long as the graph does."""
    saved: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        saved[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        yield saved
