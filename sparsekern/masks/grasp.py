"""GraSP: gradient signal preservation."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel

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


def grasp(
    model: nn.Module,
    density: float,
    batches: Iterable[Any],
    loss: Loss = F.cross_entropy,
    exclude: str | Iterable[str] = (),
    *,
    temperature: float = 200.0,
) -> Masks:
    """The weights whose removal takes most from the gradient's norm (Wang, Zhang & Grosse 2020, arXiv 2002.07376).

    Removing weight w changes the squared norm of the gradient g by about twice `S = -w * (H g)`, H the loss's Hessian
    (eq. 8); the smallest S, most negative first, are kept. g and H are of the mean loss over all batches, with the
    model's outputs divided by `temperature` (section 4.2 and the authors' code). H g takes one more backward pass
    through the first; no matrix is made. The total is exactly `round(density * weights)` and each layer keeps one
    edge at least, its best (see `sparsekern.masks.select.best_masks`, for ties too).

    The model runs in the mode that it is in (a fresh one: training) and stays as it is: weights, buffers, gradients,
    and torch's random numbers. It must be twice differentiable: this library's fused norms, GELU and attention are,
    and torch's attention is by the kernel that is chosen here.

    Memory on top of the model's, for float32: 12 bytes a weight (g, a batch's gradient with its graph, H g), as many
    a weight of the largest layer, several times a step's activations, and 12 bytes an edge. All batches are held.

    Args:
        model: any that `sparsekern.sparsify` takes.
        density: share of the weights, of all layers together, that become edges, in (0, 1].
        batches: iterable of (inputs, targets), on the model's device; inputs are a tensor, a tuple of arguments or a
            dict of keywords. The paper takes ten samples of each class.
        loss: (outputs, targets) to a scalar, a mean over the batch.
        exclude: name patterns of layers to leave out, as of `sparsekern.sparsify`.
        temperature: by which outputs, a tensor, are divided.

    Raises:
        TypeError, ValueError: for what `sparsekern.sparsify` refuses, batches of another form, a temperature that is
            not above 0, scores that are not finite.
    """
    if not temperature > 0:
        raise ValueError(f"temperature must be above 0, got {temperature!r}")
    exclude = exclude_setting(exclude)
    layers = dense_layers(model, exclude)
    edges_at(layers, density)
    kept = list(pairs(batches))
    weights = leaves(layers)
    parameters = list(weights.values())

    def batch_loss(buffers: dict[str, Tensor], inputs: Any, targets: Any) -> Tensor:
        return loss(call(model, {**buffers, **weights}, inputs) / temperature, targets) / len(kept)

    # Both sweeps begin at the same random state, so that dropout leaves the same out.
    with traceless(model) as buffers:
        for inputs, targets in kept:
            batch_loss(buffers, inputs, targets).backward(inputs=parameters)
    gradient = gradients(weights)
    with traceless(model) as buffers, sdpa_kernel(SDPBackend.MATH):
        for inputs, targets in kept:
            value = batch_loss(buffers, inputs, targets)
            slopes = torch.autograd.grad(value, parameters, create_graph=True, allow_unused=True)
            # None where the loss does not depend on a weight; no graph where it is linear in it and in all others.
            curved = {name: s for name, s in zip(weights, slopes, strict=True) if s is not None and s.requires_grad}
            if curved:
                torch.autograd.backward(list(curved.values()), [gradient[name] for name in curved], inputs=parameters)
            del value, slopes, curved
    del gradient
    with torch.no_grad():
        scores = {name: product.mul_(weights[name]) for name, product in gradients(weights).items()}
    by_layer = {layer.name: scores[f"{layer.name}.weight"].detach for layer in layers}
    return best_edges(layers, by_layer, density, "grasp", {"exclude": exclude, "temperature": temperature})
