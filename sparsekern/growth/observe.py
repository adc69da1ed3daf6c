"""What updates do to a topology: survival of grown edges, spread of fan-in and fan-out, dead neurons."""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from sparsekern.backends.topology.numbers import read_floats
from sparsekern.growth.base import Growth, LayerUpdate
from sparsekern.nn.layer import SparseLayer

# Where an edge comes from. A move gives 0 to the edges that it grows.
_GROWN_NOW, _FIRST, _GROWN_LAST, _GROWN_BEFORE = 0, 1, 2, 3


@dataclass(frozen=True)
class ObservedUpdate(LayerUpdate):
    """What one update did to one layer, and what the layer is after it.

    Attributes:
        survived: of the edges that this layer's last update grew, the share that is still there after this one; None
            where there were none.
        first: share of the edges that are there since observation began.
        fan_in_min, fan_in_median, fan_in_mean, fan_in_max, fan_in_deviation: of the edges of each row (the median is
            the lower of two middle values, the deviation that of the whole population).
        fan_out_min, fan_out_median, fan_out_mean, fan_out_max, fan_out_deviation: of the edges of each column.
        dead_rows: rows without an edge: outputs that are their bias alone.
        dead_columns: columns without an edge: inputs that no output reads. A convolution's column is one place of the
            kernel in one input channel.
        grad_norm: 2-norm of the values' gradient, before edges moved; None without a gradient.
    """

    survived: float | None = None
    first: float | None = None
    fan_in_min: int = 0
    fan_in_median: int = 0
    fan_in_mean: float = 0.0
    fan_in_max: int = 0
    fan_in_deviation: float = 0.0
    fan_out_min: int = 0
    fan_out_median: int = 0
    fan_out_mean: float = 0.0
    fan_out_max: int = 0
    fan_out_deviation: float = 0.0
    dead_rows: int = 0
    dead_columns: int = 0
    grad_norm: float | None = None


