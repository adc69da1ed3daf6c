"""A pattern for each of some layers of a model, and how a model gets them."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from sparsekern.densities import check_density
from sparsekern.pattern import Pattern
from sparsekern.sparsify import SparsityTable, TableRow, replace_layers, survey_layers

Survey = list[tuple[TableRow, str]]


class Masks(Mapping[str, Pattern]):
    """Topologies by layer: `masks["blocks.0.conv1"]` is that layer's `sparsekern.Pattern`. Read-only.

    Attributes:
        shapes: of each layer's dense weight, as torch has it: (out, in) or (C_out, C_in / groups, kh, kw). The
            pattern is of its matrix, (out, everything else).
        method: what found them, a word.
        density: share of the layers' weights that are edges; `nnz` is `round(density * size)`.
        settings: what the method was given, plain values; under "exclude" the name patterns of layers left out.
        state: None, or the values to train from: a state_dict of the model in which each of these layers has its
            weight at its edges alone, (nnz,) in stored order. A lottery ticket's are those that it was rewound to.

    Args:
        patterns, shapes: by qualified name (of a layer at several places: one of its names).
        density: None for what the patterns have.
        method, settings, state: as above.

    Raises:
        ValueError: no layer, a layer without an edge or without a shape, a shape that is not the pattern's, or a
            density that does not give the number of edges.
    """

    def __init__(
        self,
        patterns: Mapping[str, Pattern],
        shapes: Mapping[str, tuple[int, ...]],
        *,
        method: str = "custom",
        density: float | None = None,
        settings: Mapping[str, Any] | None = None,
        state: Mapping[str, Tensor] | None = None,
    ) -> None:
        if not patterns or patterns.keys() != shapes.keys():
            raise ValueError(f"patterns and shapes must be of the same layers, got {list(patterns)} and {list(shapes)}")
        for name, pattern in patterns.items():
            shape = tuple(shapes[name])
            if len(shape) < 2 or (shape[0], math.prod(shape[1:])) != pattern.shape:
                raise ValueError(f"shape of {name!r} is {shape}, but its pattern's matrix is {pattern.shape}")
            if pattern.nnz == 0:
                raise ValueError(f"pattern of {name!r} has no edges: a layer needs one at least")
        self._patterns = dict(patterns)
        self.shapes = {name: tuple(shapes[name]) for name in patterns}
        self.method = method
        self.density = check_density(self.nnz / self.size if density is None else density)
        self.settings = dict(settings or {})
        self.state = None if state is None else dict(state)
        if round(self.density * self.size) != self.nnz:
            raise ValueError(
                f"density is {density}, which gives {round(self.density * self.size)} of {self.size} weights, "
                f"but the patterns have {self.nnz} edges"
            )

    def __getitem__(self, name: str) -> Pattern:
        return self._patterns[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self._patterns)

    def __len__(self) -> int:
        return len(self._patterns)

    @property
    def nnz(self) -> int:
        """Edges of all layers."""
        return sum(pattern.nnz for pattern in self.values())

    @property
    def size(self) -> int:
        """Weights of all layers when they were dense."""
        return sum(math.prod(shape) for shape in self.shapes.values())

    @property
    def exclude(self) -> tuple[str, ...]:
        """Name patterns of the layers that the finder left out."""
        return tuple(self.settings.get("exclude", ()))

    def __repr__(self) -> str:
        values = "" if self.state is None else ", with values"
        return f"Masks({self.method}, layers={len(self)}, nnz={self.nnz}, density={self.density:g}{values})"

    def apply(
        self,
        model: nn.Module,
        *,
        keep_weights: bool | None = None,
        generator: torch.Generator | None = None,
        device: torch.device | str | None = None,
    ) -> SparsityTable:
        """Replaces these layers of a dense `model` by sparse ones with these patterns, in place.

        All else is as with `sparsekern.sparsify`; layers that are not in the masks, and attentions, stay dense.
        Patterns are copied.

        Args:
            keep_weights: True keeps the model's own values at the edges, and its biases; False draws new ones; None
                takes those that the masks have (`state`, of the whole model), and draws new ones where they have none.
            generator: of the new values.
            device: where to build what is on the meta device, as with `sparsify`.

        Raises:
            ValueError: naming the layer, for one that the model does not have, that cannot be replaced, that has
                another shape or is on the meta device, without `device`; or values that are not of this model. It is
                then unchanged.
        """
        survey = self._survey(model, real=device is None)
        if keep_weights is None and self.state is not None:
            self._check_state(model, survey)
            table = replace_layers(model, survey, self._by_first_name(survey), generator=generator, device=device)
            model.load_state_dict(self.state, strict=False)
            return table
        patterns = self._by_first_name(survey)
        return replace_layers(
            model, survey, patterns, keep_weights=bool(keep_weights), generator=generator, device=device
        )

    def with_values(self, model: nn.Module) -> Masks:
        """The same masks with a dense `model`'s present values as `state`: at the edges, and all else whole."""
        survey = self._survey(model)
        patterns = self._by_first_name(survey)
        edges = {f"{name}.weight": patterns[row.name] for row, _ in survey if not row.reason for name in row.names}
        state = {}
        for key, value in model.state_dict().items():
            if key in edges:
                rows, cols = (index.to(value.device) for index in edges[key].edges())
                state[key] = value.reshape(edges[key].shape)[rows, cols]
            elif isinstance(value, Tensor):
                state[key] = value.detach().clone()
        return Masks(self, self.shapes, method=self.method, density=self.density, settings=self.settings, state=state)

    def _survey(self, model: nn.Module, real: bool = True) -> Survey:
        """The model's layers, in which those that are not in the masks have a reason to stay dense."""
        survey = survey_layers(model, plain=True)
        rows = {name: row for row, _ in survey for name in row.names}
        matched: dict[str, str] = {}
        for name, shape in self.shapes.items():
            if name not in rows:
                raise ValueError(f"the masks have a layer {name!r}, but the model has only {', '.join(rows)}")
            row = rows[name]
            if row.reason is not None:
                raise ValueError(f"the masks have a layer {name!r}, which cannot be made sparse: it {row.reason}")
            if row.shape != shape:
                raise ValueError(f"the masks' layer {name!r} has a weight of shape {shape}, the model's of {row.shape}")
            if row.name in matched:
                raise ValueError(f"the masks' layers {matched[row.name]!r} and {name!r} are one layer of the model")
            matched[row.name] = name
        for row, path in survey:
            if real and row.name in matched and model.get_submodule(path).weight.is_meta:
                raise ValueError(f"layer {row.name!r} is on the meta device, where a topology has no content")
        left = "is not in the masks"
        return [
            (row if row.reason or row.name in matched else dataclasses.replace(row, reason=left), path)
            for row, path in survey
        ]

    def _by_first_name(self, survey: Survey) -> dict[str, Pattern]:
        """The patterns under the names that the model has its layers under first."""
        return {row.name: self[name] for row, _ in survey if not row.reason for name in row.names if name in self}

    def _check_state(self, model: nn.Module, survey: Survey) -> None:
        """Raises ValueError unless `state` has each tensor that the sparse model will have, in its shape."""
        assert self.state is not None
        patterns = self._by_first_name(survey)
        nnz = {f"{name}.weight": patterns[row.name].nnz for row, _ in survey if not row.reason for name in row.names}
        for key, value in model.state_dict().items():
            if isinstance(value, Tensor):
                shape = (nnz[key],) if key in nnz else tuple(value.shape)
                if key not in self.state:
                    raise ValueError(f"the masks' values have no {key!r}, which the model has")
                mine = tuple(self.state[key].shape)
                if mine != shape:
                    raise ValueError(f"the masks' values have {key!r} of shape {mine}; the model needs {shape}")
        if unknown := sorted(self.state.keys() - model.state_dict().keys()):
            raise ValueError(f"the masks' values have {unknown[0]!r}, which the model has not")
