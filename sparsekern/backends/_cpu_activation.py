"""Calls the C++ elementwise kernels. Arguments were checked by the operators; outputs are allocated here."""

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.backends._cpu_linear import DTYPE_CODES


def _like(tensor: Tensor, y: Tensor) -> Tensor:
    """``tensor`` in the memory layout of ``y``, which has no gaps."""
    return tensor if tensor.stride() == y.stride() else torch.empty_like(y).copy_(tensor)


def gelu(x: Tensor, tanh: bool) -> Tensor:
    y = torch.empty_like(x)
    x = _like(x, y)
    _C.gelu(DTYPE_CODES[x.dtype], x.numel(), 0, x.data_ptr(), tanh, y.data_ptr())
    return y


def gelu_backward(grad: Tensor, x: Tensor, tanh: bool) -> Tensor:
    dx = torch.empty_like(x)
    x, grad = _like(x, dx), _like(grad, dx)
    _C.gelu(DTYPE_CODES[x.dtype], x.numel(), grad.data_ptr(), x.data_ptr(), tanh, dx.data_ptr())
    return dx
