"""Lottery tickets: iterative magnitude pruning with rewinding."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor, nn

from sparsekern.masks.dense import dense_layers, edges_at, exclude_setting
from sparsekern.masks.masks import Masks
from sparsekern.masks.select import best_masks
from sparsekern.nn import SparseLayer
from sparsekern.pattern import Pattern

Train = Callable[[nn.Module], object]


def lottery_ticket(
    model: nn.Module,
    density: float,
    train: Train,
    exclude: str | Iterable[str] = (),
    *,
    warm_up: Train | None = None,
    share: float = 0.2,
    rounds: int | None = None,
) -> Masks:
    """Iterative magnitude pruning: train, drop the smallest of the weights that are left, rewind, and again.

    After Frankle & Carbin 2019 (arXiv 1803.03635): each round trains the network from the same values, then takes
    the survivors of least magnitude, of all layers together, out. Survivors shrink by the same factor each round,
    `density^(1 / rounds)`, to exactly `round(density * weights)`. With `warm_up` the values that rounds go back to
    are those after the first steps of training (Frankle et al. 2019, arXiv 1903.01611). Each layer keeps one edge at
    least (see `sparsekern.masks.select.best_masks`, for ties too).

    The first round trains a dense copy; from the second on the copy's layers are sparse, with no more values,
    gradients and optimizer state than edges. The model itself stays as it is; what `train` does besides, such as
    drawing random numbers, is its own.

    Memory on top of the model's: a copy of it (two with `warm_up`) and all that training takes, dense in the first
    round; then 12 bytes an edge and 5 bytes a weight of the largest layer.

    Args:
        model: any that `sparsekern.sparsify` takes.
        density: share of the weights, of all layers together, that become edges, in (0, 1].
        train: trains the model that it is given, in place, with an optimizer of its own: from the initial values to
            the end, or from where `warm_up` left off.
        exclude: name patterns of layers to leave out, as of `sparsekern.sparsify`.
        warm_up: trains a dense model for the first steps, in place. None rewinds to the initial values.
        share: at most this share of the survivors goes each round, in (0, 1); the paper's 0.2. It gives the number of
            rounds where that is not given.
        rounds: 1 (one-shot) or more.

    Returns:
        Masks with the values that were gone back to as `state`: `masks.apply(model)` starts from the ticket.

    Raises:
        TypeError, ValueError: for what `sparsekern.sparsify` refuses, a share or a number of rounds out of range, and
            a trained weight that is not finite.
    """
    rounds = pruning_rounds(density, share) if rounds is None else rounds
    if isinstance(rounds, bool) or not isinstance(rounds, int) or rounds < 1:
        raise ValueError(f"rounds must be a whole number of at least 1, got {rounds!r}")
    exclude = exclude_setting(exclude)
    layers = dense_layers(model, exclude)
    last = edges_at(layers, density)
    size = sum(layer.weight.numel() for layer in layers)
    names = [layer.name for layer in layers]
    shapes = {layer.name: layer.shape for layer in layers}
    del layers
    start = model
    if warm_up is not None:
        start = copy.deepcopy(model)
        warm_up(start)
    patterns: dict[str, Pattern] | None = None
    for number in range(1, rounds + 1):
        trained = copy.deepcopy(start)
        if patterns is not None:
            # A generator of its own for the values that are drawn before the kept ones take their place.
            Masks(patterns, shapes).apply(trained, keep_weights=True, generator=torch.Generator())
        train(trained)
        total = last if number == rounds else max(len(names), round(density ** (number / rounds) * size))
        patterns = largest_survivors(trained, names, total)
    assert patterns is not None
    settings = {"exclude": exclude, "rounds": rounds, "rewound_to": "start" if warm_up is None else "warm-up"}
    return Masks(patterns, shapes, method="lottery", density=density, settings=settings).with_values(start)


def pruning_rounds(density: float, share: float) -> int:
    """Rounds in which survivors go down to `density` when each takes at most `share` of them."""
    if not 0.0 < share < 1.0:
        raise ValueError(f"share must be above 0 and below 1, got {share!r}")
    if not 0.0 < density <= 1.0:
        raise ValueError(f"density must be in (0, 1], got {density!r}")
    # The nearest whole number where rounding alone makes it more: 0.8**5 in 5 rounds, not 6.
    return max(1, math.ceil(math.log(density) / math.log(1.0 - share) - 1e-9))


def largest_survivors(model: nn.Module, names: list[str], total: int) -> dict[str, Pattern]:
    """By layer, the `total` largest weights of a trained model, dense or sparse, among those that it has."""
    layers = {name: model.get_submodule(name) for name in names}
    scores: dict[str, Callable[[], Tensor]] = {
        name: partial(torch.abs, model.get_parameter(f"{name}.weight").detach()) for name in names
    }
    patterns = {}
    for name, mask in best_masks(scores, total):
        layer = layers[name]
        mask = mask.cpu()
        if isinstance(layer, SparseLayer):
            rows, cols = (index.cpu() for index in layer.pattern.edges())
            keys = cols.mul_(layer.matrix_shape[0]).add_(rows)[mask]
            patterns[name] = Pattern.from_sorted_keys(layer.matrix_shape, keys)
        else:
            weight = model.get_parameter(f"{name}.weight")
            patterns[name] = Pattern.from_mask(mask.view(weight.shape[0], -1))
    return patterns
