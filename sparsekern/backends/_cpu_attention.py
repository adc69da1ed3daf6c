"""Calls the C++ attention kernels. Arguments were checked by the operators; outputs are allocated here."""

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.backends._cpu_linear import DTYPE_CODES
from sparsekern.backends._reference_linear import accumulation_dtype


def _size(qkv: Tensor, heads: int) -> tuple[int, int, int, int]:
    return qkv.shape[0], qkv.shape[1], heads, qkv.shape[2] // (3 * heads)


def attention(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor]:
    qkv = qkv.contiguous()
    sequences, tokens, features = qkv.shape
    out = torch.empty(sequences, tokens, features // 3, dtype=qkv.dtype)
    log_sums = torch.empty(sequences, heads, tokens, dtype=accumulation_dtype(qkv.dtype))
    _C.attention_forward(_size(qkv, heads), DTYPE_CODES[qkv.dtype], qkv.data_ptr(), out.data_ptr(), log_sums.data_ptr())
    return out, log_sums


def attention_backward(grad: Tensor, qkv: Tensor, log_sums: Tensor, heads: int) -> Tensor:
    grad, qkv, log_sums = grad.contiguous(), qkv.contiguous(), log_sums.contiguous()
    qkv_grad = torch.empty(qkv.shape, dtype=qkv.dtype)
    _C.attention_backward(
        _size(qkv, heads),
        DTYPE_CODES[qkv.dtype],
        grad.data_ptr(),
        qkv.data_ptr(),
        log_sums.data_ptr(),
        qkv_grad.data_ptr(),
    )
    return qkv_grad
