"""SparseProp's layers; its convolution in both of its ways, lanes over images and lanes over a row's pixels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.libraries.candidate import Candidate
from benchmarks.libraries.torch_csr import compressed

NAME = "SparseProp"


def layers(dense: nn.Linear | nn.Conv2d, mask: Tensor) -> list[Candidate]:
    return [_linear(dense, mask)] if isinstance(dense, nn.Linear) else _convolutions(dense, mask)


def _linear(dense: nn.Linear, mask: Tensor) -> Candidate:
    from sparseprop import modules

    bias = nn.Parameter(dense.bias.detach().clone())
    layer = modules.SparseLinear(torch.ones(1, 1), bias)
    # Its own conversion takes the row pointers through float32, which above 2**24 edges rounds them.
    rows, columns = mask.nonzero(as_tuple=True)
    layer.N, layer.M = mask.shape
    layer.W_val = nn.Parameter(dense.weight.detach()[mask])
    layer.W_idx = (compressed(rows, mask.shape[0]), columns.int())
    return Candidate(NAME, layer, [layer.W_val, bias], lambda: layer.W_val.grad)


def _convolutions(dense: nn.Conv2d, mask: Tensor) -> list[Candidate]:
    from sparseprop import modules

    def make(weight: Tensor, over_pixels: bool) -> Any:
        bias = nn.Parameter(dense.bias.detach().clone())
        return modules.SparseConv2d(weight, bias, dense.padding[0], dense.stride[0], over_pixels)

    # Where it keeps each edge: its own conversion of a weight that holds the edges' numbers.
    numbered = torch.zeros(mask.shape)
    numbered[mask] = torch.arange(1.0, int(mask.sum()) + 1)
    assert numbered.max() < 2**24  # up to here float32 holds whole numbers
    order = torch.argsort(make(numbered, False).W_val.detach())

    def candidate(way: str, over_pixels: bool) -> Candidate:
        layer = make((dense.weight * mask).detach(), over_pixels)
        parameters = [layer.W_val, layer.bias]
        return Candidate(f"{NAME} ({way})", layer, parameters, lambda: layer.W_val.grad[order], library=NAME)

    return [candidate("images", False), candidate("pixels", True)]
