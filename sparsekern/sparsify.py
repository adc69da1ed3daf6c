"""Replaces a model's linear layers, convolutions and attention by sparse ones, in place, and says what it did."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import nn
from torch.nn.parameter import is_lazy
from torch.nn.utils import parametrize

from sparsekern import tables
from sparsekern.densities import check_density, layer_nnz
from sparsekern.materialise import Materials
from sparsekern.nn import SparseConv2d, SparseLayer, SparseLinear, SparseMultiheadAttention
from sparsekern.nn.conv2d import conv2d_arguments
from sparsekern.nn.dense import dense_projections, is_conv1d, linear_around
from sparsekern.pattern import Pattern

_NUMBERS = (False, False, False, True, True, False)  # columns of the table that are aligned to the right
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
# Of each child module, by id: the modules that hold it and under which attribute.
_Places = dict[int, list[tuple[nn.Module, str]]]
# These read or write the weight as a matrix.
_STATE_HOOKS = ("_state_dict_hooks", "_state_dict_pre_hooks", "_load_state_dict_pre_hooks")


@dataclass(frozen=True)
class TableRow:
    """One weight: of a layer now sparse, or of one that stayed dense, with the reason.

    Of an attention that was replaced each projection has a row, under its name in `SparseMultiheadAttention`.
    """

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
        return tables.markdown(self._cells(), _NUMBERS)

    def __str__(self) -> str:
        return tables.aligned(self._cells(), _NUMBERS)

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
    device: torch.device | str | None = None,
) -> SparsityTable:
    """Replaces every nn.Linear, nn.Conv2d and nn.MultiheadAttention of `model` by sparse ones, in place.

    The replaced layers together have exactly `round(density * their weights)` nonzeros, at random places, split
    by `distribution` (see `sparsekern.densities.layer_nnz`). A module used at several places is replaced by one
    sparse module at all of them. Device, dtype, training mode, `requires_grad` and hooks on forward and backward
    carry over; parameters are new objects, so make the optimizer afterwards. Layers are replaced one by one and
    nothing of a layer's dense size is made.

    An attention counts as its linear layers: `in_proj`, of the queries, keys and values together (in the
    `multihead_attn` of an nn.TransformerDecoderLayer, whose queries are not its keys, `q_proj`, `k_proj` and
    `v_proj`), and `out_proj`. A pattern of `exclude` that matches one of them keeps the whole attention dense. The
    `Conv1D` of the transformers library (GPT-2) is a linear layer with a transposed weight, and is replaced as one.

    A model on the meta device stays there, unless `device` is given: then it is built on that device without ever
    holding a dense weight. The sparse layers are made there, and whatever else is on the meta device is given memory
    and filled by its module's own `reset_parameters` (the convention of torch's FSDP), children before their parents.

    What stays dense, each named in the table with its reason: subclasses of these modules, layers whose parameter is
    shared with another module, layers with a computed weight (parametrizations, weight norm, pruning), lazy
    layers, layers with state_dict hooks, excluded layers, and weights of other module types. Layers that are
    sparse already stay as they are and do not count. The fused inference path of nn.TransformerEncoderLayer
    reads weights as matrices too: it is switched off in layers whose linear layers are replaced. Other modules that
    read the weight of a layer instead of calling it fail in their forward (torchvision's Swin attention): exclude
    those layers.

    Args:
        model: any module that contains nn.Linear or nn.Conv2d.
        density: share of the replaced layers' weights that are nonzero, in (0, 1].
        distribution: "er", "erk" or "uniform".
        exclude: shell patterns of qualified names ("head*", "layer4.*.conv2"); a pattern that matches a
            containing module's name excludes all of it.
        keep_weights: False draws new values as `SparseLayer.reset_parameters` does; True keeps each layer's
            largest weights, in their places, and its bias (this sorts a dense copy, one layer at a time).
        generator: of the random topologies and values.
        device: where to build what is on the meta device; what is real stays where it is.

    Raises:
        TypeError: `model` is no nn.Module.
        ValueError: a density outside (0, 1] or too low for one nonzero a layer, an unknown distribution, a
            pattern of `exclude` that matches nothing, a model without a layer to replace, or a model that is
            itself the layer (see `SparseLinear.from_dense`); with `device`, a module that has tensors on the meta
            device and no `reset_parameters`, or `keep_weights` of layers there. The model is then unchanged.
        RuntimeError: with `device`, a `reset_parameters` that left a tensor of its module unfilled.
    """
    check_density(density)
    survey = survey_layers(model, exclude)
    chosen = [row for row, _ in survey if row.reason is None]
    counts = layer_nnz([row.shape for row in chosen], density, distribution)
    nnz = {row.name: count for row, count in zip(chosen, counts, strict=True)}
    return replace_layers(model, survey, nnz, keep_weights=keep_weights, generator=generator, device=device)


def survey_layers(
    model: nn.Module, exclude: str | Iterable[str] = (), *, plain: bool = False
) -> list[tuple[TableRow, str]]:
    """A row for each weight matrix of a model as it is, with its module's path; no reason where `sparsify` replaces it.

    A projection of an attention has the attention's path. With `plain`, all but nn.Linear and nn.Conv2d, whose `weight`
    is the matrix as it is, have a reason. Raises what `sparsify` does for its `model` and `exclude`.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if isinstance(model, (nn.Linear, nn.Conv2d, nn.MultiheadAttention, SparseLayer)):
        raise ValueError(
            f"model is itself the layer ({type(model).__name__}), with no parent to be replaced in: "
            "make the layer with from_dense of SparseLinear, SparseConv2d or SparseMultiheadAttention"
        )
    survey = list(_survey(model, _places(model), (exclude,) if isinstance(exclude, str) else tuple(exclude)))
    if plain:
        survey = [(_plain(row, model.get_submodule(path)), path) for row, path in survey]
    if not any(row.reason is None for row, _ in survey):
        raise ValueError(
            "model has no nn.Linear or nn.Conv2d to replace"
            + "".join(f"\n  {row.name} ({row.kind}): {row.reason}" for row, _ in survey)
        )
    return survey


def _plain(row: TableRow, module: nn.Module) -> TableRow:
    if row.reason or isinstance(module, (nn.Linear, nn.Conv2d)):
        return row
    return replace(row, reason="is no nn.Linear or nn.Conv2d")


def replace_layers(
    model: nn.Module,
    survey: Sequence[tuple[TableRow, str]],
    topologies: Mapping[str, int | Pattern],
    *,
    keep_weights: bool = False,
    generator: torch.Generator | None = None,
    device: torch.device | str | None = None,
) -> SparsityTable:
    """Replaces the surveyed layers without a reason by sparse ones, in place; see `sparsify`.

    `topologies` has each of them by name: a number of nonzeros, or the very pattern. `keep_weights` with patterns
    keeps what is under them.

    Raises ValueError, with the model unchanged, for what `device` does not allow and for an attention of whose
    projections only some are to be replaced.
    """
    places = _places(model)
    replaced = {path: model.get_submodule(path) for row, path in survey if row.reason is None}
    for row, path in survey:
        if row.reason is not None and path in replaced and _part(row, path).endswith("_proj"):
            raise ValueError(f"{row.name} {row.reason}, but other projections of the attention {path} are replaced")
    materials = None
    if device is not None:
        materials = Materials(model, torch.device(device), replaced.values())
        if keep_weights and any(_is_meta(module) for module in replaced.values()):
            raise ValueError("keep_weights is True, and the model is on the meta device, where there are no weights")
    rows = []
    made: dict[str, SparseLayer] = {}  # the parts of the module that is being replaced
    for row, path in survey:
        if row.reason is None:
            topology = topologies[row.name]
            pattern = topology if isinstance(topology, Pattern) else None
            row = replace(row, nnz=topology if isinstance(topology, int) else topology.nnz)
            dense = replaced[path]
            parts = _linear_parts(dense, _is_packed(dense, places))
            part = _part(row, path)
            made[part] = _sparse_twin(parts[part], row, keep_weights, generator, pattern, device)
            if len(made) == len(parts):
                sparse = _assembled(dense, made)
                for parent, key in places[id(dense)]:
                    setattr(parent, key, sparse)
                made = {}
                del replaced[path]
            del dense, parts  # their memory goes before the next layer is made
        rows.append(row)
    if materials is not None:
        materials.fill(model, generator)
    _leave_fused_paths(model)
    return SparsityTable(tuple(rows))


def _part(row: TableRow, path: str) -> str:
    """Which part of the module at `path` a row is of: an attention's projection, or "" for all of it."""
    return row.name[len(path) :].lstrip(".")


def _survey(model: nn.Module, places: _Places, patterns: Sequence[str]) -> Iterator[tuple[TableRow, str]]:
    """A row for every weight matrix, with the path of its module; the reason is None where it can be replaced."""
    names: dict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules(remove_duplicate=False):
        names[id(module)].append(name)
    owners: dict[int, list[str]] = defaultdict(list)
    for name, parameter in _parameters(model):
        owners[id(parameter)].append(name)
    unmatched = set(patterns)
    inside: set[int] = set()  # modules that go with the one that holds them
    for path, module in model.named_modules():
        mine = names[id(module)]
        kind = type(module).__name__
        reason = None
        if id(module) in inside:
            continue
        if isinstance(module, SparseLayer):
            yield TableRow(tuple(mine), kind, tuple(module.dense_shape()), module.nnz, "is sparse already"), path
            continue
        if _is_replaceable(module):
            reason = _why_dense(module, owners, places)
            parts = {} if reason else _linear_parts(module, _is_packed(module, places))
            named = [f"{name}.{part}" for name in mine for part in parts if part]
            hits = {pattern for pattern in patterns if any(_matches(name, pattern) for name in (*mine, *named))}
            unmatched -= hits
            reason = f"excluded by {min(hits)!r}" if hits else reason
            if reason is None:
                for part, linear in parts.items():
                    shape = _dense_shape(linear)
                    part_names = tuple(f"{name}.{part}".rstrip(".") for name in mine)
                    yield TableRow(part_names, kind, shape, math.prod(shape)), path
                inside.update(id(child) for child in module.children())
                if not isinstance(module, nn.MultiheadAttention):
                    continue
            elif isinstance(module, (nn.Linear, nn.Conv2d)):
                shape = _dense_shape(module)
                yield TableRow(tuple(mine), kind, shape, math.prod(shape), reason), path
                continue
        if not isinstance(module, parametrize.ParametrizationList):
            for key, parameter in module._parameters.items():
                if parameter is None or is_lazy(parameter) or parameter.dim() < 2:
                    continue
                if _is_replaceable(module) and reason is None and key.endswith("proj_weight"):
                    continue  # in the rows above
                weights = tuple(f"{name}.{key}".lstrip(".") for name in mine)
                why = reason or "is no nn.Linear or nn.Conv2d"
                yield TableRow(weights, kind, tuple(parameter.shape), parameter.numel(), why), path
    if unmatched:
        raise ValueError(
            f"exclude pattern {min(unmatched)!r} matches no nn.Linear, nn.Conv2d or nn.MultiheadAttention; "
            "the model has " + ", ".join(n for n, m in model.named_modules() if _is_replaceable(m))
        )


def _is_replaceable(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, nn.Conv2d, nn.MultiheadAttention)) or is_conv1d(module)


