"""A dense network's checkpoint, loaded into the sparse network at its edges."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn

from sparsekern.masks.masks import Masks
from sparsekern.nn import SparseLayer, SparseLinear, SparseMultiheadAttention

# Under which training scripts save a state_dict among other things.
_WRAPPERS = ("state_dict", "model")


def load_dense(
    model: nn.Module,
    checkpoint: str | os.PathLike[str] | Mapping[str, Tensor],
    masks: Masks | None = None,
    *,
    transposed: str | Iterable[str] = (),
    device: torch.device | str | None = None,
) -> None:
    """Gives a sparse `model` a dense one's values: at the edges of its sparse layers, and all else whole.

    Args:
        model: with `masks` a dense model, which becomes sparse (it may be on the meta device), or a sparse one, whose
            layers take the masks' edges over; without, a sparse one that keeps its edges.
        checkpoint: the dense model's state_dict, or a file of it: safetensors, or what torch.save wrote (also under
            "state_dict" or "model"). Of a file one tensor after the other is read, or mapped.
        masks: the edges.
        transposed: name patterns of linear layers whose dense weight is (in, out), such as GPT-2's.
        device: where to build what is on the meta device.

    Raises:
        FileNotFoundError: no such file.
        ValueError: a file that cannot be read; a tensor that is missing, has another shape or is unknown to the model,
            by name; masks that do not fit; a pattern of `transposed` that matches nothing. No value is then changed,
            but a dense model may have become sparse.
    """
    with _open(checkpoint) as source:
        if masks is not None:
            _take_masks(model, masks, device)
        patterns = (transposed,) if isinstance(transposed, str) else tuple(transposed)
        wanted = {want.name: want for want in _wanted(model, patterns)}
        _check(wanted, source)
        with torch.no_grad():
            for name, want in wanted.items():
                want.take(source.tensor(name))


@dataclass(frozen=True)
class _Want:
    """A tensor of the dense state_dict, and what to do with it."""

    name: str
    shape: tuple[int, ...]
    take: Callable[[Tensor], object]


class _Source:
    """A state_dict's tensors by name; shapes without reading."""

    def __init__(self, tensors: Mapping[str, Tensor]) -> None:
        self._tensors = tensors

    def __enter__(self) -> _Source:
        return self

    def __exit__(self, *_: object) -> None:
        pass

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(tensor.shape) for name, tensor in self._tensors.items() if isinstance(tensor, Tensor)}

    def tensor(self, name: str) -> Tensor:
        return self._tensors[name]


class _SafetensorsSource(_Source):
    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> _Source:
        try:
            self._file = safe_open(self._path, framework="pt")
            self._file.__enter__()
        except SafetensorError as error:
            raise ValueError(f"checkpoint {self._path} is truncated or no safetensors file: {error}") from error
        return self

    def __exit__(self, *arguments: Any) -> None:
        self._file.__exit__(*arguments)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        return {name: tuple(self._file.get_slice(name).get_shape()) for name in self._file.keys()}  # noqa: SIM118

    def tensor(self, name: str) -> Tensor:
        return self._file.get_tensor(name)


def _open(checkpoint: str | os.PathLike[str] | Mapping[str, Tensor]) -> _Source:
    if isinstance(checkpoint, Mapping):
        return _Source(checkpoint)
    path = Path(checkpoint)
    if not path.is_file():
        raise FileNotFoundError(f"no checkpoint at {path}")
    if path.suffix == ".safetensors":
        return _SafetensorsSource(path)
    try:
        state = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except Exception as error:  # an old or damaged file raises whatever pickle and zipfile do
        raise ValueError(f"checkpoint {path} cannot be read: {error}") from error
    for wrapper in _WRAPPERS:
        if isinstance(state, Mapping) and isinstance(state.get(wrapper), Mapping):
            state = state[wrapper]
    if not isinstance(state, Mapping):
        raise ValueError(f"checkpoint {path} holds a {type(state).__name__}; expected a state_dict")
    return _Source(state)


def _take_masks(model: nn.Module, masks: Masks, device: torch.device | str | None) -> None:
    modules = dict(model.named_modules())
    sparse = [name for name in masks if isinstance(modules.get(name), SparseLayer)]
    if not sparse:
        masks.apply(model, keep_weights=False, device=device)
        return
    for name, pattern in masks.items():
        layer = modules.get(name)
        if not isinstance(layer, SparseLayer):
            raise ValueError(f"the masks have a layer {name!r}, which is not sparse, while {sparse[0]!r} is")
        if layer.matrix_shape != pattern.shape:
            raise ValueError(f"the masks' layer {name!r} is {pattern.shape}, the model's {layer.matrix_shape}")
    for name in sparse:
        layer = modules[name]
        assert isinstance(layer, SparseLayer)
        layer.set_pattern(masks[name])


