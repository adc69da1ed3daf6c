"""The linear products. Arguments were checked by the operators; signatures are those of the reference.

Forward is a sum along the rows of W, the input's gradient one along its columns: the same kernel, on the edges by row
and as they are stored.
"""

import torch
from torch import Tensor

from sparsekern.backends import reference
from sparsekern.backends._reference_linear import accumulation_dtype
from sparsekern.backends.gpu import on_device_of
from sparsekern.backends.triton.device import serves
from sparsekern.backends.triton.layout import by_feature, by_token, narrow

linear_direct = reference.linear_direct


def _serves(x: Tensor) -> bool:
    return serves("linear", x.dtype, x.device)


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    ccol: Tensor,
    row: Tensor,
    crow: Tensor,
    col: Tensor,
    perm: Tensor,
) -> Tensor:
    if not _serves(x):
        return reference.linear(x, w, bias, ccol, row, crow, col, perm)
    from sparsekern.backends.triton.spmm import spmm

    with on_device_of(x):
        # Once here, or each stretch of tokens would gather the values again, one at a time.
        by_row = w.index_select(0, perm)
        columns = narrow(col, x.shape[1])
        y = spmm(by_feature(x), x.shape[0], by_row, crow, columns, None if bias is None else bias.contiguous())
        return by_token(y, x.shape[0])


def _input_grad(by_row: Tensor, tokens: int, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor:
    from sparsekern.backends.triton.spmm import spmm

    y = spmm(by_row, tokens, w.contiguous(), ccol, narrow(row, by_row.shape[0]), None)
    return by_token(y, tokens)


def _weight_grad(by_row: Tensor, by_column: Tensor, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    from sparsekern.backends.triton.sddmm import sddmm

    return sddmm(by_row, by_column, ccol, row, dtype)


def linear_input_grad(grad: Tensor, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor:
    if not _serves(grad):
        return reference.linear_input_grad(grad, w, ccol, row)
    with on_device_of(grad):
        return _input_grad(by_feature(grad), grad.shape[0], w, ccol, row)


def linear_weight_grad(grad: Tensor, x: Tensor, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    if not _serves(x):
        return reference.linear_weight_grad(grad, x, ccol, row, dtype)
    with on_device_of(x):
        return _weight_grad(by_feature(grad), by_feature(x), ccol, row, dtype)


def linear_backward(
    grad: Tensor, x: Tensor, w: Tensor, ccol: Tensor, row: Tensor, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    if not _serves(x):
        return reference.linear_backward(grad, x, w, ccol, row, bias_dtype)
    with on_device_of(x):
        by_row = by_feature(grad)
        dx = _input_grad(by_row, x.shape[0], w, ccol, row)
        dw = _weight_grad(by_row, by_feature(x), ccol, row, w.dtype)
        if bias_dtype is None:
            return dx, dw, grad.new_empty(0)
        return dx, dw, grad.sum(0, dtype=accumulation_dtype(grad.dtype)).to(bias_dtype)