def _is_packed(module: nn.Module, places: _Places) -> bool:
    """Whether an attention's queries, keys and values are to be one product: not where the queries are others'."""
    crossing = any(
        isinstance(parent, nn.TransformerDecoderLayer) and key == "multihead_attn" for parent, key in places[id(module)]
    )
    return isinstance(module, nn.MultiheadAttention) and module._qkv_same_embed_dim and not crossing


def _linear_parts(module: nn.Module, packed: bool) -> dict[str, nn.Linear | nn.Conv2d]:
    """The linear layers or the convolution that a module is: {"": itself}, or an attention's projections by name."""
    if isinstance(module, nn.MultiheadAttention):
        return {**dense_projections(module, packed)}
    if is_conv1d(module):
        weight, bias = module._parameters["weight"], module._parameters["bias"]
        assert weight is not None
        return {"": linear_around(weight.t(), bias).train(module.training)}
    assert isinstance(module, (nn.Linear, nn.Conv2d))
    return {"": module}


def _parameters(model: nn.Module) -> Iterator[tuple[str, nn.Parameter]]:
    """Every registration of every parameter, once for each module that holds it."""
    for path, module in model.named_modules():
        for key, parameter in module._parameters.items():
            if parameter is not None:
                yield f"{path}.{key}".lstrip("."), parameter


