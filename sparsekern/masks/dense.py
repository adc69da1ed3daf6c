"""A dense model's layers, and runs of it that leave no trace."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from sparsekern.densities import check_density
from sparsekern.masks.masks import Masks
from sparsekern.masks.select import best_masks
from sparsekern.pattern import Pattern
from sparsekern.sparsify import survey_layers

# (outputs, targets) -> scalar
Loss = Callable[[Any, Any], Tensor]


@dataclass(frozen=True)
class DenseLayer:
    """A layer that `sparsify` would replace."""

    name: str
    weight: Tensor  # detached, of the parameter's own memory
    shape: tuple[int, ...]

    @property
    def matrix_shape(self) -> tuple[int, int]:
        return self.shape[0], math.prod(self.shape[1:])


def dense_layers(model: nn.Module, exclude: str | Iterable[str] = ()) -> list[DenseLayer]:
    """The nn.Linear and nn.Conv2d that `sparsify(model, exclude=exclude)` would replace, a shared one once.

    Raises what that does.
    """
    return [
        DenseLayer(row.name, model.get_parameter(f"{path}.weight").detach(), row.shape)
        for row, path in survey_layers(model, exclude, plain=True)
        if row.reason is None
    ]


def edges_at(layers: list[DenseLayer], density: float) -> int:
    """`round(density * weights)`. Raises ValueError where that is not one a layer, or for weights without values."""
    density = check_density(density)
    size = sum(layer.weight.numel() for layer in layers)
    total = round(density * size)
    if total < len(layers):
        raise ValueError(
            f"density {density} gives {total} nonzeros for {len(layers)} layers, which need one each: "
            f"use at least {len(layers) / size:.3g}"
        )
    for layer in layers:
        if layer.weight.is_meta:
            raise ValueError(f"layer {layer.name!r} is on the meta device, where weights have no values")
    return total


def best_edges(
    layers: list[DenseLayer],
    scores: Mapping[str, Callable[[], Tensor]],
    density: float,
    method: str,
    settings: dict[str, Any],
) -> Masks:
    """Masks of the edges with the largest scores of all layers; see `best_masks`."""
    patterns = {}
    shapes = {layer.name: layer.matrix_shape for layer in layers}
    for name, mask in best_masks(scores, edges_at(layers, density)):
        patterns[name] = Pattern.from_mask(mask.view(shapes[name]).cpu())
    dense_shapes = {layer.name: layer.shape for layer in layers}
    return Masks(patterns, dense_shapes, method=method, density=density, settings=settings)


def exclude_setting(exclude: str | Iterable[str]) -> list[str]:
    return [exclude] if isinstance(exclude, str) else list(exclude)


def leaves(layers: list[DenseLayer]) -> dict[str, Tensor]:
    """By the parameters' names, tensors that share their memory and collect gradients of their own."""
    return {f"{layer.name}.weight": layer.weight.detach().requires_grad_() for layer in layers}


def call(model: nn.Module, tensors: dict[str, Tensor], inputs: Any) -> Any:
    """The model's output with other tensors in the place of its own; a tuple or list of inputs is unpacked, a dict
    becomes keywords."""
    keywords = dict(inputs) if isinstance(inputs, Mapping) else {}
    arguments = () if keywords else tuple(inputs) if isinstance(inputs, (tuple, list)) else (inputs,)
    # With tied weights, a module that is at two places would be given its tensors twice and its own back once.
    return functional_call(model, tensors, arguments, keywords, tie_weights=False)


def own_tensors(model: nn.Module, copy: Callable[[Tensor], Tensor], *, parameters: bool) -> dict[str, Tensor]:
    """Copies of the buffers, and the parameters too where asked for, for `call`: under each module's first name, one
    for tensors that are shared."""
    copies: dict[int, Tensor] = {}
    named = {}
    for path, module in model.named_modules():
        held = {**module._parameters, **module._buffers} if parameters else module._buffers
        for key, tensor in held.items():
            if tensor is not None:
                if id(tensor) not in copies:
                    copies[id(tensor)] = copy(tensor.detach())
                named[f"{path}.{key}".lstrip(".")] = copies[id(tensor)]
    return named


@contextmanager
def traceless(model: nn.Module) -> Iterator[dict[str, Tensor]]:
    """Copies of the model's buffers, to be written to in their place. Random numbers drawn inside are given back."""
    devices = sorted({tensor.device.index for tensor in model.parameters() if tensor.device.type == "cuda"})
    with torch.random.fork_rng(devices), torch.enable_grad():
        yield own_tensors(model, Tensor.clone, parameters=False)


def pairs(batches: Iterable[Any]) -> Iterator[tuple[Any, Any]]:
    """(inputs, targets) of each batch. Raises TypeError for anything else, ValueError where there is none."""
    empty = True
    for batch in batches:
        if not isinstance(batch, (tuple, list)) or len(batch) != 2:
            raise TypeError(
                f"batches must be an iterable of (inputs, targets), got a {type(batch).__name__} as a batch; "
                "a single batch goes into a list"
            )
        empty = False
        yield batch[0], batch[1]
    if empty:
        raise ValueError("batches must be an iterable of (inputs, targets), got one without a batch")


def gradients(tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """What the leaves have collected, taken from them; zeros for one that the loss did not reach."""
    collected = {}
    for name, leaf in tensors.items():
        collected[name] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad
        leaf.grad = None
    return collected
