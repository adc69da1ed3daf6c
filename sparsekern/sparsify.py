"""Replaces a model's nn.Linear and nn.Conv2d by sparse layers, in place, and says what it did."""

from __future__ import annotations

import dataclasses
import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparsekern.densities import check_density, layer_nnz
from sparsekern.nn import SparseConv2d, SparseLayer, SparseLinear
from sparsekern.nn.conv2d import conv2d_arguments
from sparsekern.pattern import Pattern

_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
# What a hook dictionary holds works on a sparse layer as well: it sees the same inputs, outputs and gradients.
_CARRIED_HOOKS = (
    "_forward_hooks",
    "_forward_hooks_with_kwargs",
    "_forward_hooks_always_called",
    "_forward_pre_hooks",
    "_forward_pre_hooks_with_kwargs",
    "_backward_hooks",
    "_backward_pre_hooks",
)
# These read or write the weight as a matrix.
_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")


@dataclass(frozen=True)
class TableRow:
    """One weight: of a layer now sparse, or of one that stayed dense, with the reason."""

    names: tuple[str, ...]  # every qualified name of a shared module, the first one first
    kind: str
    shape: tuple[int, ...]  # the dense weight's
    nnz: int
    reason: str | None = None  # None for a layer that was replaced

    @property
    def name(self) -> str:
        return self.names[0]

    @property
    def size(self) -> int:
        return math.prod(self.shape)

    @property
    def density(self) -> float:
        return self.nnz / self.size if self.size else 1.0


@dataclass(frozen=True)
class SparsityTable:
    """What `sparsify` did: a row per weight matrix of the model. `print` it, or see `markdown`."""

    rows: tuple[TableRow, ...]

    @property
    def replaced(self) -> tuple[TableRow, ...]:
        """The layers that this call made sparse."""
        return tuple(row for row in self.rows if row.reason is None)

    @property
    def kept(self) -> tuple[TableRow, ...]:
        """What stayed as it was, and why."""
        return tuple(row for row in self.rows if row.reason is not None)

    @property
    def size(self) -> int:
        """Weights of the replaced layers when they were dense."""
        return sum(row.size for row in self.replaced)

    @property
    def nnz(self) -> int:
        """Weights of the replaced layers now."""
        return sum(row.nnz for row in self.replaced)

    @property
    def density(self) -> float:
        return self.nnz / self.size

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown."""
        lines = ["| " + " | ".join(cells) + " |" for cells in self._cells()]
        lines.insert(1, "|---|---|---|---:|---:|---|")
        return "\n".join(lines)

    def __str__(self) -> str:
        cells = self._cells()
        widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
        pads = (str.ljust, str.ljust, str.ljust, str.rjust, str.rjust, str.ljust)
        lines = [
            "  ".join(pad(cell, width) for pad, cell, width in zip(pads, row, widths, strict=True)).rstrip()
            for row in cells
        ]
        return "\n".join(lines)

    def _cells(self) -> list[tuple[str, ...]]:
        body = [
            (
                " = ".join(row.names),
                row.kind,
                " x ".join(map(str, row.shape)),
                f"{row.density:.4f}",
                f"{row.nnz:,}",
                row.reason or "",
            )
            for row in self.rows
        ]
        total = ("total of the replaced", "", f"{self.size:,}", f"{self.density:.4f}", f"{self.nnz:,}", "")
        return [("layer", "kind", "shape", "density", "nnz", "left as it was because"), *body, total]


def sparsify(
    model: nn.Module,
    density: float = 0.02,
    distribution: str = "erk",
    exclude: str | Iterable[str] = (),
    *,
    keep_weights: bool = False,
    generator: torch.Generator | None = None,
) -> SparsityTable:
    """Replaces every nn.Linear and nn.Conv2d of `model` by a sparse layer, in place.

    The replaced layers together have exactly `round(density * their weights)` nonzeros, at random places, split
    by `distribution` (see `sparsekern.densities.layer_nnz`). A module used at several places is replaced by one
    sparse module at all of them. Device, dtype, training mode, `requires_grad` and hooks on forward and backward
    carry over; parameters are new objects, so make the optimizer afterwards. Layers are replaced one by one and
    nothing of a layer's dense size is made; a model on the meta device stays there.

    What stays dense, each named in the table with its reason: subclasses of nn.Linear and nn.Conv2d (such as the
    output projection of nn.MultiheadAttention, which reads its `weight` as a matrix), layers whose parameter is
    shared with another module, layers with a computed weight (parametrizations, weight norm, pruning), lazy
    layers, layers with state_dict hooks, excluded layers, and weights of other module types. Layers that are
    sparse already stay as they are and do not count. The fused inference path of nn.TransformerEncoderLayer
    reads weights as matrices too: it is switched off in layers whose linear layers are replaced.

    Args:
        model: any module that contains nn.Linear or nn.Conv2d.
        density: share of the replaced layers' weights that are nonzero, in (0, 1].
        distribution: "er", "erk" or "uniform".
        exclude: shell patterns of qualified names ("head*", "layer4.*.conv2"); a pattern that matches a
            containing module's name excludes all of it.
        keep_weights: False draws new values as `SparseLayer.reset_parameters` does; True keeps each layer's
            largest weights, in their places, and its bias (this sorts a dense copy, one layer at a time).
        generator: of the random topologies and values.

    Raises:
        TypeError: `model` is no nn.Module.
        ValueError: a density outside (0, 1] or too low for one nonzero a layer, an unknown distribution, a
            pattern of `exclude` that matches nothing, a model without a layer to replace, or a model that is
            itself the layer (see `SparseLinear.from_dense`). The model is then unchanged.
    """
    check_density(density)
    survey = survey_layers(model, exclude)
    chosen = [row for row, _ in survey if row.reason is None]
    counts = layer_nnz([row.shape for row in chosen], density, distribution)
    nnz = {row.name: count for row, count in zip(chosen, counts, strict=True)}
    return replace_layers(model, survey, nnz, keep_weights=keep_weights, generator=generator)


def survey_layers(model: nn.Module, exclude: str | Iterable[str] = ()) -> list[tuple[TableRow, str]]:
    """A row for each weight matrix of a model as it is, with its module's path; no reason where `sparsify` replaces it.

    Raises what `sparsify` does for its `model` and `exclude`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (nn.Linear, nn.Conv2d, SparseLayer)):
        raise ValueError(
            f"model is itself the layer ({type(model).__name__}), with no parent to be replaced in: "
            "make the layer with SparseLinear.from_dense or SparseConv2d.from_dense"
        )
    survey = list(_survey(model, (exclude,) if isinstance(exclude, str) else tuple(exclude)))
    if not any(row.reason is None for row, _ in survey):
        raise ValueError(
            "model has no nn.Linear or nn.Conv2d to replace"
            + "".join(f"\n  {row.name} ({row.kind}): {row.reason}" for row, _ in survey)
        )
    return survey


