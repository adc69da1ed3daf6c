"""The linear products. Arguments were checked by the operators; signatures are those of the reference.

Forward is a sum along the rows of W, the input's gradient one along its columns: the same kernel, on the edges by row
and as they are stored.
"""

from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from sparsekern.backends import reference
from sparsekern.backends._reference_linear import accumulation_dtype
from sparsekern.backends.triton.layout import by_feature

_DTYPES = (torch.float32, torch.bfloat16, torch.float16)

linear_direct = reference.linear_direct


@cache
def _new_enough(device: torch.device) -> bool:
    if device.type != "cuda" or torch.version.hip is not None:
        return True
    return torch.cuda.get_device_capability(device) >= (8, 0)


def serves(product: str, dtype: torch.dtype, device: torch.device) -> bool:
    """Whether a product ("linear", "conv2d") of such activations has a kernel here; the reference has all."""
    return product == "linear" and dtype in _DTYPES and _new_enough(device)


def _serves(x: Tensor) -> bool:
    return serves("linear", x.dtype, x.device)


def _on_device_of(x: Tensor) -> AbstractContextManager[object]:
    # Triton launches on the current device, wherever the tensors are.
    return torch.cuda.device(x.device) if x.is_cuda else nullcontext()


def _by_token(y: Tensor, tokens: int) -> Tensor:
    # Not contiguous(), which returns a single token's view as it is, with strides that the operator has not announced.
    return torch.empty(tokens, y.shape[0], dtype=y.dtype, device=y.device).copy_(y[:, :tokens].t())


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

    with _on_device_of(x):
        # Once here, or each stretch of tokens would gather the values again, one at a time.
        by_row = w.index_select(0, perm)
        y = spmm(by_feature(x), by_row, crow, col, None if bias is None else bias.contiguous())
        return _by_token(y, x.shape[0])


def _input_grad(by_row: Tensor, tokens: int, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor:
    from sparsekern.backends.triton.spmm import spmm

    return _by_token(spmm(by_row, w.contiguous(), ccol, row, None), tokens)


def _weight_grad(by_row: Tensor, by_column: Tensor, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    from sparsekern.backends.triton.sddmm import sddmm

    return sddmm(by_row, by_column, ccol, row, dtype)


def linear_input_grad(grad: Tensor, w: Tensor, ccol: Tensor, row: Tensor) -> Tensor:
    if not _serves(grad):
        return reference.linear_input_grad(grad, w, ccol, row)
    with _on_device_of(grad):
        return _input_grad(by_feature(grad), grad.shape[0], w, ccol, row)


def linear_weight_grad(grad: Tensor, x: Tensor, ccol: Tensor, row: Tensor, dtype: torch.dtype) -> Tensor:
    if not _serves(x):
        return reference.linear_weight_grad(grad, x, ccol, row, dtype)
    with _on_device_of(x):
        return _weight_grad(by_feature(grad), by_feature(x), ccol, row, dtype)


def linear_backward(
    grad: Tensor, x: Tensor, w: Tensor, ccol: Tensor, row: Tensor, bias_dtype: torch.dtype | None
) -> tuple[Tensor, Tensor, Tensor]:
    if not _serves(x):
        return reference.linear_backward(grad, x, w, ccol, row, bias_dtype)
    with _on_device_of(x):
        by_row = by_feature(grad)
        dx = _input_grad(by_row, x.shape[0], w, ccol, row)
        dw = _weight_grad(by_row, by_feature(x), ccol, row, w.dtype)
        if bias_dtype is None:
            return dx, dw, grad.new_empty(0)
        return dx, dw, grad.sum(0, dtype=accumulation_dtype(grad.dtype)).to(bias_dtype)
