"""The sizes of gradients and weights, layer by layer."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.growth import find_sparse_layers


@torch.no_grad()
def measure_norms(model: nn.Module, trained: Iterable[nn.Parameter]) -> dict[str, Any]:
    """2-norms of the gradients as the optimizer was given them, and of the weights.

    Args:
        model: the norms are of each of its layers' weight: the sparse ones, and `nn.Linear` and `nn.Conv2d`.
        trained: the parameters whose gradients make up the norm of all together.

    Returns:
        "grad_norm" of all together, and "layers": {name: (grad_norm, weight_norm)}; None where there is no gradient.
    """
    plain = {name: layer for name, layer in model.named_modules() if isinstance(layer, (nn.Linear, nn.Conv2d))}
    layers = find_sparse_layers(model) | plain
    figures: list[Tensor | None] = [norm_of_all(trained)]
    for layer in layers.values():
        grad = layer.weight.grad
        figures += [None if grad is None else norm(grad), norm(layer.weight)]
    numbers = to_numbers(figures)
    pairs = zip(numbers[1::2], numbers[2::2], strict=True)
    return {"grad_norm": numbers[0], "layers": dict(zip(layers, pairs, strict=True))}


def norm(values: Tensor) -> Tensor:
    return torch.linalg.vector_norm(values).double()


def norm_of_all(parameters: Iterable[nn.Parameter]) -> Tensor | None:
    norms = [norm(parameter.grad) for parameter in parameters if parameter.grad is not None]
    return torch.linalg.vector_norm(torch.stack(norms)) if norms else None


def to_numbers(figures: list[Tensor | None]) -> list[float | None]:
    """In one copy from the device."""
    there = [figure for figure in figures if figure is not None]
    numbers = iter(torch.stack(there).tolist() if there else [])
    return [None if figure is None else next(numbers) for figure in figures]
