"""SNIP: connection sensitivity at initialization."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from sparsekern.masks.dense import (
    Loss,
    best_edges,
    call,
    dense_layers,
    edges_at,
    exclude_setting,
    gradients,
    leaves,
    pairs,
    traceless,
)
from sparsekern.masks.masks import Masks


def snip(
    model: nn.Module,
    density: float,
    batches: Iterable[Any],
    loss: Loss = F.cross_entropy,
    exclude: str | Iterable[str] = (),
) -> Masks:
    """The weights that the loss feels most: largest `|w * dL/dw|` (Lee, Ajanthan & Torr 2019, arXiv 1810.02340, eq. 5).

    That is the derivative by a multiplier of each weight, at 1. Gradients of several batches are summed. The total
    is exactly `round(density * weights)` and each layer keeps one edge at least, its best (see
    `sparsekern.masks.select.best_masks`, for ties too), where SNIP alone would leave it empty.

    The model runs in the mode that it is in (a fresh one: training) and stays as it is: weights, buffers, gradients,
    and torch's random numbers.

    Memory on top of the model's, for float32: 4 bytes a weight (the gradient, which becomes the score), those of one
    step's activations, 4 bytes a weight of the largest layer, and 12 bytes an edge.

    Args:
        model: any that `sparsekern.sparsify` takes.
        density: share of the weights, of all layers together, that become edges, in (0, 1].
        batches: iterable of (inputs, targets), on the model's device; inputs are a tensor, a tuple of arguments or a
            dict of keywords. One batch of about a hundred samples is what the paper takes. Gone through once.
        loss: (outputs, targets) to a scalar.
        exclude: name patterns of layers to leave out, as of `sparsekern.sparsify`.

    Raises:
        TypeError, ValueError: for what `sparsekern.sparsify` refuses, batches of another form, a loss that is not
            finite.
    """
    exclude = exclude_setting(exclude)
    layers = dense_layers(model, exclude)
    edges_at(layers, density)
    weights = leaves(layers)
    with traceless(model) as buffers:
        for inputs, targets in pairs(batches):
            loss(call(model, {**buffers, **weights}, inputs), targets).backward(inputs=list(weights.values()))
    with torch.no_grad():
        scores = {name: grad.mul_(weights[name]).abs_() for name, grad in gradients(weights).items()}
    by_layer = {layer.name: scores[f"{layer.name}.weight"].detach for layer in layers}
    return best_edges(layers, by_layer, density, "snip", {"exclude": exclude})
