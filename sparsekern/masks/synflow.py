"""SynFlow: iterative synaptic flow pruning, without data."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.masks.dense import (
    best_edges,
    call,
    dense_layers,
    edges_at,
    exclude_setting,
    gradients,
    own_tensors,
    traceless,
)
from sparsekern.masks.masks import Masks
from sparsekern.masks.select import best_masks


def synflow(
    model: nn.Module,
    density: float,
    example: Any,
    exclude: str | Iterable[str] = (),
    *,
    rounds: int = 100,
) -> Masks:
    """The weights that carry most of the flow from input to output (Tanaka et al. 2020, arXiv 2006.05467, algorithm 1).

    The flow R is the sum of the outputs for one input of ones, through the network with every parameter and buffer
    replaced by its absolute value, in eval mode and float64 (as the authors' code does). A weight's score is
    `|dR/dw * w|`. Round r of `rounds` keeps `density^(r / rounds)` of the weights, of all layers together, and the
    next one scores what is left. The total is exactly `round(density * weights)`; each layer keeps its best edge in
    every round (see `sparsekern.masks.select.best_masks`, for ties too). The paper's proof that no layer collapses
    holds for layers that all flow must pass; a branch beside a shortcut can run dry in a network of few edges, and
    then has that best edge. With layer norm or attention, which the proof leaves out, scores are computed all the same.

    The model stays as it is, torch's random numbers too.

    Memory on top of the model's: 17 bytes a weight (its absolute value and its score in float64, and whether it is
    left), one sample's activations, 8 bytes a weight of the largest layer, and 12 bytes an edge. Each round costs a
    forward and a backward pass of one sample, and some ten passes over the scores.

    Args:
        model: any that `sparsekern.sparsify` takes, and that runs in float64.
        density: share of the weights, of all layers together, that become edges, in (0, 1].
        example: inputs as the model takes them: a tensor, a tuple of arguments or a dict of keywords. Of floating
            tensors only the shape counts, of others (token ids) the first sample is used as it is.
        exclude: name patterns of layers to leave out, as of `sparsekern.sparsify`.
        rounds: 1 or more.

    Raises:
        TypeError, ValueError: for what `sparsekern.sparsify` refuses, outputs that are no tensor, scores that are not
            finite.
    """
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds must be a whole number of at least 1, got {rounds!r}")
    exclude = exclude_setting(exclude)
    layers = dense_layers(model, exclude)
    edges_at(layers, density)
    size = sum(layer.weight.numel() for layer in layers)
    inputs = ones_like_sample(example)
    with traceless(model), evaluating(model):
        tensors = own_tensors(model, absolute, parameters=True)
        weights = {layer.name: tensors[f"{layer.name}.weight"].requires_grad_() for layer in layers}
        left = {name: torch.ones_like(weight, dtype=torch.bool).view(-1) for name, weight in weights.items()}
        for number in range(1, rounds):
            total = max(len(layers), round(density ** (number / rounds) * size))
            for name, mask in best_masks(flow_scores(model, tensors, inputs, weights, left), total):
                left[name] = mask
                with torch.no_grad():
                    weights[name].view(-1).mul_(mask)
        scores = flow_scores(model, tensors, inputs, weights, left)
        return best_edges(layers, scores, density, "synflow", {"exclude": exclude, "rounds": rounds})


def flow_scores(
    model: nn.Module,
    tensors: dict[str, Tensor],
    inputs: Any,
    weights: Mapping[str, Tensor],
    left: Mapping[str, Tensor],
) -> dict[str, Callable[[], Tensor]]:
    """`|w * dR/dw|` of what is left, in the gradients' memory; -1, below any score, of what is not."""
    output = call(model, tensors, inputs)
    if not isinstance(output, Tensor):
        raise TypeError(f"model must return a tensor, whose sum is the flow, got a {type(output).__name__}")
    output.sum().backward(inputs=list(weights.values()))
    scores = gradients(weights)
    with torch.no_grad():
        for name, grad in scores.items():
            grad.mul_(weights[name]).abs_().view(-1).masked_fill_(~left[name], -1.0)
    return {name: grad.detach for name, grad in scores.items()}


def absolute(tensor: Tensor) -> Tensor:
    """A copy: the magnitudes in float64 of floating values, others as they are."""
    return tensor.abs().double().contiguous() if tensor.is_floating_point() else tensor.clone()


def ones_like_sample(example: Any) -> Any:
    """One sample of ones for each floating tensor of the inputs, the first sample of others."""
    if isinstance(example, Mapping):
        return {name: ones_like_sample(value) for name, value in example.items()}
    if isinstance(example, (tuple, list)):
        return tuple(ones_like_sample(value) for value in example)
    if not isinstance(example, Tensor):
        return example
    if example.dim() == 0 or len(example) == 0:
        raise ValueError(f"example must have a sample in its first dimension, got shape {tuple(example.shape)}")
    first = example[:1]
    return torch.ones_like(first, dtype=torch.float64) if first.is_floating_point() else first


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """The model in eval mode; afterwards each module in the mode that it was in."""
    modes = [(module, module.training) for module in model.modules()]
    model.eval()
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
