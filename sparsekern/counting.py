"""Parameters, FLOPs and activations of a model's layers, counted in a forward pass that computes nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils._pytree import tree_map_only
from torch.utils.flop_counter import FlopCounterMode

from sparsekern import tables
from sparsekern.nn import SparseConv2d, SparseLayer
from sparsekern.nn.dense import is_conv1d

_aten = torch.ops.aten
# Products of activations with activations, under torch's names and ours.
_ACTIVATION_PRODUCTS = (
    _aten.bmm,
    _aten.baddbmm,
    _aten._scaled_dot_product_flash_attention_for_cpu,
    _aten._scaled_dot_product_flash_attention,
    _aten._scaled_dot_product_efficient_attention,
    _aten._scaled_dot_product_cudnn_attention,
    torch.ops.sparsekern.attention,
)
_CONVOLUTIONS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
PRODUCTS = "products of activations"


@dataclass(frozen=True)
class LayerCount:
    """One module with parameters of its own, or, without a name, the products of activations."""

    name: str
    kind: str
    shape: tuple[int, ...]  # of the dense weight; () where there is no product with one
    weights: int = 0  # that exist
    dense_weights: int = 0
    other_parameters: int = 0  # biases, norms, embeddings
    flops: int = 0  # of one forward pass
    dense_flops: int = 0
    activations: int = 0  # elements of the outputs

    @property
    def parameters(self) -> int:
        return self.weights + self.other_parameters

    @property
    def dense_parameters(self) -> int:
        return self.dense_weights + self.other_parameters


@dataclass(frozen=True)
class ModelCount:
    """What `count_model` counted. `print` it, or see `markdown`."""

    rows: tuple[LayerCount, ...]

    def __getitem__(self, name: str) -> LayerCount:
        """The layer of this name. Raises KeyError."""
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    @property
    def parameters(self) -> int:
        return sum(row.parameters for row in self.rows)

    @property
    def dense_parameters(self) -> int:
        return sum(row.dense_parameters for row in self.rows)

    @property
    def weights(self) -> int:
        return sum(row.weights for row in self.rows)

    @property
    def dense_weights(self) -> int:
        return sum(row.dense_weights for row in self.rows)

    @property
    def flops(self) -> int:
        return sum(row.flops for row in self.rows)

    @property
    def dense_flops(self) -> int:
        return sum(row.dense_flops for row in self.rows)

    @property
    def activations(self) -> int:
        return sum(row.activations for row in self.rows)

    def markdown(self) -> str:
        """The table as GitHub-flavoured Markdown."""
        return tables.markdown(*self._cells())

    def __str__(self) -> str:
        return tables.aligned(*self._cells())

    def _cells(self) -> tuple[list[tuple[str, ...]], list[bool]]:
        header = ("layer", "kind", "shape", "density", "weights", "parameters", "MFLOPs", "of dense", "activations")
        body = [
            (
                row.name,
                row.kind,
                " x ".join(map(str, row.shape)),
                *_numbers(row.weights, row.dense_weights, row.parameters, row.flops, row.dense_flops, row.activations),
            )
            for row in self.rows
        ]
        sums = (self.weights, self.dense_weights, self.parameters, self.flops, self.dense_flops, self.activations)
        dense = (
            self.dense_weights,
            self.dense_weights,
            self.dense_parameters,
            self.dense_flops,
            self.dense_flops,
            self.activations,
        )
        total = [("total", "", "", *_numbers(*sums)), ("total if dense", "", "", *_numbers(*dense))]
        return [header, *body, *total], [False] * 3 + [True] * 6


def _numbers(
    weights: int, dense_weights: int, parameters: int, flops: int, dense_flops: int, activations: int
) -> tuple[str, ...]:
    return (
        f"{weights / dense_weights:.4f}" if dense_weights else "",
        f"{weights:,}" if dense_weights else "",
        f"{parameters:,}",
        f"{flops / 1e6:,.2f}" if dense_flops else "",
        f"{flops / dense_flops:.3f}" if dense_flops else "",
        f"{activations:,}",
    )


def count_model(model: nn.Module, inputs: Sequence[int] | Tensor | tuple[Any, ...] | Mapping[str, Any]) -> ModelCount:
    """Counts each layer's parameters, FLOPs and activations in one forward pass in eval mode.

    The pass runs on the meta device, which has shapes and no memory; the model itself stays as it is. Only where a
    forward needs the values that it computes is the real model run instead.

    FLOPs are two, a multiplication and an addition, for each weight that exists and each place where it is used:
    2 * nnz * tokens of a linear layer, 2 * nnz * output pixels of a convolution. Biases, norms and activation functions
    are not counted. What has no weights, such as attention's two products, has a row for all of them together, under
    `PRODUCTS`, dense in both columns. Where a module multiplies by a parameter of its own (`x @ self.p`), that is not
    seen.

    The fractions of dense that are published for RigL's ResNet-50 (arXiv 1911.11134, and the tables of its repository)
    agree to 0.01. They count one operation more for each output (a bias and a ReLU behind a sum of n products and
    n - 1 additions), and the first convolution on the padded image, at 115x115 pixels: with both, and the layer
    densities of `sparsekern.densities`, they come out to the digit. Their "uniform" keeps the first convolution dense
    (`exclude="stem"`), as the repository's 0.13x at 90% does and the paper's 0.10x does not.

    Args:
        model: on any device.
        inputs: the shape of one input without the batch, (channels, height, width), counted for a batch of one; or the
            arguments of forward themselves: a tensor, a tuple of arguments or a mapping of keywords.

    Returns:
        A row for each module with parameters of its own, in the model's order; a module of several places once.

    Raises:
        TypeError: `model` is no nn.Module.
    """
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    args, kwargs = _arguments(model, inputs)
    held = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    try:
        on_meta = {name: torch.empty_like(tensor, device="meta") for name, tensor in held.items()}
        moved = tree_map_only(Tensor, lambda tensor: tensor.to("meta"), (args, kwargs))
        return _count(model, lambda: functional_call(model, on_meta, *moved))
    except (NotImplementedError, RuntimeError):
        if any(tensor.is_meta for tensor in held.values()):
            raise
        return _count(model, lambda: model(*args, **kwargs))


def _arguments(model: nn.Module, inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    if isinstance(inputs, Tensor):
        return (inputs,), {}
    if all(isinstance(size, int) for size in inputs):
        like = next(model.parameters(), torch.empty(0))
        return (torch.zeros(1, *inputs, dtype=like.dtype, device=like.device),), {}
    return tuple(inputs), {}


@torch.no_grad()
def _count(model: nn.Module, forward: Callable[[], object]) -> ModelCount:
    rows = dict(_sizes(model))
    products = 0
    started: dict[nn.Module, int] = {}
    counter = FlopCounterMode(display=False, custom_mapping={torch.ops.sparsekern.attention: _attention_flops})

    def of_activations() -> int:
        counts = counter.get_flop_counts().get("Global", {})
        return sum(counts.get(product, 0) for product in _ACTIVATION_PRODUCTS)

    def before(module: nn.Module, args: Any) -> None:
        started[module] = of_activations()

    def after(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        nonlocal products
        row = rows[module]
        flops = dense_flops = 0
        if row.shape:  # torch may compute a layer as a product of batches
            products -= of_activations() - started[module]
        if isinstance(module, nn.MultiheadAttention):
            flops = dense_flops = _projection_flops(module, *_tokens(args, kwargs))
            products += _product_flops(module, *_tokens(args, kwargs)[:2])
        elif row.shape:
            places = _places(module, args, output)
            flops, dense_flops = 2 * row.weights * places, 2 * row.dense_weights * places
        rows[module] = replace(
            row,
            flops=row.flops + flops,
            dense_flops=row.dense_flops + dense_flops,
            activations=row.activations + _outputs(output),
        )

    with ExitStack() as stack:
        stack.enter_context(_evaluating(model))
        for module in rows:
            stack.callback(module.register_forward_pre_hook(before).remove)
            stack.callback(module.register_forward_hook(after, with_kwargs=True).remove)
        stack.enter_context(counter)
        forward()
    products += of_activations()
    counted = list(rows.values())
    if products:
        counted.append(LayerCount(PRODUCTS, "", (), flops=products, dense_flops=products))
    return ModelCount(tuple(counted))


def _sizes(model: nn.Module) -> Iterator[tuple[nn.Module, LayerCount]]:
    """A row with the sizes alone for each module with parameters of its own."""
    seen: set[int] = set()
    inside: set[nn.Module] = set()
    for name, module in model.named_modules():
        own = [parameter for parameter in module._parameters.values() if parameter is not None]
        if isinstance(module, nn.MultiheadAttention):  # it reads its projection's weight and never calls it
            own += module.out_proj.parameters()
            inside.add(module.out_proj)
        if not own or module in inside:
            continue
        parameters = sum(parameter.numel() for parameter in own if id(parameter) not in seen)
        kind = type(module).__name__
        if isinstance(module, SparseLayer):
            shape: tuple[int, ...] = tuple(module.dense_shape())
            weights, dense = module.nnz, math.prod(shape)
        else:
            matrices = _weight_matrices(module)
            shape = tuple(matrices[0].shape) if matrices else ()
            weights = dense = sum(matrix.numel() for matrix in matrices if id(matrix) not in seen)
        seen.update(map(id, own))
        other = parameters - weights
        yield module, LayerCount(name, kind, shape, weights=weights, dense_weights=dense, other_parameters=other)


def _weight_matrices(module: nn.Module) -> list[Tensor]:
    """The weights with which a dense module multiplies its input."""
    if isinstance(module, nn.MultiheadAttention):
        names = ("in_proj_weight", "q_proj_weight", "k_proj_weight", "v_proj_weight")
        return [p for name in names if (p := getattr(module, name)) is not None] + [module.out_proj.weight]
    weight = module._parameters.get("weight")
    is_layer = isinstance(module, (nn.Linear, *_CONVOLUTIONS, *_TRANSPOSED)) or is_conv1d(module)
    return [weight] if is_layer and weight is not None else []


def _places(module: nn.Module, args: Any, output: Any) -> int:
    """How often a layer uses each of its weights."""
    if isinstance(module, _TRANSPOSED):
        return args[0].numel() // module.in_channels
    if isinstance(module, (SparseConv2d, *_CONVOLUTIONS)):
        return output.numel() // module.out_channels
    return output.numel() // output.shape[-1]


def _tokens(args: Any, kwargs: Any) -> tuple[Tensor, Tensor, Tensor]:
    """An attention's (query, key, value)."""
    query, key, value = (args[at] if at < len(args) else kwargs[name] for at, name in enumerate(_QKV))
    return query, key, value


