"""Sparse conv2d on the CPU: hands tensors' addresses to the compiled kernels.

The arguments have been checked by the callers in :mod:`sparsekern.ops`; signatures are those of
:mod:`sparsekern.backends._reference_conv2d`.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from sparsekern import _C
from sparsekern.backends._cpu_linear import DTYPE_CODES

_ABSENT = (0, 0)


def _ref(tensor: Tensor) -> tuple[int, int]:
    return tensor.data_ptr(), DTYPE_CODES[tensor.dtype]


def _index(tensor: Tensor) -> tuple[int, bool]:
    return tensor.data_ptr(), tensor.dtype == torch.int64


def _planar(x: Tensor) -> Tensor:
    """The tensor (N, C, H, W), contiguous. torch's own copy of a channels_last one takes several times as long."""
    if x.is_contiguous() or not x.is_contiguous(memory_format=torch.channels_last):
        return x.contiguous()
    planar = torch.empty(x.shape, dtype=x.dtype)
    batch, channels, height, width = x.shape
    _C.conv2d_make_planar(DTYPE_CODES[x.dtype], batch, channels, height * width, x.data_ptr(), planar.data_ptr())
    return planar


def _output_size(
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> list[int]:
    sizes = zip(input_size, kernel_size, stride, padding, dilation, strict=True)
    return [(size + 2 * pad - dil * (k - 1) - 1) // step + 1 for size, k, step, pad, dil in sizes]


def conv2d(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    ccol: Tensor,
    row: Tensor,
    crow: Tensor,
    col: Tensor,
    perm: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The convolution of x (N, C, H, W): y (N, O, OH, OW) in x's dtype."""
    x, w = _planar(x), w.contiguous()
    bias = None if bias is None else bias.contiguous()
    out_channels = crow.numel() - 1
    size = _output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    y = torch.empty(x.shape[0], out_channels, *size, dtype=x.dtype)
    shape = [*x.shape, out_channels, *kernel_size, *stride, *padding, *dilation, groups]
    _C.conv2d_forward(
        shape,
        w.numel(),
        _ref(x),
        _ref(w),
        _ABSENT if bias is None else _ref(bias),
        _index(crow),
        col.data_ptr(),
        _index(perm),
        _ref(y),
    )
    return y


def conv2d_backward(
    grad: Tensor,
    x: Tensor,
    w: Tensor,
    ccol: Tensor,
    row: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    bias_dtype: torch.dtype | None,
) -> tuple[Tensor, Tensor, Tensor]:
    """The gradients from one pass over the edges: dx (N, C, H, W) in x's dtype, dw (nnz,) in w's, and dbias."""
    grad, x, w = _planar(grad), _planar(x), w.contiguous()
    dx = torch.empty(x.shape, dtype=x.dtype)
    dw = torch.empty(w.shape, dtype=w.dtype)
    dbias = torch.empty(0, dtype=x.dtype) if bias_dtype is None else torch.empty(grad.shape[1], dtype=bias_dtype)
    shape = [*x.shape, grad.shape[1], *kernel_size, *stride, *padding, *dilation, groups]
    _C.conv2d_backward(
        shape,
        row.numel(),
        _ref(grad),
        _ref(x),
        _ref(w),
        _index(ccol),
        row.data_ptr(),
        _ref(dx),
        _ref(dw),
        _ABSENT if bias_dtype is None else _ref(dbias),
    )
    return dx, dw, dbias


def conv2d_input_grad(
    grad: Tensor,
    w: Tensor,
    ccol: Tensor,
    row: Tensor,
    input_size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> Tensor:
    """The gradient of the input, of spatial size input_size: dx (N, C, H, W) in grad's dtype."""
    grad, w = _planar(grad), w.contiguous()
    channels = (ccol.numel() - 1) // (kernel_size[0] * kernel_size[1]) * groups
    dx = torch.empty(grad.shape[0], channels, *input_size, dtype=grad.dtype)
    shape = [*dx.shape, grad.shape[1], *kernel_size, *stride, *padding, *dilation, groups]
    _C.conv2d_backward(
        shape, row.numel(), _ref(grad), _ABSENT, _ref(w), _index(ccol), row.data_ptr(), _ref(dx), _ABSENT, _ABSENT
    )
    return dx


def conv2d_weight_grad(
    grad: Tensor,
    x: Tensor,
    ccol: Tensor,
    row: Tensor,
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """The weight gradient at the edges of any pattern: dw (nnz,) in dtype, by default at least float32."""
    grad, x = _planar(grad), _planar(x)
    dw = torch.empty(row.numel(), dtype=dtype or torch.promote_types(x.dtype, torch.float32))
    shape = [*x.shape, grad.shape[1], *kernel_size, *stride, *padding, *dilation, groups]
    _C.conv2d_backward(
        shape, row.numel(), _ref(grad), _ref(x), _ABSENT, _index(ccol), row.data_ptr(), _ABSENT, _ref(dw), _ABSENT
    )
    return dw