def replace_layers(
    model: nn.Module,
    survey: Sequence[tuple[TableRow, str]],
    topologies: Mapping[str, int | Pattern],
    *,
    keep_weights: bool = False,
    generator: torch.Generator | None = None,
) -> SparsityTable:
    """Replaces the surveyed layers without a reason by sparse ones, in place, unchecked; see `sparsify`.

    `topologies` has each of them by name: a number of nonzeros, or the very pattern.
    """
    places = _places(model)
    rows = []
    for row, path in survey:
        if row.reason is None:
            topology = topologies[row.name]
            pattern = topology if isinstance(topology, Pattern) else None
            row = dataclasses.replace(row, nnz=topology if isinstance(topology, int) else topology.nnz)
            dense = model.get_submodule(path)
            sparse = _sparse_twin(dense, row, keep_weights, generator, pattern)
            for parent, key in places[id(dense)]:
                setattr(parent, key, sparse)
            del dense  # its memory goes before the next layer is made
        rows.append(row)
    _leave_fused_paths(model)
    return SparsityTable(tuple(rows))


def _survey(model: nn.Module, patterns: Sequence[str]) -> Iterator[tuple[TableRow, str]]:
    """A row for every weight matrix, with the path of its module; the reason is None where it can be replaced."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[id(module)].append(name)
    owners: dict[int, list[str]] = defaultdict(list)
    for name, parameter in _parameters(model):
        owners[id(parameter)].append(name)
    unmatched = set(patterns)
    for path, module in model.named_modules():
        mine = names[id(module)]
        kind = type(module).__name__
        if isinstance(module, SparseLayer):
            shape = tuple(module.dense_shape())
            yield TableRow(tuple(mine), kind, shape, module.nnz, "is sparse already"), path
        elif isinstance(module, (nn.Linear, nn.Conv2d)):
            hits = {pattern for pattern in patterns if any(_matches(name, pattern) for name in mine)}
            unmatched -= hits
            reason = f"excluded by {min(hits)!r}" if hits else _why_dense(module, owners)
            shape = _dense_shape(module)
            yield TableRow(tuple(mine), kind, shape, math.prod(shape), reason), path
        elif not isinstance(module, parametrize.ParametrizationList):
            for key, parameter in module._parameters.items():
                if parameter is not None and not is_lazy(parameter) and parameter.dim() >= 2:
                    weights = tuple(f"{name}.{key}".lstrip(".") for name in mine)
                    reason = "is no nn.Linear or nn.Conv2d"
                    yield TableRow(weights, kind, tuple(parameter.shape), parameter.numel(), reason), path
    if unmatched:
        raise ValueError(
            f"exclude pattern {min(unmatched)!r} matches no nn.Linear or nn.Conv2d; the model has "
            + ", ".join(n for n, m in model.named_modules() if isinstance(m, (nn.Linear, nn.Conv2d)))
        )


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every registration of every parameter, once for each module that holds it."""
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{key}".lstrip("."), parameter


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _why_dense(module: nn.Linear | nn.Conv2d, owners: dict[int, list[str]]) -> str | None:
    """Why this layer cannot be replaced, or None."""
    weight = module._parameters.get("weight")
    if weight is None or parametrize.is_parametrized(module):
        return "has a computed weight (parametrization, weight norm or pruning)"
    if is_lazy(weight):
        return "is lazy: its shape is known after the first batch"
    if type(module) not in (nn.Linear, nn.Conv2d):
        return "is a subclass, whose owner may read its weight as a matrix"
    if weight.dtype not in _DTYPES:
        return f"has dtype {weight.dtype}, for which there are no kernels"
    if weight.numel() == 0:
        return "has no weights"
    for key, parameter in module._parameters.items():
        if parameter is not None and len(owners[id(parameter)]) > 1:
            return f"shares its {key}: {' = '.join(owners[id(parameter)])}"
    if any(getattr(module, hooks, None) for hooks in _STATE_HOOKS):
        return "has state_dict hooks"
    return None