def _wanted(model: nn.Module, transposed: tuple[str, ...]) -> Iterator[_Want]:
    parts = {part for each in model.modules() if isinstance(each, SparseMultiheadAttention) for part in each.modules()}
    matched = set()
    for path, module in model.named_modules(remove_duplicate=False):
        prefix = f"{path}." if path else ""
        if isinstance(module, SparseMultiheadAttention):
            yield from _attention(prefix, module)
        elif module in parts:
            continue
        elif isinstance(module, SparseLayer):
            hits = {pattern for pattern in transposed if fnmatchcase(path, pattern)}
            matched |= hits
            yield from _layer(prefix, module, bool(hits))
        else:
            own = [*module.named_parameters(recurse=False), *module.named_buffers(recurse=False)]
            kept = module._non_persistent_buffers_set
            yield from (_whole(prefix + name, tensor) for name, tensor in own if name not in kept)
    if missed := set(transposed) - matched:
        raise ValueError(f"transposed has {min(missed)!r}, which matches no sparse layer")


def _layer(prefix: str, layer: SparseLayer, transposed: bool) -> Iterator[_Want]:
    shape = layer.dense_shape()
    if transposed:
        if not isinstance(layer, SparseLinear):
            raise ValueError(f"transposed names {prefix[:-1]!r}, a {type(layer).__name__}; expected a SparseLinear")
        yield _Want(f"{prefix}weight", shape[::-1], lambda dense: _take_edges(layer, dense.t()))
    else:
        yield _Want(f"{prefix}weight", shape, lambda dense: _take_edges(layer, dense))
    if layer.bias is not None:
        yield _whole(f"{prefix}bias", layer.bias)


def _attention(prefix: str, module: SparseMultiheadAttention) -> Iterator[_Want]:
    """As torch.nn.MultiheadAttention names its parameters."""
    if module.in_proj is not None:
        projections = [module.in_proj]
    else:
        projections = [module.q_proj, module.k_proj, module.v_proj]
    starts = [0, module.embed_dim, 2 * module.embed_dim]
    rows = 3 * module.embed_dim

    def take_weights(dense: Tensor) -> None:
        for start, layer in zip(starts, projections, strict=False):
            _take_edges(layer, dense[start : start + layer.matrix_shape[0]])

    def take_biases(dense: Tensor) -> None:
        for start, layer in zip(starts, projections, strict=False):
            assert layer.bias is not None
            layer.bias.copy_(dense[start : start + layer.matrix_shape[0]])

    if module._qkv_same_embed_dim:
        yield _Want(f"{prefix}in_proj_weight", (rows, module.embed_dim), take_weights)
    else:
        for letter, layer in zip("qkv", projections, strict=True):
            name = f"{prefix}{letter}_proj_weight"
            yield _Want(name, layer.matrix_shape, lambda dense, layer=layer: _take_edges(layer, dense))  # type: ignore[misc]
    if projections[0].bias is not None:
        yield _Want(f"{prefix}in_proj_bias", (rows,), take_biases)
    yield from _layer(f"{prefix}out_proj.", module.out_proj, False)
    for name in ("bias_k", "bias_v"):
        if (value := getattr(module, name)) is not None:
            yield _whole(prefix + name, value)


def _whole(name: str, tensor: Tensor) -> _Want:
    return _Want(name, tuple(tensor.shape), tensor.copy_)


def _take_edges(layer: SparseLayer, dense: Tensor) -> None:
    rows, columns = (index.to(dense.device) for index in layer.pattern.edges())
    layer.weight.copy_(dense.reshape(layer.matrix_shape)[rows, columns])


def _check(wanted: Mapping[str, _Want], source: _Source) -> None:
    shapes = source.shapes()
    unknown = sorted(shapes.keys() - wanted.keys())
    for name, want in wanted.items():
        if name not in shapes:
            # Of a model that was wrapped ("module.", "_orig_mod.") all names are longer.
            other = f", and has {unknown[0]!r}, which the model does not have" if unknown else ""
            raise ValueError(f"the checkpoint has no {name!r}, which the model needs in shape {want.shape}{other}")
        if shapes[name] != want.shape:
            hint = "" if shapes[name] != want.shape[::-1] else " (transposed=... takes it so)"
            raise ValueError(f"the checkpoint's {name!r} has shape {shapes[name]}; expected {want.shape}{hint}")
    if unknown:
        raise ValueError(f"the checkpoint has {unknown[0]!r}, which the model does not have")