def _matches(name: str, pattern: str) -> bool:
    parts = name.split(".")
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _why_dense(module: nn.Module, owners: dict[int, list[str]], places: _Places) -> str | None:
    """Why this layer cannot be replaced, or None."""
    own = dict(module._parameters)
    if isinstance(module, nn.MultiheadAttention):
        own |= {f"out_proj.{key}": parameter for key, parameter in module.out_proj._parameters.items()}
        weights = [own.get("out_proj.weight")]
        if module._qkv_same_embed_dim:
            weights += [own.get("in_proj_weight")]
        else:
            weights += [own.get(f"{name}_proj_weight") for name in "qkv"]
    else:
        weights = [own.get("weight")]
    children = tuple(module.children())
    if any(weight is None or parametrize.is_parametrized(m) for weight in weights for m in (module, *children)):
        return "has a computed weight (parametrization, weight norm or pruning)"
    if any(is_lazy(weight) for weight in weights if weight is not None):
        return "is lazy: its shape is known after the first batch"
    if type(module) not in (nn.Linear, nn.Conv2d, nn.MultiheadAttention) and not is_conv1d(module):
        return "is a subclass, whose owner may read its weight as a matrix"
    for weight in weights:
        assert weight is not None
        if weight.dtype not in _DTYPES:
            return f"has dtype {weight.dtype}, for which there are no kernels"
        if weight.numel() == 0:
            return "has no weights"
    for key, parameter in own.items():
        if parameter is not None and len(owners[id(parameter)]) > 1:
            return f"shares its {key}: {' = '.join(owners[id(parameter)])}"
    if any(len(places[id(child)]) > 1 for child in children):
        return "shares its out_proj with another module"
    if any(getattr(m, hooks, None) for m in (module, *children) for hooks in _STATE_HOOKS):
        return "has state_dict hooks"
    return None


