"""Calls the C++ linear kernels. Arguments were checked by the operators; outputs are allocated here."""

from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.backends.kept import Kept

_plans: Kept[_C.LinearPlan] = Kept()
_topologies: Kept[_C.LinearTopology] = Kept()

DTYPE_CODES = {torch.float32: 0, torch.float64: 1, torch.bfloat16: 2, torch.float16: 3}


def _rows(x: Tensor) -> tuple[Tensor, int]:
    """``x`` with adjacent features, and the elements from row to row."""
    if x.stride(1) != 1 and x.shape[1] > 1:
        x = x.contiguous()
    return x, x.stride(0)


def _plan(ccol: Tensor, row: Tensor) -> Any:
    """What the topology's products keep; None where nothing can be kept."""
    return _plans.get(ccol, row) or _plans.put(_C.LinearPlan(), ccol, row)


def address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _topology(*tensors: Tensor) -> Any:
    """A whole validated topology, as the forward kernel wants it."""
    known = _topologies.get(*tensors)
    if known is None:
        ccol, row, crow, _, _ = tensors
        sizes = crow.numel() - 1, ccol.numel() - 1, row.numel()
        addresses = (tensor.data_ptr() for tensor in tensors)
        known = _C.LinearTopology(_plan(ccol, row), *sizes, crow.dtype == torch.int64, *addresses)
        _topologies.put(known, *tensors)
    return known


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
    x, stride = _rows(x)
    w = w.contiguous()
    bias = None if bias is None else bias.contiguous()
    y = torch.empty(x.shape[0], crow.numel() - 1, dtype=x.dtype)
    _C.linear_forward(
        _topology(ccol, row, crow, col, perm),
        x.shape[0],
        DTYPE_CODES[x.dtype],
        x.data_ptr(),
        stride,
        DTYPE_CODES[w.dtype],
        w.data_ptr(),
        0 if w.is_inference() else w._version,
        0 if bias is None else DTYPE_CODES[bias.dtype],
        address(bias),
        y.data_ptr(),
    )
    return y


# linear_direct(x, w, bias, *topology): the product of x (..., in), of arguments that nobody has checked. None where
# they are not what the kernel can take as they are, where a gradient is wanted, or where somebody would see an operator
# (not torch.compile's tracer: under that one it is not to be called at all). The topology is one that `linear` has
# multiplied with, and unchanged since.
linear_direct: Callable[..., Tensor | None] = partial(_C.linear_direct, _topologies.entries)


def _backward(
    grad: Tensor,
    x: Tensor | None,
    w: Tensor | None,
    ccol: Tensor,
    row: Tensor,
    dx: Tensor | None,
    dw: Tensor | None,
    dbias: Tensor | None = None,
) -> None:
    grad, grad_stride = _rows(grad)
    x, x_stride = (None, 0) if x is None else _rows(x)
    w = None if w is None else w.contiguous()
    _C.linear_backward(
        _plan(ccol, row),
        grad.shape[1],
        ccol.numel() - 1,
        row.numel(),
        ccol.dtype == torch.int64,
        ccol.data_ptr(),
        row.data_ptr(),
        grad.shape[0],
        DTYPE_CODES[grad.dtype],
        grad.data_ptr(),
        grad_stride,
        address(x),
        x_stride,
        0 if w is None else DTYPE_CODES[w.dtype],
        address(w),
        address(dx),
        0 if dw is None else DTYPE_CODES[dw.dtype],
        address(dw),
        0 if dbias is None else DTYPE_CODES[dbias.dtype],
        address(dbias),
    )


def linear_backward(
    grad: Tensor, x: Tensor, w: Tensor, ccol: Tensor, row: Tensor, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    dx, dw = torch.empty(x.shape, dtype=x.dtype), torch.empty(w.shape, dtype=w.dtype)
    dbias = torch.empty(0, dtype=x.dtype) if bias_dtype is None else torch.empty(grad.shape[1], dtype=bias_dtype)
    _backward(grad, x, w, ccol, row, dx, dw, None if bias_dtype is None else dbias)
    return dx, dw, dbias


def linear_input_grad(grad: Tensor, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor:
    dx = torch.empty(grad.shape[0], ccol.numel() - 1, dtype=grad.dtype)
    _backward(grad, None, w, ccol, row, dx, None)
    return dx


def linear_weight_grad(grad: Tensor, x: Tensor, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    dw = torch.empty(row.shape, dtype=dtype)
    _backward(grad, x, None, ccol, row, None, dw)
    return dw
