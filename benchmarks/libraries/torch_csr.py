"""torch.sparse at its best: CSR products with a kept transpose, and sampled_addmm for the weight."""

from __future__ import annotations

import warnings
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.libraries.candidate import Candidate

NAME = "torch CSR"


def layers(dense: nn.Linear, mask: Tensor) -> list[Candidate]:
    torch.sparse.check_sparse_tensor_invariants.disable()
    warnings.filterwarnings("ignore", message="Sparse CSR tensor support is in beta")
    rows, columns = mask.nonzero(as_tuple=True)
    permutation = torch.argsort(columns * mask.shape[0] + rows)
    crow, col = compressed(rows, mask.shape[0]), columns.int()
    crow_t, col_t = compressed(columns, mask.shape[1]), rows[permutation].int()
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

    return [Candidate(NAME, lambda x: Product.apply(x, values) + bias, [values, bias], lambda: values.grad)]


def compressed(index: Tensor, size: int) -> Tensor:
    """Where each row begins, (size + 1,) int32, from the rows of all edges."""
    return F.pad(index.bincount(minlength=size).cumsum(0), (1, 0)).int()