def _dense_shape(module: nn.Linear | nn.Conv2d) -> tuple[int, ...]:
    if isinstance(module, nn.Linear):
        return (module.out_features, module.in_features)
    return (module.out_channels, module.in_channels // module.groups, *module.kernel_size)


def _places(model: nn.Module) -> _Places:
    places: _Places = defaultdict(list)
    for parent in model.modules():
        for key, child in parent._modules.items():
            places[id(child)].append((parent, key))
    return places


def _is_meta(module: nn.Module) -> bool:
    return any(tensor.is_meta for tensor in (*module.parameters(), *module.buffers()))


def _sparse_twin(
    dense: nn.Linear | nn.Conv2d,
    row: TableRow,
    keep_weights: bool,
    generator: torch.Generator | None,
    pattern: Pattern | None,
    build_on: torch.device | str | None,
) -> SparseLayer:
    """The sparse layer that takes the dense one's place; of one on the meta device, made on `build_on` if given."""
    device, dtype = dense.weight.device, dense.weight.dtype
    moves = device.type == "meta" and build_on is not None
    sparse: SparseLayer
    if keep_weights and pattern is None and device.type != "meta":
        cls = SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d
        sparse = cls.from_dense(dense, density=row.density)  # type: ignore[arg-type]
    else:
        shape = (row.shape[0], math.prod(row.shape[1:]))
        if pattern is None:
            keep_weights = False
            if device.type == "meta" and not moves:
                pattern = Pattern.empty(shape, row.nnz, device="meta")
            else:
                pattern = Pattern.random(shape, row.nnz, generator=generator)
        # Drawn on the CPU, whose generator is given, and moved.
        made_on = torch.device("cpu") if moves else device
        common: dict[str, Any] = {"device": made_on, "dtype": dtype, "pattern": pattern, "generator": generator}
        if isinstance(dense, nn.Linear):
            sparse = SparseLinear(dense.in_features, dense.out_features, dense.bias is not None, **common)
        else:
            sparse = SparseConv2d(**conv2d_arguments(dense), **common)
        if keep_weights:
            sparse._take_dense(dense)
        if moves:
            sparse.to(build_on)
    sparse.training = dense.training
    sparse.weight.requires_grad_(dense.weight.requires_grad)
    if sparse.bias is not None and dense.bias is not None:
        sparse.bias.requires_grad_(dense.bias.requires_grad)
    return sparse


def _assembled(dense: nn.Module, parts: dict[str, SparseLayer]) -> nn.Module:
    """What takes the dense module's place, made of its sparse parts, with its hooks."""
    sparse: nn.Module
    if isinstance(dense, nn.MultiheadAttention):
        projections = {name: layer for name, layer in parts.items() if isinstance(layer, SparseLinear)}
        sparse = SparseMultiheadAttention.from_projections(dense, projections)
    else:
        (sparse,) = parts.values()
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
