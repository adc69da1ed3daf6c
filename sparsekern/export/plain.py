"""Copies of a network whose sparse layers are torch's own again."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import TypeVar

import torch
from torch import Tensor, nn

from sparsekern.nn import SparseConv2d, SparseLayer, SparseLinear, SparseMultiheadAttention

M = TypeVar("M", bound=nn.Module)
Weigh = Callable[[SparseLayer], Tensor]


def to_dense(model: M) -> M:
    """A copy of `model` with an nn.Linear, nn.Conv2d and nn.MultiheadAttention for each sparse one.

    Its state_dict has torch's names and shapes, and loads into the dense network that was made sparse. All of its
    weights are DENSE: it takes a dense network's memory. What else is in the model is copied as it is, norms and GELU
    of `sparsekern.nn` too; hooks on the replaced layers are not.

    Raises:
        TypeError: `model` is no nn.Module.
    """
    return _replaced(model, _dense_weight)


def to_csr(model: M) -> M:
    """A copy of `model` with an nn.Linear for each SparseLinear, its weight a torch.sparse_csr Parameter.

    torch has no convolution and no attention with a sparse weight: those get DENSE ones, as `to_dense` gives them. The
    copy is for inference: no gradient is asked of its CSR weights.

    Raises:
        TypeError: `model` is no nn.Module.
    """
    return _replaced(model, SparseLayer.to_sparse_csr)


def _dense_weight(layer: SparseLayer) -> Tensor:
    return layer.to_dense()


@torch.no_grad()
def _replaced(model: M, weigh_linear: Weigh) -> M:
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    plain: dict[int, nn.Module] = {}
    # An attention's projections come after it, and are part of it already.
    parts: set[int] = set()
    for module in model.modules():
        if id(module) in parts:
            continue
        if isinstance(module, SparseMultiheadAttention):
            parts.update(id(part) for part in module.modules())
            plain[id(module)] = _attention(module)
        elif isinstance(module, SparseLinear):
            plain[id(module)] = _linear(module, weigh_linear)
        elif isinstance(module, SparseConv2d):
            plain[id(module)] = _conv2d(module)
    # As deepcopy's memo: what is found in it is taken instead of a copy, at all of its places.
    return copy.deepcopy(model, plain)


def _linear(layer: SparseLinear, weigh: Weigh) -> nn.Linear:
    linear = nn.Linear(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    return _filled(linear, weigh(layer), layer)


def _conv2d(layer: SparseConv2d) -> nn.Conv2d:
    conv = nn.Conv2d(
        layer.in_channels,
        layer.out_channels,
        layer.kernel_size,
        layer.stride,
        layer.padding,
        layer.dilation,
        layer.groups,
        layer.bias is not None,
        layer.padding_mode,  # type: ignore[arg-type]
        device="meta",
    )
    return _filled(conv, layer.to_dense(), layer)


L = TypeVar("L", nn.Linear, nn.Conv2d)


def _filled(dense: L, weight: Tensor, layer: SparseLayer) -> L:
    dense.weight = _parameter(weight, layer.weight)
    bias = None if layer.bias is None else _parameter(layer.bias.detach().clone(), layer.bias)
    dense.register_parameter("bias", bias)
    return dense.train(layer.training)


def _parameter(value: Tensor, like: nn.Parameter) -> nn.Parameter:
    return nn.Parameter(value.detach(), requires_grad=like.requires_grad and value.layout == torch.strided)


def _attention(module: SparseMultiheadAttention) -> nn.MultiheadAttention:
    bias = module.in_proj_bias
    attention = nn.MultiheadAttention(
        module.embed_dim,
        module.num_heads,
        module.dropout,
        bias is not None,
        module.bias_k is not None,
        module.add_zero_attn,
        module.kdim,
        module.vdim,
        module.batch_first,
        device="meta",
    )
    if module.in_proj is not None:
        attention.in_proj_weight = _parameter(module.in_proj.to_dense(), module.in_proj.weight)
    else:
        layers = {"q": module.q_proj, "k": module.k_proj, "v": module.v_proj}
        if module._qkv_same_embed_dim:
            whole = torch.cat([layer.to_dense() for layer in layers.values()])
            attention.in_proj_weight = _parameter(whole, module.q_proj.weight)
        else:
            for name, layer in layers.items():
                setattr(attention, f"{name}_proj_weight", _parameter(layer.to_dense(), layer.weight))
    if bias is not None:
        attention.in_proj_bias = nn.Parameter(bias.detach().clone(), bias.requires_grad)
    for name in ("bias_k", "bias_v"):
        value = getattr(module, name)
        setattr(attention, name, None if value is None else _parameter(value.detach().clone(), value))
    _filled(attention.out_proj, module.out_proj.to_dense(), module.out_proj)
    return attention.train(module.training)