_QKV = ("query", "key", "value")


def _projection_flops(module: nn.MultiheadAttention, query: Tensor, key: Tensor, value: Tensor) -> int:
    """Of the queries', keys', values' and outputs' projections in a dense attention."""
    return 2 * module.embed_dim * (2 * query.numel() + key.numel() + value.numel())


def _product_flops(module: nn.MultiheadAttention, query: Tensor, key: Tensor) -> int:
    """Queries times keys, and weights times values."""
    at = 1 if module.batch_first and key.dim() == 3 else 0
    keys = key.shape[at] + (module.bias_k is not None) + module.add_zero_attn
    return 2 * 2 * query.numel() * keys


def _outputs(output: Any) -> int:
    if isinstance(output, Tensor):
        return output.numel()
    if isinstance(output, (tuple, list)):
        return sum(map(_outputs, output))
    return 0


def _attention_flops(qkv: Sequence[int], heads: int, *_: Any, **__: Any) -> int:
    """Queries times keys, and weights times values."""
    batch, tokens, features = qkv
    return 2 * 2 * batch * tokens * tokens * (features // 3)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """In eval mode, and without torch's fused attention, which reads weights past their modules."""
    training = {module: module.training for module in model.modules()}
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    model.eval()
    try:
        yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)
        for module, mode in training.items():
            module.training = mode
