"""Calls the C++ batch norm kernels. Arguments were checked by the operators; outputs are allocated here."""

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.backends._cpu_linear import DTYPE_CODES, address
from sparsekern.backends._reference_linear import accumulation_dtype
from sparsekern.backends._reference_norm import output_format


def _channels(tensor: Tensor | None, dtype: torch.dtype) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype).contiguous()


def _size(x: Tensor) -> tuple[int, int, int]:
    return x.shape[0], x.shape[1], x.shape[2] * x.shape[3]


def _forward(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool,
    batch_statistics: bool,
) -> Tensor:
    memory_format = output_format(x)
    x = x.contiguous()
    residual = None if residual is None else residual.contiguous()
    weight, bias = _channels(weight, mean.dtype), _channels(bias, mean.dtype)
    y = torch.empty(x.shape, dtype=x.dtype)
    tensors = (x.data_ptr(), address(weight), address(bias), mean.data_ptr(), var.data_ptr())
    _C.norm_forward(
        _size(x), DTYPE_CODES[x.dtype], tensors, eps, relu, batch_statistics, address(residual), y.data_ptr()
    )
    return y.contiguous(memory_format=memory_format)


def batch_norm(
    x: Tensor, residual: Tensor | None, weight: Tensor | None, bias: Tensor | None, eps: float, relu: bool
) -> tuple[Tensor, Tensor, Tensor]:
    wide = accumulation_dtype(x.dtype)
    if x.numel() == 0:
        mean, var = torch.zeros(2, x.shape[1], dtype=wide)
    else:
        mean, var = torch.empty(x.shape[1], dtype=wide), torch.empty(x.shape[1], dtype=wide)
    return _forward(x, residual, weight, bias, mean, var, eps, relu, x.numel() > 0), mean, var


def batch_norm_inference(
    x: Tensor,
    residual: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool,
) -> Tensor:
    wide = accumulation_dtype(x.dtype)
    mean, var = mean.to(wide).contiguous(), var.to(wide).contiguous()
    return _forward(x, residual, weight, bias, mean, var, eps, relu, False)


def batch_norm_backward(
    grad: Tensor,
    x: Tensor,
    y: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    eps: float,
    relu: bool,
    batch_statistics: bool,
    need_x: bool,
    need_residual: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    memory_format = output_format(x)
    grad, x = grad.contiguous(), x.contiguous()
    y = y.contiguous() if relu and y is not None else None
    wide = accumulation_dtype(x.dtype)
    weight, bias = _channels(weight, wide), _channels(bias, wide)
    mean, var = mean.to(wide).contiguous(), var.to(wide).contiguous()
    dx, dresidual = (torch.empty(x.shape if need else 0, dtype=x.dtype) for need in (need_x, need_residual))
    dweight, dbias = torch.empty(x.shape[1], dtype=wide), torch.empty(x.shape[1], dtype=wide)
    _C.norm_backward(
        _size(x),
        DTYPE_CODES[x.dtype],
        (x.data_ptr(), address(weight), address(bias), mean.data_ptr(), var.data_ptr()),
        eps,
        relu,
        batch_statistics and x.numel() > 0,
        grad.data_ptr(),
        address(y),
        (
            address(dx if need_x else None),
            address(dresidual if need_residual else None),
            dweight.data_ptr(),
            dbias.data_ptr(),
        ),
    )
    dx, dresidual = (d.contiguous(memory_format=memory_format) if d.dim() == 4 else d for d in (dx, dresidual))
    return dx, dresidual, dweight, dbias
