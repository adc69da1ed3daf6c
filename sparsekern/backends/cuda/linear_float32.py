"""The linear products in float32 on CUDA cores. Signatures are those of the reference, arguments have been checked."""

import torch
from torch import Tensor

from sparsekern.backends.cuda.products import Operand, inner_plan, inner_products, sum_plan, sums
from sparsekern.backends.cuda.served import other
from sparsekern.backends.cuda.tiles import Shape


def _shape(tokens: int, columns: int, rows: int) -> Shape:
    return Shape(tokens, columns, (1, 1), rows, (1, 1))


def _operand(x: Tensor) -> Operand:
    return Operand(x[:, :, None, None])


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
    rows = crow.numel() - 1
    if x.shape[0] == 0 or rows == 0:
        return x.new_empty(x.shape[0], rows)
    operand = _operand(x)
    plan = sum_plan(_shape(x.shape[0], x.shape[1], rows), False, row, operand)
    if plan is None:
        return other("linear", x.dtype, x.device).linear(x, w, bias, ccol, row, crow, col, perm)
    return sums(plan, operand, w, bias, ccol, row)[:, :, 0, 0]


def _input_grad(grad: Operand, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor:
    tokens, rows = grad.x.shape[:2]
    columns = ccol.numel() - 1
    if tokens == 0 or columns == 0:
        return grad.x.new_empty(tokens, columns)
    plan = sum_plan(_shape(tokens, columns, rows), True, row, grad)
    if plan is None:
        return other("linear", w.dtype, w.device).linear_input_grad(grad.x[:, :, 0, 0], w, ccol, row)
    return sums(plan, grad, w, None, ccol, row)[:, :, 0, 0]


def _weight_grad(grad: Operand, x: Operand, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    (tokens, rows), columns = grad.x.shape[:2], x.x.shape[1]
    if tokens == 0 or row.numel() == 0:
        return torch.zeros(row.numel(), dtype=dtype, device=row.device)
    plan = inner_plan(_shape(tokens, columns, rows), row, x, grad)
    if plan is None:
        dense = grad.x[:, :, 0, 0], x.x[:, :, 0, 0]
        return other("linear", x.x.dtype, row.device).linear_weight_grad(*dense, ccol, row, dtype)
    return inner_products(plan, x, grad, ccol, row).to(dtype)


def linear_input_grad(grad: Tensor, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor:
    return _input_grad(_operand(grad), w, ccol, row)


def linear_weight_grad(grad: Tensor, x: Tensor, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    return _weight_grad(_operand(grad), _operand(x), ccol, row, dtype)


def linear_backward(
    grad: Tensor, x: Tensor, w: Tensor, ccol: Tensor, row: Tensor, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    grads = _operand(grad)  # transposed once
    dx, dw = _input_grad(grads, w, ccol, row), _weight_grad(grads, _operand(x), ccol, row, w.dtype)
    dbias = grad.new_empty(0) if bias_dtype is None else grad.sum(0, dtype=torch.float32).to(bias_dtype)
    return dx, dw, dbias
