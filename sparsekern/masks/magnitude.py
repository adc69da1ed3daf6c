"""The largest weights."""

from __future__ import annotations

from collections.abc import Iterable
from functools import partial

from torch import Tensor, nn

from sparsekern.masks.dense import best_edges, dense_layers, exclude_setting
from sparsekern.masks.masks import Masks


def magnitude(model: nn.Module, density: float, exclude: str | Iterable[str] = ()) -> Masks:
    """The weights of largest absolute value, of all layers together (Han et al. 2015, arXiv 1506.02626).

    The total is exactly `round(density * weights)` and each layer keeps one edge at least (see
    `sparsekern.masks.select.best_masks`, for ties too). Memory on top of the model's: 5 bytes a weight of the
    largest layer, and 12 bytes an edge.

    Args:
        model: any that `sparsekern.sparsify` takes; it stays as it is.
        density: share of the weights, of all layers together, that become edges, in (0, 1].
        exclude: name patterns of layers to leave out, as of `sparsekern.sparsify`.

    Raises:
        TypeError, ValueError: for what `sparsekern.sparsify` refuses, and a weight that is not finite.
    """
    exclude = exclude_setting(exclude)
    layers = dense_layers(model, exclude)
    scores = {layer.name: partial(Tensor.abs, layer.weight) for layer in layers}
    return best_edges(layers, scores, density, "magnitude", {"exclude": exclude})
