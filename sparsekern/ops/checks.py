"""What the operators ask of shapes, dtypes and devices, before any kernel runs. Index contents are pattern.py's.

Messages are put together only where they are raised: these checks run at every call.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

FLOAT_DTYPES = (torch.float32, torch.float64, torch.bfloat16, torch.float16)
INDEX_DTYPES = (torch.int32, torch.int64)


def _floats(x: Tensor, w: Tensor | None = None, bias: Tensor | None = None, grad: Tensor | None = None) -> None:
    if x.dtype not in FLOAT_DTYPES:
        raise TypeError(f"input has dtype {x.dtype}; expected one of float32, float64, bfloat16, float16")
    if grad is not None and grad.dtype != x.dtype:
        raise TypeError(f"grad has dtype {grad.dtype}; expected the input's, {x.dtype}")
    half = x.dtype in (torch.bfloat16, torch.float16)
    for name, values in (("weight", w), ("bias", bias)):
        if values is None:
            continue
        if values.dtype != x.dtype and not (half and values.dtype == torch.float32):
            allowed = f"{x.dtype} or torch.float32" if half else f"{x.dtype}"
            raise TypeError(f"{name} has dtype {values.dtype}; with input of dtype {x.dtype} expected {allowed}")
        _same_device(name, values, x)


def _same_device(name: str, tensor: Tensor, x: Tensor) -> None:
    if tensor.device != x.device:
        raise ValueError(f"{name} is on {tensor.device} and the input on {x.device}; expected one device")


def _indices(x: Tensor, ccol: Tensor, row: Tensor) -> None:
    for name, index in (("ccol_indices", ccol), ("row_indices", row)):
        if index.dtype not in INDEX_DTYPES:
            raise TypeError(f"{name} has dtype {index.dtype}; expected torch.int32")
        if index.dim() != 1:
            raise ValueError(f"{name} has {index.dim()} dimensions; expected 1")
        _same_device(name, index, x)
    if ccol.shape[0] < 1:
        raise ValueError("ccol_indices is empty; expected columns + 1 entries")


def _all_indices(x: Tensor, ccol: Tensor, row: Tensor, crow: Tensor, col: Tensor, perm: Tensor) -> None:
    _indices(x, ccol, row)
    for name, index in (("crow_indices", crow), ("col_indices", col), ("permutation", perm)):
        if index.dtype not in INDEX_DTYPES:
            raise TypeError(f"{name} has dtype {index.dtype}; expected torch.int32")
        if index.dim() != 1:
            raise ValueError(f"{name} has {index.dim()} dimensions; expected 1")
        _same_device(name, index, x)
    if crow.shape[0] < 1:
        raise ValueError("crow_indices is empty; expected rows + 1 entries")
    _length("col_indices", col, row.shape[0], "nnz")
    _length("permutation", perm, row.shape[0], "nnz")


def _length(name: str, tensor: Tensor, length: int, meaning: str) -> None:
    if not (tensor.dim() == 1 and tensor.shape[0] == length):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected ({length},), {meaning}")


def _matrix(name: str, tensor: Tensor, columns: int, meaning: str) -> None:
    if not (tensor.dim() == 2 and tensor.shape[1] == columns):
        raise ValueError(f"{name} has shape {tuple(tensor.shape)}; expected (batch, {columns}), {columns} {meaning}")


def linear(
    x: Tensor,
    w: Tensor,
    bias: Tensor | None,
    ccol: Tensor,
    row: Tensor,
    crow: Tensor,
    col: Tensor,
    perm: Tensor,
) -> None:
    _floats(x, w, bias)
    _all_indices(x, ccol, row, crow, col, perm)
    _matrix("input", x, ccol.shape[0] - 1, "input features")
    _length("weight", w, row.shape[0], "nnz")
    if bias is not None:
        _length("bias", bias, crow.shape[0] - 1, "output features")


def linear_weight_grad(grad: Tensor, x: Tensor, ccol: Tensor, row: Tensor) -> None:
    _floats(x, grad=grad)
    _indices(x, ccol, row)
    _matrix("input", x, ccol.shape[0] - 1, "input features")
    if not (grad.dim() == 2 and grad.shape[0] == x.shape[0]):
        raise ValueError(f"grad has shape {tuple(grad.shape)}; expected ({x.shape[0]}, output features)")
    _same_device("grad", grad, x)


def linear_backward(grad: Tensor, x: Tensor, w: Tensor, ccol: Tensor, row: Tensor) -> None:
    _floats(x, w)
    linear_weight_grad(grad, x, ccol, row)
    _length("weight", w, row.shape[0], "nnz")


def linear_input_grad(grad: Tensor, w: Tensor, ccol: Tensor, row: Tensor) -> None:
    _floats(grad, w)
    _indices(grad, ccol, row)
    if grad.dim() != 2:
        raise ValueError(f"grad has shape {tuple(grad.shape)}; expected (batch, output features)")
    _length("weight", w, row.shape[0], "nnz")


def conv2d_output_size(
    size: Sequence[int],
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
) -> tuple[int, int]:
    """Height and width of a convolution's output; ValueError where the kernel does not fit the padded input."""
    out = []
    for n, k, s, p, d in zip(size, kernel_size, stride, padding, dilation, strict=True):
        reach = d * (k - 1) + 1
        if n + 2 * p < reach:
            raise ValueError(
                f"input of size {tuple(size)} with padding {tuple(padding)} is smaller than the kernel, which "
                f"reaches over {reach} (kernel_size {tuple(kernel_size)}, dilation {tuple(dilation)})"
            )
        out.append((n + 2 * p - reach) // s + 1)
    return out[0], out[1]


def _geometry(
    kernel_size: Sequence[int],
    stride: Sequence[int],
    padding: Sequence[int],
    dilation: Sequence[int],
    groups: int,
) -> None:
    for name, pair, least in (
        ("kernel_size", kernel_size, 1),
        ("stride", stride, 1),
        ("padding", padding, 0),
        ("dilation", dilation, 1),
    ):
        if not (len(pair) == 2 and pair[0] >= least and pair[1] >= least):
            raise ValueError(f"{name} is {tuple(pair)}; expected two integers of at least {least}")
    if groups < 1:
        raise ValueError(f"groups is {groups}; expected at least 1")


def _channels(ccol: Tensor, kernel_size: Sequence[int], groups: int) -> int:
    """Input channels that a topology of ``ccol`` belongs to."""
    columns = ccol.shape[0] - 1
    taps = kernel_size[0] * kernel_size[1]
    if columns % taps:
        raise ValueError(f"ccol_indices has {columns} columns; expected a multiple of the kernel's {taps} positions")
    return columns // taps * groups


def _images(name: str, x: Tensor, channels: int) -> None:
    if not (x.dim() == 4 and x.shape[1] == channels):
        raise ValueError(f"{name} has shape {tuple(x.shape)}; expected (batch, {channels}, height, width)")


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
) -> tuple[int, int]:
    _floats(x, w, bias)
    _geometry(kernel_size, stride, padding, dilation, groups)
    _all_indices(x, ccol, row, crow, col, perm)
    _images("input", x, _channels(ccol, kernel_size, groups))
    _length("weight", w, row.shape[0], "nnz")
    out_channels = crow.shape[0] - 1
    if out_channels % groups:
        raise ValueError(f"{out_channels} output channels are not a multiple of groups, {groups}")
    if bias is not None:
        _length("bias", bias, out_channels, "output channels")
    return conv2d_output_size(x.shape[2:], kernel_size, stride, padding, dilation)


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
) -> None:
    _floats(x, grad=grad)
    _geometry(kernel_size, stride, padding, dilation, groups)
    _indices(x, ccol, row)
    _same_device("grad", grad, x)
    _images("input", x, _channels(ccol, kernel_size, groups))
    size = conv2d_output_size(x.shape[2:], kernel_size, stride, padding, dilation)
    if not (grad.dim() == 4 and grad.shape[0] == x.shape[0] and tuple(grad.shape[2:]) == size):
        raise ValueError(
            f"grad has shape {tuple(grad.shape)}; expected ({x.shape[0]}, output channels, {size[0]}, {size[1]})"
        )
    if grad.shape[1] % groups:
        raise ValueError(f"grad has {grad.shape[1]} channels; expected a multiple of groups, {groups}")


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
) -> None:
    _floats(x, w)
    conv2d_weight_grad(grad, x, ccol, row, kernel_size, stride, padding, dilation, groups)
    _length("weight", w, row.shape[0], "nnz")


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
) -> int:
    _floats(grad, w)
    _geometry(kernel_size, stride, padding, dilation, groups)
    _indices(grad, ccol, row)
    _length("weight", w, row.shape[0], "nnz")
    size = conv2d_output_size(input_size, kernel_size, stride, padding, dilation)
    if not (grad.dim() == 4 and tuple(grad.shape[2:]) == size and grad.shape[1] % groups == 0):
        raise ValueError(
            f"grad has shape {tuple(grad.shape)}; expected (batch, a multiple of {groups} channels, "
            f"{size[0]}, {size[1]})"
        )
    return _channels(ccol, kernel_size, groups)
