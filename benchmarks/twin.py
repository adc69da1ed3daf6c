"""Does a sparse network compute what a dense one with the same zeros does?"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.nn import SparseLayer


def disagreement(sparse: nn.Module, dense: nn.Module, images: Tensor, labels: Tensor) -> float:
    """The largest relative difference (in the 2-norm) of the gradient of any parameter, at the edges.

    Gives `dense`, a network of the same structure, the sparse one's values and zeros; both run in training mode.

    Raises:
        ValueError: the networks' parameters do not belong together.
    """
    pairs = list(_pairs(sparse, dense))
    with torch.no_grad():
        for layer, own, theirs in pairs:
            theirs.copy_(layer.to_dense() if layer is not None else own)
    for network in (sparse, dense):
        network.zero_grad()
        F.cross_entropy(network(images), labels).backward()
    worst = 0.0
    for layer, own, theirs in pairs:
        expected = theirs.grad if layer is None else theirs.grad.reshape(layer.matrix_shape)[layer.pattern.edges()]
        worst = max(worst, ((own.grad - expected).norm() / expected.norm().clamp(min=1e-12)).item())
        own.grad = theirs.grad = None
    return worst


def _pairs(sparse: nn.Module, dense: nn.Module) -> Iterator[tuple[SparseLayer | None, nn.Parameter, nn.Parameter]]:
    """(the sparse layer whose weight it is, its parameter, the dense network's) for each parameter, in their order."""
    layers = {layer.weight: layer for layer in sparse.modules() if isinstance(layer, SparseLayer)}
    own, theirs = list(sparse.parameters()), list(dense.parameters())
    shapes = [layers[each].dense_shape() if each in layers else tuple(each.shape) for each in own]
    if shapes != [tuple(each.shape) for each in theirs]:
        raise ValueError("the sparse and the dense network have different parameters")
    for mine, other in zip(own, theirs, strict=True):
        yield layers.get(mine), mine, other
