"""Registers the operators' implementations: checks, then the products of the backend that is chosen.

Index tensors are validated in full the first time an operator sees them in their present state, and each later
call compares their version counters (:func:`sparsekern.pattern.check_tensors`): an index that is wrong, or was made
wrong by an in-place change, raises here and no kernel reads it.
"""

from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from sparsekern.backends import choice
from sparsekern.ops import checks
from sparsekern.ops.schemas import LIBRARY, weight_grad_dtype
from sparsekern.pattern import check_csc, check_tensors


def _operators(backend: SimpleNamespace) -> dict[str, Callable[..., Any]]:
    def linear(x: Tensor, w: Tensor, bias: Tensor | None, *topology: Tensor) -> Tensor:
        checks.linear(x, w, bias, *topology)
        check_tensors(*topology)
        return backend.linear(x, w, bias, *topology)

    def linear_backward(
        grad: Tensor, x: Tensor, w: Tensor, ccol: Tensor, row: Tensor, *, bias_dtype: torch.dtype | None = None
    ) -> tuple[Tensor, Tensor, Tensor]:
        checks.linear_backward(grad, x, w, ccol, row)
        check_csc(ccol, row, grad.shape[1])
        return backend.linear_backward(grad, x, w, ccol, row, bias_dtype)

    def linear_input_grad(grad: Tensor, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor:
        checks.linear_input_grad(grad, w, ccol, row)
        check_csc(ccol, row, grad.shape[1])
        return backend.linear_input_grad(grad, w, ccol, row)

    def linear_weight_grad(
        grad: Tensor, x: Tensor, ccol: Tensor, row: Tensor, *, dtype: torch.dtype | None = None
    ) -> Tensor:
        checks.linear_weight_grad(grad, x, ccol, row)
        check_csc(ccol, row, grad.shape[1])
        return backend.linear_weight_grad(grad, x, ccol, row, weight_grad_dtype(x, dtype))

    def conv2d(
        x: Tensor,
        w: Tensor,
        bias: Tensor | None,
        ccol: Tensor,
        row: Tensor,
        crow: Tensor,
        col: Tensor,
        perm: Tensor,
        *geometry: Any,
    ) -> Tensor:
        checks.conv2d(x, w, bias, ccol, row, crow, col, perm, *geometry)
        check_tensors(ccol, row, crow, col, perm)
        return backend.conv2d(x, w, bias, ccol, row, crow, col, perm, *geometry)

    def conv2d_backward(
        grad: Tensor,
        x: Tensor,
        w: Tensor,
        ccol: Tensor,
        row: Tensor,
        *geometry: Any,
        bias_dtype: torch.dtype | None = None,
    ) -> tuple[Tensor, Tensor, Tensor]:
        checks.conv2d_backward(grad, x, w, ccol, row, *geometry)
        check_csc(ccol, row, grad.shape[1])
        return backend.conv2d_backward(grad, x, w, ccol, row, *geometry, bias_dtype)

    def conv2d_input_grad(
        grad: Tensor, w: Tensor, ccol: Tensor, row: Tensor, input_size: Sequence[int], *geometry: Any
    ) -> Tensor:
        checks.conv2d_input_grad(grad, w, ccol, row, input_size, *geometry)
        check_csc(ccol, row, grad.shape[1])
        return backend.conv2d_input_grad(grad, w, ccol, row, input_size, *geometry)

    def conv2d_weight_grad(
        grad: Tensor, x: Tensor, ccol: Tensor, row: Tensor, *geometry: Any, dtype: torch.dtype | None = None
    ) -> Tensor:
        checks.conv2d_weight_grad(grad, x, ccol, row, *geometry)
        check_csc(ccol, row, grad.shape[1])
        return backend.conv2d_weight_grad(grad, x, ccol, row, *geometry, weight_grad_dtype(x, dtype))

    return {
        "linear": linear,
        "linear_backward": linear_backward,
        "linear_input_grad": linear_input_grad,
        "linear_weight_grad": linear_weight_grad,
        "conv2d": conv2d,
        "conv2d_backward": conv2d_backward,
        "conv2d_input_grad": conv2d_input_grad,
        "conv2d_weight_grad": conv2d_weight_grad,
    }


CPU = _operators(choice.cpu_products)

for _key, _implementations in (("CPU", CPU), ("CUDA", _operators(choice.cuda_products))):
    for _name, _implementation in _implementations.items():
        LIBRARY.impl(_name, _implementation, _key)