def _dense_shape(module: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)


def _places(model: nn.Module) -> dict[int, list[tuple[nn.Module, str]]]:
    """Of each child module, by id: the modules that hold it and under which attribute."""
    places: dict[int, list[tuple[nn.Module, str]]] = defaultdict(list)
    for parent in model.modules():
        for key, child in parent._modules.items():
            places[id(child)].append((parent, key))
    return places


def _sparse_twin(
    dense: nn.Module,
    row: TableRow,
    keep_weights: bool,
    generator: torch.Generator | None,
    pattern: Pattern | None = None,
) -> SparseLayer:
    """The sparse layer that takes the dense one's place."""
    assert isinstance(dense, (nn.Linear, nn.Conv2d))
    device, dtype = dense.weight.device, dense.weight.dtype
    sparse: SparseLayer
    if keep_weights and pattern is None and device.type != "meta":
        cls = SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d
        sparse = cls.from_dense(dense, density=row.density)  # type: ignore[arg-type]
    else:
        shape = (row.shape[0], math.prod(row.shape[1:]))
        if pattern is None:
            if device.type == "meta":
                pattern = Pattern.empty(shape, row.nnz, device="meta")
            else:
                pattern = Pattern.random(shape, row.nnz, generator=generator)
            keep_weights = False
        common: dict[str, Any] = {"device": device, "dtype": dtype, "pattern": pattern, "generator": generator}
        if isinstance(dense, nn.Linear):
            sparse = SparseLinear(dense.in_features, dense.out_features, dense.bias is not None, **common)
        else:
            sparse = SparseConv2d(**conv2d_arguments(dense), **common)
        if keep_weights:
            sparse._take_dense(dense)
    sparse.training = dense.training
    sparse.weight.requires_grad_(dense.weight.requires_grad)
    if sparse.bias is not None and dense.bias is not None:
        sparse.bias.requires_grad_(dense.bias.requires_grad)
    for hooks in _CARRIED_HOOKS:
        setattr(sparse, hooks, getattr(dense, hooks))  # the same dictionaries, so that handles still remove
    sparse._is_full_backward_hook = dense._is_full_backward_hook
    return sparse


def _leave_fused_paths(model: nn.Module) -> None:
    """Switches off torch's fused encoder layers, which read linear1.weight and linear2.weight as matrices."""
    for module in model.modules():
        if isinstance(module, nn.TransformerEncoderLayer) and _has_sparse(module):
            module.activation_relu_or_gelu = 0
        elif isinstance(module, nn.TransformerEncoder) and _has_sparse(module):
            module.use_nested_tensor = False


def _has_sparse(module: nn.Module) -> bool:
    return any(isinstance(child, SparseLayer) for child in module.modules())