class Observer:
    """Observes the updates of a growth. Call :meth:`step` in the place of the growth's own::

        growth = sparsekern.GSE(model, optimizer, interval=100, end=10000)
        observer = Observer(growth)
        ...
        rows = observer.step()  # in the place of growth.step(); empty but for updates

    Steps between updates cost nothing. From the first update on it keeps one byte an edge, on the layer's device; an
    update costs O(rows + columns + nnz) more a layer, and a copy of 14 numbers a layer from the device, all at once.

    Args:
        growth: of the topology; it must be stepped through the observer alone.

    Attributes:
        seconds: that the growth took for the last update, without the drawing of its candidates in backward.
    """

    def __init__(self, growth: Growth) -> None:
        self.growth = growth
        self.seconds = 0.0
        self._origins: dict[str, Tensor] = {}

    @torch.no_grad()
    def step(self) -> list[ObservedUpdate]:
        """The growth's step; returns a row a layer where it was an update."""
        growth = self.growth
        if not growth.armed:
            growth.step()
            return []
        before = {name: self._origins_of(name, layer) for name, layer in growth.layers.items()}
        # int16: the narrowest that moves without a detour.
        growth.carried = {name: origins.short() for name, origins in before.items()}
        norms = {name: _norm(layer.weight.grad) for name, layer in growth.layers.items()}
        try:
            self._wait()
            started = time.perf_counter()
            updates = growth.step()
            self._wait()
            seconds = time.perf_counter() - started
            moved = growth.carried
        finally:
            growth.carried = {}
        if not updates:
            return []
        self.seconds = seconds
        figures = [self._figures(each, before[each.layer], moved[each.layer], norms[each.layer]) for each in updates]
        return [self._told(update, numbers) for update, numbers in zip(updates, read_floats(figures), strict=True)]

    @property
    def nbytes(self) -> int:
        """Bytes that it keeps."""
        return sum(origins.nbytes for origins in self._origins.values())

    def state_dict(self) -> dict[str, Any]:
        """Where each edge comes from, by layer: int8 (nnz,); empty before the first update."""
        return {"origins": dict(self._origins)}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Goes on where :meth:`state_dict` was taken. Raises ValueError for other layers or other numbers of edges."""
        origins: dict[str, Tensor] = state["origins"]
        layers = self.growth.layers
        for name, theirs in origins.items():
            if name not in layers:
                raise ValueError(f"the observer's state has a layer {name!r}; expected one of {', '.join(layers)}")
            if theirs.shape != (layers[name].nnz,):
                raise ValueError(
                    f"the observer's state has shape {tuple(theirs.shape)} for layer {name!r}; expected "
                    f"({layers[name].nnz},), its edges"
                )
        self._origins = {name: theirs.to(layers[name].weight.device, torch.int8) for name, theirs in origins.items()}

    def _origins_of(self, name: str, layer: SparseLayer) -> Tensor:
        origins = self._origins.get(name)
        # Another number of edges than before: somebody gave the layer another topology.
        if origins is None or origins.numel() != layer.nnz:
            return torch.full((layer.nnz,), _FIRST, dtype=torch.int8, device=layer.weight.device)
        return origins.to(layer.weight.device)

    def _wait(self) -> None:
        """For what a GPU still has to do, so that the clock measures the update alone."""
        for device in {layer.weight.device for layer in self.growth.layers.values()}:
            if device.type == "cuda":
                torch.cuda.synchronize(device)

    def _figures(self, update: LayerUpdate, before: Tensor, moved: Tensor, norm: Tensor | None) -> Tensor:
        """What is to be read of a layer, where it is; notes where its edges come from now."""
        pattern = self.growth.layers[update.layer].pattern
        counts = [(before == _GROWN_LAST).sum(), (moved == _GROWN_LAST).sum(), (moved == _FIRST).sum()]
        figures = [*counts, *_spread(pattern.fan_in()), *_spread(pattern.fan_out())]
        if norm is not None:
            figures.append(norm)
        if update.replaced:
            aged = torch.where(moved == _GROWN_LAST, _GROWN_BEFORE, moved)
            self._origins[update.layer] = torch.where(moved == _GROWN_NOW, _GROWN_LAST, aged).to(torch.int8)
        return torch.stack([figure.double() for figure in figures])

    def _told(self, update: LayerUpdate, numbers: list[float]) -> ObservedUpdate:
        layer = self.growth.layers[update.layer]
        grown, survivors, first, *rest = numbers
        fan_in, fan_out = rest[:5], rest[5:10]
        return ObservedUpdate(
            **vars(update),
            survived=survivors / grown if grown else None,
            first=first / max(1, layer.nnz),
            **_named("fan_in", layer.nnz / max(1, layer.matrix_shape[0]), fan_in),
            **_named("fan_out", layer.nnz / max(1, layer.matrix_shape[1]), fan_out),
            dead_rows=int(fan_in[4]),
            dead_columns=int(fan_out[4]),
            grad_norm=rest[10] if len(rest) > 10 else None,
        )


def _norm(grad: Tensor | None) -> Tensor | None:
    return None if grad is None else torch.linalg.vector_norm(grad)


def _spread(degrees: Tensor) -> list[Tensor]:
    """Least, median, most, deviation and the number of zeros, as tensors without dimensions; zeros where none are."""
    if degrees.numel() == 0:
        return [degrees.new_zeros(())] * 5
    deviation = degrees.double().std(correction=0)
    return [degrees.min(), degrees.median(), degrees.max(), deviation, (degrees == 0).sum()]


def _named(side: str, mean: float, figures: list[float]) -> dict[str, Any]:
    least, median, most, deviation, _ = figures
    return {
        f"{side}_min": int(least),
        f"{side}_median": int(median),
        f"{side}_mean": mean,
        f"{side}_max": int(most),
        f"{side}_deviation": deviation,
    }
