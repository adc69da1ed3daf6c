"""The same layer in several libraries: forward, backward, and its weight gradient at the edges."""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from sparsekern.nn import SparseConv2d, SparseLinear


@dataclass
class Candidate:
    """One library's layer.

    `forward` runs under autograd; `parameters` get gradients; `edge_grad()` is the weight's gradient after a
    backward, at the mask's edges in row-major order. `layout` is the memory format that inputs come in.
    """

    name: str
    forward: Callable[[Tensor], Tensor]
    parameters: list[Tensor]
    edge_grad: Callable[[], Tensor]
    layout: torch.memory_format = torch.contiguous_format


def sparsekern_layer(dense: nn.Linear | nn.Conv2d, mask: Tensor) -> Candidate:
    cls = SparseLinear if isinstance(dense, nn.Linear) else SparseConv2d
    layer = cls.from_dense(dense, mask=mask)
    rows, columns = (index.long() for index in layer.pattern.edges())
    row_major = torch.argsort(rows * mask[0].numel() + columns)
    return Candidate("sparsekern", layer, list(layer.parameters()), lambda: layer.weight.grad[row_major])


def dense_layers(dense: nn.Linear | nn.Conv2d, mask: Tensor) -> list[Candidate]:
    """Dense torch: its default, and what else may be faster; the best of them is the one to beat."""
    weight = nn.Parameter((dense.weight * mask).detach())
    bias = nn.Parameter(dense.bias.detach().clone())

    def edge_grad() -> Tensor:
        return weight.grad[mask]

    if isinstance(dense, nn.Linear):
        return [
            Candidate("F.linear", lambda x: F.linear(x, weight, bias), [weight, bias], edge_grad),
            Candidate("oneDNN linear", lambda x: _OneDnnLinear.apply(x, weight, bias), [weight, bias], edge_grad),
        ]
    options = (dense.stride, dense.padding, dense.dilation, dense.groups)
    last = nn.Parameter(weight.detach().to(memory_format=torch.channels_last))
    return [
        Candidate("F.conv2d NCHW", lambda x: F.conv2d(x, weight, bias, *options), [weight, bias], edge_grad),
        Candidate(
            "F.conv2d NHWC",
            lambda x: F.conv2d(x, last, bias, *options),
            [last, bias],
            lambda: last.grad[mask],
            torch.channels_last,
        ),
    ]


class _OneDnnLinear(torch.autograd.Function):
    """A linear layer whose three products all run in oneDNN, which on some processors beats torch's BLAS."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        product = torch.ops.mkldnn._linear_pointwise
        dx = product(grad, weight.t(), None, "none", [], "")
        dw = product(grad.t(), x.t(), None, "none", [], "")
        return dx, dw, grad.sum(0)


def torch_csr(dense: nn.Linear, mask: Tensor) -> Candidate:
    """torch.sparse at its best: CSR products with a kept transpose, and sampled_addmm for the weight."""
    rows, columns = mask.nonzero(as_tuple=True)
    permutation = torch.argsort(columns * mask.shape[0] + rows)
    crow, col = _compressed(rows, mask.shape[0]), columns.int()
    crow_t, col_t = _compressed(columns, mask.shape[1]), rows[permutation].int()
    values = nn.Parameter(dense.weight.detach()[mask])
    bias = nn.Parameter(dense.bias.detach().clone())
    zeros = torch.sparse_csr_tensor(crow, col, torch.zeros_like(values), mask.shape)

    class Product(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, x: Tensor, values: Tensor) -> Tensor:
            ctx.save_for_backward(x, values)
            return (torch.sparse_csr_tensor(crow, col, values, mask.shape) @ x.t()).t()

        @staticmethod
        def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor]:
            x, values = ctx.saved_tensors
            transposed = torch.sparse_csr_tensor(crow_t, col_t, values[permutation], mask.shape[::-1])
            dw = torch.sparse.sampled_addmm(zeros, grad.t(), x, beta=0.0)
            return (transposed @ grad.t()).t(), dw.values()

    return Candidate("torch CSR", lambda x: Product.apply(x, values) + bias, [values, bias], lambda: values.grad)


def _compressed(index: Tensor, size: int) -> Tensor:
    return F.pad(index.bincount(minlength=size).cumsum(0), (1, 0)).int()


def sparseprop_layers(dense: nn.Linear | nn.Conv2d, mask: Tensor) -> list[Candidate]:
    """SparseProp's layer; its convolution in both of its ways, lanes over images and lanes over a row's pixels."""
    from sparseprop import modules

    twin = nn.utils.skip_init(type(dense), *_arguments(dense))
    with torch.no_grad():
        twin.weight.copy_(dense.weight * mask)
        twin.bias.copy_(dense.bias)
    if isinstance(dense, nn.Linear):
        layers = {"SparseProp": modules.SparseLinear.from_dense(twin)}
    else:
        layers = {
            "SparseProp (images)": modules.SparseConv2d.from_dense(twin),
            "SparseProp (pixels)": modules.SparseConv2d.from_dense(twin, vectorizing_over_on=True),
        }
    return [_sparseprop_candidate(name, layer, mask) for name, layer in layers.items()]


def _sparseprop_candidate(name: str, layer: Any, mask: Tensor) -> Candidate:
    # Where it keeps each edge: its own conversion of a weight that holds the edges' numbers.
    numbered = torch.zeros(mask.shape)
    numbered[mask] = torch.arange(1.0, int(mask.sum()) + 1)
    assert numbered.max() < 2**24  # up to here float32 holds whole numbers
    order = torch.argsort(type(layer)(numbered).W_val.detach())
    return Candidate(name, layer, [layer.W_val, layer.bias], lambda: layer.W_val.grad[order])


def sparselab_layer(dense: nn.Linear, mask: Tensor) -> Candidate:
    import sparselab
    from sparselab import layout

    layer = sparselab.SparseLinear(dense.in_features, dense.out_features, sparsity=0.9)
    csr = layout.from_dense(dense.weight.detach() * mask)
    layer._csr = csr
    layer._values = nn.Parameter(torch.from_numpy(np.asarray(csr.values)))
    with torch.no_grad():
        layer.bias.copy_(dense.bias)
    starts, lengths = np.asarray(csr.row_start), np.asarray(csr.row_nnz)
    slots = torch.from_numpy(np.concatenate([np.arange(s, s + n) for s, n in zip(starts, lengths, strict=True)]))
    return Candidate("sparselab", layer, [layer._values, layer.bias], lambda: layer._values.grad[slots])


def peers(dense: nn.Linear | nn.Conv2d, mask: Tensor) -> tuple[list[Candidate], list[str]]:
    """The other sparse libraries that have this layer, and a line for each that is not installed."""
    makers: dict[str, Callable[[Any, Tensor], list[Candidate]]] = {"sparseprop": sparseprop_layers}
    found: list[Candidate] = []
    skipped: list[str] = []
    if isinstance(dense, nn.Linear):
        found.append(torch_csr(dense, mask))
        makers["sparselab"] = lambda dense, mask: [sparselab_layer(dense, mask)]
    for package, make in makers.items():
        if importlib.util.find_spec(package) is None:
            skipped.append(f"{package} is not installed: skipped")
        else:
            found += make(dense, mask)
    return found, skipped


def _arguments(dense: nn.Linear | nn.Conv2d) -> tuple[Any, ...]:
    if isinstance(dense, nn.Linear):
        return dense.in_features, dense.out_features
    return dense.in_channels, dense.out_channels, dense.kernel_size, dense.stride, dense.padding
