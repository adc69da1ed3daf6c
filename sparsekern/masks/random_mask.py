"""Random topologies."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from sparsekern.densities import layer_nnz
from sparsekern.masks.dense import dense_layers, exclude_setting
from sparsekern.masks.masks import Masks
from sparsekern.pattern import Pattern


def random_mask(
    model: nn.Module,
    density: float,
    distribution: str = "erk",
    exclude: str | Iterable[str] = (),
    *,
    generator: torch.Generator | None = None,
) -> Masks:
    """Edges at random, as many in each layer as `distribution` gives it: what `sparsify` draws, as masks.

    Needs no values, so the model may be on the meta device. Memory: 12 bytes an edge, what a pattern takes.

    Args:
        model: any that `sparsekern.sparsify` takes; it stays as it is.
        density: share of the weights, of all layers together, that become edges, in (0, 1].
        distribution: "erk", "er" or "uniform" (see `sparsekern.densities.layer_nnz`).
        exclude: name patterns of layers to leave out, as of `sparsekern.sparsify`.
        generator: a CPU generator; None for torch's default one.

    Raises:
        TypeError, ValueError: for what `sparsekern.sparsify` refuses.
    """
    exclude = exclude_setting(exclude)
    layers = dense_layers(model, exclude)
    counts = layer_nnz([layer.shape for layer in layers], density, distribution)
    patterns = {
        layer.name: Pattern.random(layer.matrix_shape, nnz, generator=generator)
        for layer, nnz in zip(layers, counts, strict=True)
    }
    shapes = {layer.name: layer.shape for layer in layers}
    settings = {"exclude": exclude, "distribution": distribution}
    return Masks(patterns, shapes, method="random", density=density, settings=settings)
